"""Pulling files from an application that is not always well: what is tried again, and what is
not.
"""

import errno
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tests.commands.pull.screen import Screen
from tests.fakes import FakeCas, FakeFile
from xetserve.commands.pull import puller as puller_module
from xetserve.commands.pull.listing import HandlerClient, RemoteFile
from xetserve.commands.pull.progress import Progress
from xetserve.commands.pull.puller import MAX_TRIES, Puller, Summary
from xetserve.errors import UpstreamError
from xetserve.http.messages import Block, Request, Response, error_response
from xetserve.metrics.catalogue import CACHE_ABANDONED
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.upstream.hub.client import RepoRef

COMMIT = "c" * 40
CONTENT = b"content " * 1000
ETAG = ("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')

Answer = Callable[[Request], Response]


def sound(request: Request) -> Response:
    """The whole file, verified."""
    request.record.is_verified = True
    request.record.upstream_bytes = 10
    return Response(200, [ETAG], blocks_of(CONTENT))


async def blocks_of(content: bytes, error: Exception | None = None) -> AsyncGenerator[Block, None]:
    yield [content[:3000], content[3000:]]
    if error is not None:
        raise error


def broken(request: Request) -> Response:
    return Response(200, [ETAG], blocks_of(CONTENT[:4000], UpstreamError("it broke off")))


def short(request: Request) -> Response:
    return Response(200, [ETAG], blocks_of(CONTENT[:4000]))


def unverified(request: Request) -> Response:
    response = sound(request)
    request.record.is_verified = False
    return response


def plain(request: Request) -> Response:
    return Response(200, [ETAG], CONTENT)


def dropping(request: Request) -> Response:
    CACHE_ABANDONED.add("behind")
    return sound(request)


def without_room(request: Request) -> Response:
    CACHE_ABANDONED.add("no room")
    return sound(request)


def evicted(request: Request) -> Response:
    """A file that is stored, and evicted by the time that the run ends."""
    return sound(request)


LOSSES = (dropping, without_room, evicted)


def refusing(status: int, **headers: str) -> Answer:
    fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return lambda request: error_response(status, "no", fields)


MAX_KEPT = 1 << 30


class Stage:
    """A puller, and answers that come one after the other, the last again and again."""

    def __init__(self, cache: DiskCache, answers: Sequence[Answer], revision: str) -> None:
        self.requests: list[Request] = []
        self.waits: list[float] = []
        self.kept: set[str] = set()
        self.lacking: set[str] = set()
        self.cache = cache
        self._answers = list(answers)
        self.screen = Screen(is_terminal=False)
        self.progress = Progress("files", 1, len(CONTENT), self.screen)
        client = HandlerClient(self._answer, RepoRef("model", "o/n"), revision, None)
        self._puller = Puller(
            client,
            COMMIT,
            cache,
            self._can_keep,
            self._is_kept,
            self._find_lack,
            self.progress,
            num_jobs=2,
        )

    def be_patient(self, seconds: float) -> None:
        self._puller._outage_patience = seconds

    async def _answer(self, request: Request) -> Response:
        self.requests.append(request)
        if request.method == "HEAD":
            return Response(200, [ETAG])
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        path = request.target.rpartition("/")[2]
        (self.lacking.add if answer in LOSSES else self.lacking.discard)(path)
        return answer(request)

    @staticmethod
    def _can_keep(size: int) -> bool:
        return size <= MAX_KEPT

    async def _is_kept(self, digest: str, size: int) -> bool:
        return digest in self.kept and size == len(CONTENT)

    async def _find_lack(self, file: RemoteFile) -> str | None:
        return "a part" if file.path in self.lacking else None

    @property
    def num_reads(self) -> int:
        return sum(request.method == "GET" for request in self.requests)

    async def pull(self, *paths: str, size: int = len(CONTENT)) -> Summary:
        summary = await self._puller.run([RemoteFile(path, size) for path in paths])
        good = summary.num_files * len(CONTENT)
        assert summary.size == good
        return summary


Make = Callable[..., AbstractAsyncContextManager[Stage]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    @asynccontextmanager
    async def stage(*answers: Answer, revision: str = COMMIT) -> AsyncIterator[Stage]:
        cache = DiskCache(FakeCas(FakeFile([])), tmp_path, max_size=1 << 40, min_free=0)
        await cache.start()
        try:
            made = Stage(cache, answers, revision)

            async def wait(seconds: float) -> None:
                made.waits.append(seconds)

            monkeypatch.setattr(puller_module, "sleep", wait)
            yield made
        finally:
            await cache.aclose()

    return stage


async def test_a_sound_file(make: Make) -> None:
    async with make(sound) as stage:
        summary = await stage.pull("a", "b", "c")
        assert (summary.num_files, summary.failed, summary.upstream_size) == (3, {}, 30)
        assert stage.progress.size_done == 3 * len(CONTENT)
        assert {r.target for r in stage.requests} == {f"/o/n/resolve/{COMMIT}/{x}" for x in "abc"}


async def test_a_branch_is_asked_for_by_its_name_first(make: Make) -> None:
    async with make(sound, revision="refs/pr/1") as stage:
        await stage.pull("a b")
        assert [(r.method, r.target) for r in stage.requests] == [
            ("HEAD", "/o/n/resolve/refs%2Fpr%2F1/a%20b"),
            ("GET", f"/o/n/resolve/{COMMIT}/a%20b"),
        ]


@pytest.mark.parametrize("trouble", [broken, short, unverified, refusing(503), refusing(429)])
async def test_trouble_may_pass(make: Make, trouble: Answer) -> None:
    async with make(trouble, trouble, sound) as stage:
        summary = await stage.pull("a")
        assert (summary.num_files, summary.failed) == (1, {})
        assert stage.waits == [1.0, 2.0]
        assert stage.progress.size_done == len(CONTENT)


@pytest.mark.parametrize("trouble", [broken, short, unverified, refusing(502)])
async def test_trouble_may_stay(make: Make, trouble: Answer) -> None:
    async with make(trouble) as stage:
        summary = await stage.pull("a")
        assert (summary.num_files, list(summary.failed)) == (0, ["a"])
        assert stage.num_reads == MAX_TRIES
        assert "a: " in stage.screen.getvalue()


async def test_an_outage_is_waited_for(make: Make) -> None:
    """Not for a number of tries, but for a time."""
    troubles = [*[broken] * 6, *[refusing(502)] * 6, *[refusing(503)] * 6]
    async with make(*troubles, sound) as stage:
        stage.be_patient(60.0)
        summary = await stage.pull("a")
        assert (summary.num_files, summary.failed) == (1, {})
        assert stage.num_reads == 19
    async with make(unverified) as stage:  # what is damaged is not
        stage.be_patient(60.0)
        assert list((await stage.pull("a")).failed) == ["a"]
        assert stage.num_reads == MAX_TRIES


@pytest.mark.parametrize("status", [401, 403, 404, 416])
async def test_a_fact_is_not_asked_for_again(make: Make, status: int) -> None:
    async with make(refusing(status)) as stage:
        summary = await stage.pull("a")
        assert (summary.failed, stage.num_reads) == ({"a": f"{status}: no"}, 1)


async def test_who_asks_for_patience_gets_it(make: Make) -> None:
    patience = refusing(429, retry_after="7")
    async with make(patience, refusing(503, retry_after="9999"), sound) as stage:
        assert (await stage.pull("a")).num_files == 1
        assert stage.waits == [7.0, 60.0]


async def test_one_that_fails_does_not_stop_the_others(make: Make) -> None:
    async with make(refusing(404), sound) as stage:
        summary = await stage.pull("a", "b", "c")
        assert (summary.num_files, len(summary.failed)) == (2, 1)


async def test_what_was_dropped_is_read_again(make: Make) -> None:
    async with make(dropping, dropping, sound) as stage:
        assert (await stage.pull("a")).num_files == 1
        assert stage.num_reads == 3


async def test_what_is_always_dropped_fails(make: Make) -> None:
    async with make(dropping) as stage:
        summary = await stage.pull("a")
        assert summary.num_files == 0
        assert "check the free space" in summary.failed["a"]


async def test_what_has_no_room_is_not_read_again(make: Make) -> None:
    async with make(without_room) as stage:
        summary = await stage.pull("a")
        assert (summary.num_files, summary.upstream_size, stage.num_reads) == (0, 10, 1)
        assert "check the free space" in summary.failed["a"]


async def test_nothing_is_read_once_nothing_can_be_kept(make: Make) -> None:
    async with make(without_room, without_room, sound) as stage:
        stage.cache.check = full  # type: ignore[method-assign]
        summary = await stage.pull("a", "b", "c", "d", "e")
        assert (summary.num_files, stage.num_reads) == (0, 1)
        assert "no room at all" in summary.failed["e"]


async def full() -> None:
    raise OSError(errno.ENOSPC, "no room at all")


async def test_only_what_lacks_something_is_read_again(make: Make) -> None:
    async with make(sound, dropping, sound) as stage:
        assert (await stage.pull("a", "b")).num_files == 2
        assert [request.target[-1] for request in stage.requests] == ["a", "b", "b"]


async def test_what_was_evicted_does_not_count(make: Make) -> None:
    async with make(evicted, sound) as stage:
        summary = await stage.pull("a", "b")
        assert (summary.num_files, list(summary.failed)) == (1, ["a"])
        assert "not in the cache any more (a part)" in summary.failed["a"]


async def test_what_was_fetched_in_vain_counts(make: Make) -> None:
    async with make(broken, sound) as stage:
        assert (await stage.pull("a")).upstream_size == 4000 + 10


async def test_a_plain_file_has_to_be_stored(make: Make) -> None:
    async with make(plain) as stage:
        assert "could not store it" in (await stage.pull("a")).failed["a"]
        stage.kept.add(ETAG[1].strip('"'))
        summary = await stage.pull("b")
        assert (summary.num_files, summary.upstream_size) == (1, 2 * len(CONTENT))


async def test_a_plain_file_that_is_too_large_is_not_read(make: Make) -> None:
    async with make(plain) as stage:
        summary = await stage.pull("a", size=MAX_KEPT + 1)
        assert "larger than half of the cache" in summary.failed["a"]
        assert stage.num_reads == 0
        assert stage.requests[0].target == f"/download/o/n/a?type=model&revision={COMMIT}"


async def test_an_empty_one(make: Make) -> None:
    async with make(lambda request: Response(200, [ETAG], b"")) as stage:
        summary = await stage._puller.run([RemoteFile("__init__.py", 0)])
        assert (summary.num_files, summary.failed) == (1, {})
