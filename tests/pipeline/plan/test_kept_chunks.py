"""Fragmented files: no chunk comes twice from upstream, as long as there is room to keep it."""

import random
from functools import cache, cached_property
from itertools import pairwise

import pytest

from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.pipeline.reading import (
    ALL_SCHEMES,
    assert_released,
    make_chunks,
    make_engine,
    make_reader,
    open_reader,
    read_all,
)
from xetserve.errors import IntegrityError, UpstreamError
from xetserve.pipeline.flow import pacing
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.plan import planner
from xetserve.pipeline.plan.kept_chunks import KeptChunks
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction

MIB = 1024 * 1024


class MadeFile(FakeFile):
    """A file whose content and hash are made once."""

    @cached_property
    def content(self) -> bytes:
        return super().content

    @cached_property
    def file_hash(self) -> bytes:
        return super().file_hash


@cache
def scattered_file(seed: int, num_runs: int = 60) -> FakeFile:
    """Runs over two xorbs, back and forth."""
    source = random.Random(seed)
    xorbs = [FakeXorb.make(make_chunks(count, count), ALL_SCHEMES) for count in (160, 90)]
    runs = []
    for _ in range(num_runs):
        xorb = source.choice(xorbs)
        start = source.randrange(len(xorb.chunks) - 1)
        end = min(len(xorb.chunks), start + source.randrange(1, 40))
        runs.append((xorb, ChunkRange(start, end)))
    return MadeFile(runs)


def distinct_size(file: FakeFile) -> int:
    """Packed bytes of the chunks of a file, each counted once."""
    chunks = {
        (xorb.xorb_hash, chunk): len(xorb.records[chunk])
        for xorb, run in file.runs
        for chunk in range(run.start, run.end)
    }
    return sum(chunks.values())


def fetched_size(cas: FakeCas) -> int:
    return sum(info.byte_range.size for info in cas.fetched)


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small files surveyed, too, in several steps."""
    monkeypatch.setattr(planner, "MIN_SURVEYED", 0)
    monkeypatch.setattr(planner, "SURVEY_SIZE", 5 * MIB)
    monkeypatch.setattr(planner, "HORIZON", 12 * MIB)


async def test_little_is_fetched_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # The pace is the machine's. Windows grow with it, and a response that waits a lot guesses where
    # the next ones begin: both have more fetched before much is known.
    monkeypatch.setattr(pacing, "STARVED", 2.0)
    monkeypatch.setattr(pacing, "MAX_WINDOW", MIB)
    monkeypatch.setattr(pacing, "MAX_SHARED_WINDOW", MIB)
    file = scattered_file(1, 120)
    assert len(file.content) > 20 * distinct_size(file)
    cas, budget = FakeCas(file), ByteBudget(1 << 27)
    reader = make_reader(cas, budget, size=len(file.content))
    assert await read_all(reader) == file.content
    assert reader.is_verified
    fetched, distinct = fetched_size(cas), distinct_size(file)
    assert (
        fetched < 1.5 * distinct
    )  # what is fetched before much is known weighs, in so small a file
    assert_released(cas, budget)
    assert budget.promised == 0


async def test_windows_of_kept_chunks_ask_nobody() -> None:
    xorb = FakeXorb.make(make_chunks(400), ALL_SCHEMES)
    whole = (xorb, ChunkRange(0, 400))
    file = MadeFile([(FakeXorb.make(make_chunks(60, 5)), ChunkRange(0, 60)), whole, whole, whole])
    cas, budget = FakeCas(file), ByteBudget(1 << 27)
    size = len(file.content)
    assert await read_all(make_reader(cas, budget, size=size)) == file.content
    first_end = size - 2 * sum(map(len, xorb.chunks))
    windows = [asked for asked in cas.asked if asked.end - asked.start < size // 2]
    assert all(asked.start < first_end + 8 * MIB for asked in windows)
    fetched, distinct = fetched_size(cas), distinct_size(file)
    assert fetched < 1.25 * distinct


@pytest.mark.usefixtures("surveyed")
@pytest.mark.parametrize("limit", [1 << 27, 6 * MIB, 0], ids=["room", "little", "none"])
@pytest.mark.parametrize("trims", [True, False], ids=["trimmed", "untrimmed"])
@pytest.mark.parametrize("guesses", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_kept_the_bytes_are_right(
    seed: int, guesses: bool, trims: bool, limit: int
) -> None:
    file = scattered_file(seed)
    content = file.content
    source = random.Random(seed)
    cuts = sorted(source.randrange(len(content)) for _ in range(3))
    parts: list[tuple[int, int | None]] = [(0, None), (0, len(content)), *pairwise(cuts)]
    for start, end in parts:
        if start == end:
            continue
        cas, budget = FakeCas(file, trims=trims), ByteBudget(limit)
        reader = make_reader(cas, budget, start=start, end=end)
        if guesses:
            reader._pacer.ahead_limit = 8 * MIB
        assert await read_all(reader) == content[start:end]
        assert_released(cas, budget)
        assert budget.promised == 0


@pytest.mark.usefixtures("surveyed")
async def test_damage_is_found_although_chunks_are_kept() -> None:
    file = scattered_file(7)
    cas, budget = FakeCas(file), ByteBudget(1 << 27)
    wrong = bytes(32)
    into = bytearray()
    with pytest.raises(IntegrityError):
        await read_all(make_reader(cas, budget, file_hash=wrong), into)
    assert len(into) < len(file.content)
    assert_released(cas, budget)


@pytest.mark.usefixtures("surveyed")
@pytest.mark.parametrize("start", [0, 1], ids=["whole", "a part"])
async def test_a_chunk_that_was_kept_must_belong_where_it_is_used_again(
    monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    monkeypatch.setattr(pacing, "MAX_WINDOW", MIB)
    monkeypatch.setattr(pacing, "MAX_SHARED_WINDOW", MIB)
    xorb = FakeXorb.make([random.Random(at).randbytes(65_536) for at in range(64)])
    runs = [ChunkRange(0, 64)] + [ChunkRange(at, at + 1) for at in range(64)]
    file = MadeFile([(xorb, run) for run in runs])
    cas, size = FakeCas(file), len(file.content)
    engine = make_engine(cas, ByteBudget(1 << 27))

    async def read(start: int, into: bytearray) -> None:
        reader = open_reader(engine, file, start)
        await read_all(reader, into)
        assert reader.is_verified

    def turn(answer: Reconstruction) -> Reconstruction:
        """Have the single chunks in an answer come in reverse: as many bytes, all of them of the
        file.
        """
        singles = [term for term in answer.terms if term.chunks.end - term.chunks.start == 1]
        others = [term for term in answer.terms if term not in singles]
        return answer._replace(terms=(*others, *reversed(singles)))

    await read(0, bytearray())  # from here on the file is proven
    cas.on_plan = turn
    into = bytearray()
    with pytest.raises(IntegrityError, match="not the file's at byte"):
        await read(start, into)
    assert file.content[start:].startswith(into)
    assert len(into) >= size // 2 - MIB


@pytest.mark.usefixtures("surveyed")
async def test_a_survey_that_fails_costs_only_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "MAX_WINDOW", 2 * MIB)
    file = scattered_file(2)

    class Stubborn(FakeCas):
        async def fetch_reconstruction(self, *args: object) -> Reconstruction:
            asked = args[-1]
            assert isinstance(asked, ByteRange)
            if asked.size > 4 * MIB:
                raise UpstreamError("too much at once")
            return await super().fetch_reconstruction(*args)  # type: ignore[arg-type]

    cas, budget = Stubborn(file), ByteBudget(1 << 27)
    assert await read_all(make_reader(cas, budget)) == file.content
    assert_released(cas, budget)


def test_responses_share_what_may_be_kept() -> None:
    file = scattered_file(3)
    budget = ByteBudget(8 * MIB)
    budget.num_readers = 3
    answer = FakeCas(file)._plan(ByteRange(0, len(file.content)))
    keepers = [KeptChunks(budget) for _ in range(3)]
    for kept in keepers:
        kept.learn(answer, 0, planned=0)
        assert kept.reuse.peak <= budget.share
    assert 0 < budget.promised <= 6 * MIB
    for kept in keepers:
        kept.close()
        kept.learn(answer, 0, planned=0)  # an answer that came late
    assert budget.promised == 0


def test_what_was_not_kept_is_not_made_up() -> None:
    with pytest.raises(IntegrityError, match="was not kept"):
        KeptChunks(ByteBudget(MIB)).get((bytes(32), 4))
