"""What is believed, for how long, and for whom. The clock is the test's."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.waiting import until
from xetserve.errors import (
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamOffline,
    UpstreamRefused,
    UpstreamTimeout,
)
from xetserve.metrics.catalogue import METADATA_STALE
from xetserve.upstream.answers.backoff import DOWN_TIME, MAX_PAUSE
from xetserve.upstream.answers.cache import AnswerCache, AnswerPolicy
from xetserve.upstream.answers.folder import IMPORTED
from xetserve.upstream.answers.question import (
    MAX_NAME_SIZE,
    PERMISSIONS,
    PROOFS,
    Answer,
    Question,
    Verdict,
)
from xetserve.upstream.answers.scope import ANONYMOUS, get_scope
from xetserve.upstream.answers.store import AnswerStore

MINE, OTHERS = get_scope("hf_mine"), get_scope("hf_others")
FILE = Question(MINE, "file", "model/o/n", "main\0a")
SECOND = FILE._replace(name="main\0b")
LASTING = FILE._replace(name=f"{'c' * 40}\0a")
DENIED = UpstreamDenied("no", status=403, headers=[("X-Error-Code", "GatedRepo")])


class Upstream:
    """Gives one answer after the other; the last one stands for all others."""

    def __init__(self, *answers: bytes | Answer | Exception) -> None:
        self._answers = list(answers)
        self.patience: list[bool] = []

    @property
    def count(self) -> int:
        return len(self.patience)

    async def ask(self, patient: bool) -> Answer:
        self.patience.append(patient)
        await asyncio.sleep(0)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Answer) else Answer(answer)


class Bench:
    """A cache, its clock, and the store if there is one."""

    def __init__(
        self, folder: Path | None = None, realm: str = "http://hub", **policy: float
    ) -> None:
        self.now = 1_000_000.0
        self.folder = folder
        self.realm = realm
        self.policy = AnswerPolicy(**policy)  # type: ignore[arg-type]
        self.start()

    def start(self, **policy: float | bool) -> None:
        if policy:
            self.policy = AnswerPolicy(**policy)  # type: ignore[arg-type]
        store = None
        if self.folder is not None:
            store = AnswerStore(self.folder, max_size=1 << 20, max_pending=1 << 20)
        self.cache = AnswerCache(self.policy, store, self.realm, lambda: self.now)

    async def restart(self, **policy: float | bool) -> None:
        await self.cache.aclose()
        self.start(**policy)

    async def get(
        self,
        upstream: Upstream,
        question: Question = FILE,
        renew: Callable[[bytes], Awaitable[float | None]] | None = None,
    ) -> bytes:
        return (await self.cache.get(question, upstream.ask, renew)).data


def read_files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class TestBelief:
    async def test_a_yes_is_believed_for_its_time(self) -> None:
        bench, upstream = Bench(ttl=30), Upstream(b"1", b"2")
        assert await bench.get(upstream) == b"1"
        bench.now += 29.9
        assert await bench.get(upstream) == b"1"
        bench.now += 0.2
        assert await bench.get(upstream) == b"2"
        assert upstream.patience == [True, True]

    async def test_a_no_is_believed_for_a_shorter_time(self) -> None:
        bench, upstream = Bench(ttl=30, negative_ttl=5), Upstream(DENIED, b"yes")
        for _ in range(3):
            with pytest.raises(UpstreamDenied) as caught:
                await bench.get(upstream)
            assert (caught.value.status, str(caught.value)) == (403, "no")
            assert caught.value.headers == DENIED.headers
        assert upstream.count == 1
        bench.now += 5.1
        assert await bench.get(upstream) == b"yes"

    async def test_a_word_that_there_is_nothing_too(self) -> None:
        bench = Bench(ttl=30, negative_ttl=5)
        upstream = Upstream(Answer(b"none", Verdict.ABSENT), b"there")
        assert [await bench.get(upstream) for _ in range(2)] == [b"none", b"none"]
        bench.now += 5.1
        assert await bench.get(upstream) == b"there"

    async def test_nothing_is_believed_without_time(self) -> None:
        bench, upstream = Bench(ttl=0), Upstream(b"1", b"2", DENIED, b"3")
        assert [await bench.get(upstream) for _ in range(2)] == [b"1", b"2"]
        with pytest.raises(UpstreamDenied):
            await bench.get(upstream)
        assert await bench.get(upstream) == b"3"

    async def test_trouble_is_not_remembered(self) -> None:
        bench, upstream = Bench(), Upstream(UpstreamError("down"), b"up")
        with pytest.raises(UpstreamError):
            await bench.get(upstream)
        assert await bench.get(upstream) == b"up"

    async def test_an_answer_from_the_future_is_not_believed(self) -> None:
        bench, upstream = Bench(ttl=30), Upstream(b"1", b"2")
        await bench.get(upstream)
        bench.now -= 3600
        assert await bench.get(upstream) == b"2"

    async def test_it_is_for_the_token_that_it_was_given_to(self) -> None:
        bench, upstream = Bench(ttl=30), Upstream(b"mine")
        await bench.get(upstream)
        for scope in (OTHERS, ANONYMOUS):
            with pytest.raises(UpstreamDenied):
                await bench.get(Upstream(DENIED), FILE._replace(scope=scope))
        assert await bench.get(Upstream(b"not asked")) == b"mine"

    async def test_a_refusal_ends_belief_in_all_of_the_repository(self) -> None:
        bench = Bench(ttl=30)
        elsewhere = FILE._replace(repo="model/o/other")
        for question in (FILE, SECOND, elsewhere, FILE._replace(scope=OTHERS)):
            await bench.get(Upstream(b"old"), question)
        bench.now += 1
        with pytest.raises(UpstreamDenied):
            await bench.get(Upstream(DENIED), FILE._replace(name="main\0c"))
        bench.now += 1
        assert await bench.get(Upstream(b"new"), SECOND) == b"new"
        assert await bench.get(Upstream(b"new"), elsewhere) == b"old"
        assert await bench.get(Upstream(b"new"), FILE._replace(scope=OTHERS)) == b"old"
        # Answers given since are used again.
        assert await bench.get(Upstream(b"newer"), SECOND) == b"new"

    async def test_what_passes_is_not_kept(self) -> None:
        bench, upstream = Bench(), Upstream(Answer(b"1", Verdict.PASSING), b"2")
        assert [await bench.get(upstream) for _ in range(2)] == [b"1", b"2"]

    async def test_equal_questions_are_one(self) -> None:
        bench, upstream = Bench(), Upstream(b"1", b"2")
        found = await asyncio.gather(*(bench.get(upstream) for _ in range(100)))
        assert found == [b"1"] * 100
        assert upstream.count == 1


class TestWhatNeverChanges:
    async def test_the_permission_is_asked_for_alone(self) -> None:
        bench, upstream = Bench(ttl=30), Upstream(b"1")
        await bench.get(upstream)
        bench.now += 31
        answered_at = bench.now - 10

        async def renew(data: bytes) -> float | None:
            assert data == b"1"
            return answered_at

        assert await bench.get(upstream, renew=renew) == b"1"
        bench.now += 19  # its belief goes no further than the permission's
        assert await bench.get(upstream) == b"1"
        assert upstream.count == 1
        bench.now += 2
        await bench.get(upstream)
        assert upstream.count == 2

    async def test_without_it_all_is_asked_again(self) -> None:
        bench, upstream = Bench(ttl=30), Upstream(b"1", DENIED)
        await bench.get(upstream)
        bench.now += 31

        async def renew(data: bytes) -> float | None:
            return None

        with pytest.raises(UpstreamDenied):
            await bench.get(upstream, renew=renew)


class TestPatience:
    @pytest.mark.parametrize(
        ("busy", "pause"),
        [
            (UpstreamBusy("slow", status=429, retry_after=20.0), 20.0),
            (UpstreamBusy("slow", status=429, retry_after=9999.0), MAX_PAUSE),
            (UpstreamBusy("slow", status=429, headers=[("RateLimit", '"api";r=0;t=33')]), 33.0),
            (UpstreamBusy("slow", status=429), 5.0),
        ],
        ids=["Retry-After", "capped", "RateLimit", "neither"],
    )
    async def test_after_a_429_nobody_asks_in_this_name(
        self, busy: UpstreamBusy, pause: float
    ) -> None:
        bench, upstream = Bench(negative_ttl=5), Upstream(busy, b"again")
        with pytest.raises(UpstreamBusy):
            await bench.get(upstream)
        bench.now += pause - 1
        with pytest.raises(UpstreamBusy) as caught:
            await bench.get(upstream, SECOND)
        assert (caught.value.status, caught.value.headers) == (429, busy.headers)
        assert caught.value.retry_after == pytest.approx(1.0)
        assert await bench.get(Upstream(b"theirs"), FILE._replace(scope=OTHERS)) == b"theirs"
        bench.now += 1.1
        assert await bench.get(upstream, SECOND) == b"again"

    async def test_what_is_known_is_given_all_the_same(self) -> None:
        bench = Bench(ttl=30)
        await bench.get(Upstream(b"known"))
        with pytest.raises(UpstreamBusy):
            await bench.get(Upstream(UpstreamBusy("slow", status=429, retry_after=20.0)), SECOND)
        assert await bench.get(Upstream(b"not asked")) == b"known"

    async def test_a_503_says_nothing_of_later(self) -> None:
        bench, upstream = Bench(), Upstream(UpstreamBusy("slow", retry_after=20.0), b"again")
        with pytest.raises(UpstreamBusy):
            await bench.get(upstream)
        assert await bench.get(upstream) == b"again"


class TestStale:
    @pytest.mark.parametrize(
        "trouble", [UpstreamError("reset"), UpstreamTimeout("late"), UpstreamBusy("503")]
    )
    async def test_an_old_answer_in_time_of_trouble(self, trouble: UpstreamError) -> None:
        bench, upstream = Bench(ttl=30, stale_for=100), Upstream(b"old", trouble)
        await bench.get(upstream)
        bench.now += 99
        before = METADATA_STALE.total
        answer = await bench.cache.get(FILE, upstream.ask)
        assert (answer.data, answer.stale_age) == (b"old", 99)
        assert METADATA_STALE.total == before + 1
        assert upstream.patience == [True, False]
        # For a while nobody has to find out again.
        assert await bench.get(upstream) == b"old"
        assert upstream.count == 2
        bench.now += DOWN_TIME + 1
        with pytest.raises(UpstreamError):  # older than allowed
            await bench.get(upstream)

    async def test_not_unless_the_operator_allows(self) -> None:
        bench, upstream = Bench(ttl=30), Upstream(b"old", UpstreamError("down"))
        await bench.get(upstream)
        bench.now += 31
        with pytest.raises(UpstreamError):
            await bench.get(upstream)

    @pytest.mark.parametrize("refusal", [DENIED, UpstreamMissing("gone"), UpstreamRefused("400")])
    async def test_a_refusal_is_no_trouble(self, refusal: UpstreamError) -> None:
        bench, upstream = Bench(ttl=30, stale_for=100), Upstream(b"old", refusal)
        await bench.get(upstream)
        bench.now += 31
        with pytest.raises(type(refusal)):
            await bench.get(upstream)

    async def test_after_a_refusal_nothing_old_is_left(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ttl=1, stale_for=100)
        down = Upstream(UpstreamError("down"))
        for question in (FILE, SECOND):
            await bench.get(Upstream(b"old"), question)
        bench.now += 2
        with pytest.raises(UpstreamDenied):
            await bench.get(Upstream(DENIED))
        bench.now += 10
        for _ in range(2):
            for question in (FILE, SECOND):
                with pytest.raises(UpstreamError, match="down"):
                    await bench.get(down, question)
            await bench.restart()
        await bench.restart(is_offline=True)
        for question in (FILE, SECOND):
            with pytest.raises(UpstreamOffline):
                await bench.get(down, question)
        await bench.cache.aclose()

    async def test_what_hangs_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("xetserve.upstream.answers.cache.STALE_PATIENCE", 0.01)
        bench = Bench(ttl=30, stale_for=100)
        await bench.get(Upstream(b"old"))
        bench.now += 31

        async def hang(patient: bool) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError

        assert (await bench.cache.get(FILE, hang)).data == b"old"

    async def test_what_never_changes_may_have_any_age(self) -> None:
        bench, down = Bench(ttl=30, stale_for=100), Upstream(UpstreamError("down"))
        for question in (LASTING, FILE):
            await bench.get(Upstream(b"old"), question)
        for _ in range(20):  # a permission that goes on
            bench.now += 3000
            await bench.get(Upstream(b"other"), SECOND)
        assert await bench.get(down, LASTING) == b"old"
        with pytest.raises(UpstreamError, match="down"):
            await bench.get(down, FILE._replace(kind="api", name="GET\0/api/models/o/n"))
        with pytest.raises(UpstreamError):
            await bench.get(down, FILE)

    async def test_nothing_without_a_permission_that_is_young_enough(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ttl=30, stale_for=500, stale_permission=100)
        down = Upstream(UpstreamError("down"))
        await bench.get(Upstream(b"old"), LASTING)
        await bench.get(Upstream(b"old"), FILE)
        bench.now += 99
        # A permission for another repository, or of another token, counts for nothing here.
        await bench.get(Upstream(b"other"), SECOND._replace(repo="model/o/other"))
        await bench.get(Upstream(b"other"), SECOND._replace(scope=OTHERS))
        assert await bench.get(down, LASTING) == await bench.get(down, FILE) == b"old"
        bench.now += 2
        for _ in range(2):
            for question in (LASTING, FILE):
                with pytest.raises(UpstreamError):
                    await bench.get(down, question)
            await bench.restart()
        await bench.cache.aclose()

    @pytest.mark.parametrize("kind", PROOFS)
    async def test_a_permission_survives_a_restart(self, tmp_path: Path, kind: str) -> None:
        bench, down = Bench(tmp_path, ttl=30, stale_for=10), Upstream(UpstreamError("down"))
        await bench.get(Upstream(b"old"), LASTING)
        bench.now += 3000
        await bench.get(Upstream(b"yes"), SECOND._replace(kind=kind))
        await bench.restart()
        bench.now += 3500
        assert await bench.get(down, LASTING) == b"old"
        bench.now += 101
        with pytest.raises(UpstreamError):
            await bench.get(down, LASTING)
        await bench.cache.aclose()

    async def test_an_answer_about_a_repository_is_no_permission(self) -> None:
        # The Hub describes gated repositories to everybody.
        bench, down = Bench(ttl=30, stale_for=10), Upstream(UpstreamError("down"))
        await bench.get(Upstream(b"old"), LASTING)
        bench.now += 3601
        await bench.get(Upstream(b"{}"), FILE._replace(kind="api", name="GET\0/api/models/o/n"))
        with pytest.raises(UpstreamError):
            await bench.get(down, LASTING)

    async def test_a_refusal_ends_a_permission(self) -> None:
        bench, down = Bench(ttl=1, stale_for=10), Upstream(UpstreamError("down"))
        await bench.get(Upstream(b"old"), LASTING)
        bench.now += 20
        with pytest.raises(UpstreamDenied):
            await bench.get(Upstream(DENIED), SECOND)
        with pytest.raises(UpstreamError):
            await bench.get(down, LASTING)

    async def test_nobody_waits_for_a_429_to_pass(self) -> None:
        bench = Bench(ttl=30, stale_for=100)
        await bench.get(Upstream(b"old"))
        bench.now += 31
        busy = Upstream(UpstreamBusy("slow down", status=429, retry_after=60.0))
        assert [await bench.get(busy) for _ in range(5)] == [b"old"] * 5
        assert busy.patience == [False]

    async def test_nothing_of_another_token(self) -> None:
        bench = Bench(ttl=30, stale_for=100)
        await bench.get(Upstream(b"mine"))
        bench.now += 31
        for scope in (OTHERS, ANONYMOUS):
            with pytest.raises(UpstreamError, match="down"):
                await bench.get(Upstream(UpstreamError("down")), FILE._replace(scope=scope))

    async def test_what_is_public_may_stand_in(self) -> None:
        bench = Bench(ttl=30, stale_for=100)
        await bench.get(Upstream(b"public"), FILE._replace(scope=ANONYMOUS))
        assert await bench.get(Upstream(UpstreamError("down"))) == b"public"
        bench.now += DOWN_TIME + 1
        # Not where the last word to this token was no.
        with pytest.raises(UpstreamDenied):
            await bench.get(Upstream(DENIED), FILE._replace(scope=OTHERS))
        bench.now += 6
        with pytest.raises(UpstreamError, match="down"):
            await bench.get(Upstream(UpstreamError("down")), FILE._replace(scope=OTHERS))


class TestStored:
    async def test_it_outlives_the_process(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ttl=30)
        await bench.get(Upstream(b"1"))
        await bench.restart(ttl=30)
        bench.now += 29
        assert await bench.get(Upstream(b"not asked")) == b"1"
        bench.now += 2
        assert await bench.get(Upstream(b"2")) == b"2"
        await bench.cache.aclose()

    async def test_offline_nobody_is_asked_whatever_the_age(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        missing = Answer(b"none", Verdict.ABSENT)
        await bench.get(Upstream(b"1"))
        await bench.get(Upstream(missing), SECOND)
        await bench.restart(is_offline=True)
        bench.now += 1e6
        upstream = Upstream(b"not asked")
        answer = await bench.cache.get(FILE, upstream.ask)
        assert (answer.data, answer.stale_age) == (b"1", 1_000_000)
        assert (await bench.cache.get(SECOND, upstream.ask)).verdict is Verdict.ABSENT
        for question in (FILE._replace(scope=OTHERS), FILE._replace(name="x")):
            with pytest.raises(UpstreamOffline):
                await bench.get(upstream, question)
        assert upstream.count == 0
        await bench.cache.aclose()

    async def test_answers_of_another_hub_are_not_this_ones(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        await bench.get(Upstream(b"1"))
        await bench.cache.aclose()
        other = Bench(tmp_path, realm="http://other", is_offline=True)
        with pytest.raises(UpstreamOffline):
            await other.get(Upstream(b"not asked"))
        await other.cache.aclose()

    async def test_another_process_has_asked(self, tmp_path: Path) -> None:
        one, two = Bench(tmp_path, ttl=30), Bench(tmp_path, ttl=30)
        assert await one.get(Upstream(b"old")) == b"old"
        assert one.cache.store is not None
        await one.cache.store.settle()  # an answer and its mark are two writes
        one.now = two.now = one.now + 31
        assert await two.get(Upstream(b"new")) == b"new"
        assert two.cache.store is not None
        await two.cache.store.settle()
        assert await one.get(Upstream(b"not asked")) == b"new"
        for bench in (one, two):
            await bench.cache.aclose()

    async def test_a_token_is_nowhere_to_be_found(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        await bench.get(Upstream(b"1"))
        await bench.cache.aclose()
        found = read_files(tmp_path)
        assert len(found) == 2  # the answer, and a mark that there is one about this repository
        for name, data in found.items():
            assert name.split("/")[0] == MINE
            assert b"hf_mine" not in data
        assert "hf_" not in MINE


class TestWhoNeverHadAYes:
    """What is refused, or said to tokens that are made up, leaves nothing behind, and pushes
    nothing out.
    """

    @pytest.mark.parametrize(
        "refusal",
        [
            DENIED,
            UpstreamMissing("gone"),
            Answer(b"no", Verdict.ABSENT),
            Answer(b"401", Verdict.REFUSED),
        ],
    )
    async def test_made_up_tokens(self, tmp_path: Path, refusal: Exception | Answer) -> None:
        bench = Bench(tmp_path, stale_for=100)
        await bench.get(Upstream(b"mine"))
        assert bench.cache.store is not None
        await bench.cache.store.settle()
        before = read_files(tmp_path)
        for number in range(300):
            question = FILE._replace(scope=get_scope(f"hf_{number}"), name=str(number))
            with suppress(UpstreamError):
                await bench.get(Upstream(refusal), question)
        await bench.restart(is_offline=True)
        assert read_files(tmp_path) == before
        assert os.listdir(tmp_path) == [MINE]
        assert await bench.get(Upstream(b"not asked")) == b"mine"
        await bench.cache.aclose()

    async def test_a_token_that_has_something_elsewhere(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path)
        await bench.get(Upstream(b"mine"))
        assert bench.cache.store is not None
        await bench.cache.store.settle()
        before = read_files(tmp_path)
        for number in range(300):
            with pytest.raises(UpstreamDenied):
                await bench.get(Upstream(DENIED), FILE._replace(repo=f"model/o/{number}"))
            bench.cache.refuse(MINE, f"model/o/{number}")
        await bench.cache.aclose()
        assert read_files(tmp_path) == before

    async def test_what_was_refused_is_not_stored_any_more(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ttl=30)
        await bench.get(Upstream(b"mine"))
        bench.now += 10
        bench.cache.refuse(MINE, FILE.repo)
        await bench.restart(is_offline=True)
        for _ in range(2):
            with pytest.raises(UpstreamOffline):
                await bench.get(Upstream(b"not asked"))
        await bench.cache.aclose()
        assert len(read_files(tmp_path)) == 1  # the refusal

    async def test_answers_without_end_push_out_themselves(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ttl=30)
        for number in range(20):
            await bench.get(Upstream(b"yes"), FILE._replace(name=str(number)))
        endless = Upstream(Answer(b"[]", is_minor=True))
        assert bench.cache.store is not None
        for number in range(1000):
            await bench.get(endless, FILE._replace(kind="api", name=f"GET\0/api?x={number}\0\0"))
            await bench.cache.store.settle()
        await bench.restart(is_offline=True)
        for number in range(20):
            assert await bench.get(endless, FILE._replace(name=str(number))) == b"yes"
        await bench.cache.aclose()

    async def test_an_answer_without_a_mark_gets_one(self, tmp_path: Path) -> None:
        """As older versions have stored them."""
        bench = Bench(tmp_path, ttl=30)
        await bench.get(Upstream(b"old"))
        await bench.cache.aclose()
        (mark,) = [name for name, data in read_files(tmp_path).items() if b"refusal" in data]
        os.unlink(tmp_path / mark)
        bench.start()
        assert await bench.get(Upstream(b"not asked")) == b"old"
        bench.now += 10
        bench.cache.refuse(MINE, FILE.repo)
        await bench.restart(is_offline=True)
        with pytest.raises(UpstreamOffline):
            await bench.get(Upstream(b"not asked"))
        await bench.cache.aclose()

    async def test_a_refusal_outlives_what_it_makes_worthless(self, tmp_path: Path) -> None:
        bench = Bench(tmp_path, ttl=30)
        for number in range(20):
            await bench.get(Upstream(b"yes"), FILE._replace(name=str(number)))
        assert bench.cache.store is not None
        await bench.cache.store.settle()
        found = read_files(tmp_path)
        used = {name: os.stat(tmp_path / name).st_mtime for name in found}
        (mark,) = [name for name, data in found.items() if b"refusal" in data]
        assert used[mark] > max(time for name, time in used.items() if name != mark) + 3600
        bench.cache.refuse(MINE, FILE.repo)
        await bench.cache.aclose()
        assert os.stat(tmp_path / mark).st_mtime >= used[mark]


class TestImported:
    """Answers that were brought from elsewhere."""

    async def bring(
        self, folder: Path, *questions: Question, answered_at: float = 999_990.0
    ) -> None:
        """Let somebody else's folder become what was brought to this one."""
        other = Bench(folder.parent / "other")
        for question in questions:
            other.cache.put(question, Answer(b"brought", answered_at=answered_at))
        await other.cache.aclose()
        os.mkdir(folder)
        os.rename(folder.parent / "other", folder / IMPORTED)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "meta"

    async def test_offline_they_are_given(self, folder: Path) -> None:
        await self.bring(folder, FILE)
        bench = Bench(folder, is_offline=True)
        for _ in range(2):
            assert await bench.get(Upstream(b"not asked")) == b"brought"
        with pytest.raises(UpstreamOffline):
            await bench.get(Upstream(b"not asked"), FILE._replace(scope=OTHERS))
        await bench.cache.aclose()

    async def test_online_the_hub_is_asked_every_time(self, folder: Path) -> None:
        await self.bring(folder, FILE, answered_at=999_999.0)
        bench = Bench(folder, ttl=30)

        async def renew(data: bytes) -> float | None:
            raise AssertionError

        with pytest.raises(UpstreamDenied):
            await bench.get(Upstream(DENIED), renew=renew)
        with pytest.raises(UpstreamError, match="down"):
            await bench.get(Upstream(UpstreamError("down")), SECOND)
        bench.now += 6
        assert await bench.get(Upstream(b"said now"), renew=renew) == b"said now"
        await bench.cache.aclose()

    async def test_in_time_of_trouble_they_stand_in_but_permit_nothing(self, folder: Path) -> None:
        grants = [FILE._replace(kind=kind, name="") for kind in PERMISSIONS]
        await self.bring(folder, FILE, *grants)
        bench = Bench(folder, ttl=30, stale_for=100)
        down = Upstream(UpstreamError("down"))
        for _ in range(2):
            answer = await bench.cache.get(FILE, down.ask)
            assert (answer.data, answer.stale_age) == (b"brought", 10)
        for grant in grants:
            with pytest.raises(UpstreamError, match="down"):
                await bench.get(down, grant)
        bench.now += DOWN_TIME + 1
        assert await bench.get(Upstream(b"up")) == b"up"
        await bench.cache.aclose()

    async def test_what_was_said_here_counts_more(self, folder: Path) -> None:
        await self.bring(folder, FILE, SECOND, answered_at=999_999.0)
        bench = Bench(folder, ttl=30)
        await bench.get(Upstream(Answer(b"own", answered_at=999_000.0)))
        await bench.restart(is_offline=True)
        assert await bench.get(Upstream(b"not asked")) == b"own"
        assert await bench.get(Upstream(b"not asked"), SECOND) == b"brought"
        await bench.cache.aclose()

    async def test_a_refusal_of_ours_makes_them_worthless(self, folder: Path) -> None:
        await self.bring(folder, FILE, SECOND)
        bench = Bench(folder, ttl=30)
        with pytest.raises(UpstreamDenied):
            await bench.get(Upstream(DENIED))
        await bench.restart(is_offline=True)
        for question in (FILE, SECOND):
            with pytest.raises(UpstreamOffline):
                await bench.get(Upstream(b"not asked"), question)
        await bench.cache.aclose()


class TestMemory:
    async def test_it_is_bounded(self) -> None:
        bench = Bench(max_size=10_000)
        for number in range(50):
            await bench.get(Upstream(bytes(600)), FILE._replace(name=str(number)))
            assert bench.cache.size <= 10_000
        assert bench.cache.size > 8_000
        upstream = Upstream(b"again")
        assert await bench.get(upstream, FILE._replace(name="49")) == bytes(600)
        assert await bench.get(upstream, FILE._replace(name="0")) == b"again"

    async def test_what_is_too_large_is_not_kept(self) -> None:
        bench, upstream = Bench(max_size=10_000), Upstream(bytes(6000))
        for _ in range(2):
            await bench.get(upstream)
        assert (upstream.count, bench.cache.size) == (2, 0)

    async def test_what_is_used_stays(self) -> None:
        bench = Bench(max_size=10_000)
        await bench.get(Upstream(b"used"))
        for number in range(100):
            await bench.get(Upstream(bytes(600)), FILE._replace(name=str(number)))
            assert await bench.get(Upstream(b"not asked")) == b"used"

    async def test_questions_count_as_their_answers_do(self) -> None:
        bench = Bench(max_size=100_000)
        for number in range(200):
            await bench.get(Upstream(b""), FILE._replace(name=f"{number}{'x' * 3000}"))
            assert bench.cache.size <= 100_000
        upstream = Upstream(b"again")
        assert await bench.get(upstream, FILE._replace(name=f"0{'x' * 3000}")) == b"again"

    async def test_refusals_count_with_their_words(self) -> None:
        bench = Bench(max_size=100_000)
        for number in range(200):
            error = UpstreamDenied("no" * 1000, status=403, headers=[("X-Error-Message", "m" * 99)])
            with pytest.raises(UpstreamDenied):
                await bench.get(Upstream(error), FILE._replace(repo=f"model/o/{number}"))
            assert 2000 * (min(number, 20) + 1) < bench.cache.size <= 100_000

    async def test_an_answer_to_a_very_long_question_is_not_kept(self, tmp_path: Path) -> None:
        bench, upstream = Bench(tmp_path), Upstream(b"1")
        for _ in range(2):
            await bench.get(upstream, FILE._replace(name="x" * MAX_NAME_SIZE))
        assert (upstream.count, bench.cache.size) == (2, 0)
        await bench.cache.aclose()
        assert read_files(tmp_path) == {}

    async def test_a_kept_refusal_holds_no_traceback(self) -> None:
        bench = Bench()

        async def ask(patient: bool) -> Answer:
            try:
                raise KeyError(bytearray(100))
            except KeyError as exc:
                raise UpstreamMissing("gone", code="RepoNotFound") from exc

        with pytest.raises(UpstreamMissing):
            await bench.cache.get(FILE, ask)
        kept = bench.cache._memory._kept.peek(FILE)
        assert kept is not None
        assert isinstance(kept.answer, UpstreamMissing)
        assert (str(kept.answer), kept.answer.code) == ("gone", "RepoNotFound")
        for _ in range(2):
            with pytest.raises(UpstreamMissing, match="gone"):
                await bench.cache.get(FILE, ask)
        assert kept.answer.__traceback__ is None
        assert kept.answer.__cause__ is kept.answer.__context__ is None

    async def test_a_refusal_looks_at_its_own_repository_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("xetserve.upstream.answers.memory.MAX_REFUSALS", 10)
        bench = Bench(ttl=30)
        for number in range(200):
            await bench.get(Upstream(b"yes"), FILE._replace(repo=f"model/o/{number}"))
        looked_at: list[Question] = []
        peek = bench.cache._memory._kept.peek

        def look_at(question: Question) -> object:
            looked_at.append(question)
            return peek(question)

        monkeypatch.setattr(bench.cache._memory._kept, "peek", look_at)
        for number in range(100, 120):
            bench.cache.refuse(MINE, f"model/o/{number}")
        assert [one.repo for one in looked_at] == [f"model/o/{n}" for n in range(100, 120)]
        # Those that fell out of the table of refusals took nothing with them that could come back.
        for number in range(100, 120):
            upstream = Upstream(b"asked")
            assert await bench.get(upstream, FILE._replace(repo=f"model/o/{number}")) == b"asked"


async def test_who_leaves_does_not_take_the_question_along() -> None:
    bench = Bench()
    gate = asyncio.Event()
    asked = []

    async def ask(patient: bool) -> Answer:
        asked.append(patient)
        await gate.wait()
        return Answer(b"1")

    tasks = [asyncio.ensure_future(bench.cache.get(FILE, ask)) for _ in range(3)]
    await until(lambda: len(asked) == 1)
    tasks[0].cancel()
    gate.set()
    assert [answer.data for answer in await asyncio.gather(*tasks[1:])] == [b"1", b"1"]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("file", f"{'a' * 40}\0x", True),
        ("file", f"main\0{'a' * 40}", False),
        ("file", f"{'a' * 39}\0x", False),
        ("plan", "f" * 64, True),
        ("grant", "", False),
        ("api", f"GET\0/api/models/o/n/revision/{'a' * 40}?blobs=1\0\0", True),
        ("api", f"GET\0/api/models/o/n/tree/{'a' * 40}/folder\0\0", True),
        ("api", f"POST\0/api/models/o/n/paths-info/{'a' * 40}\0\0", True),
        ("api", "GET\0/api/models/o/n/tree/main\0\0", False),
        ("api", f"GET\0/api/models/tree/{'a' * 40}\0\0", False),
        ("api", f"GET\0/api/models/o/n/commits/{'a' * 40}\0\0", False),
    ],
)
def test_which_answers_never_change(kind: str, name: str, expected: bool) -> None:
    assert Question(MINE, kind, "model/o/n", name).is_lasting is expected
