"""Planning ahead: windows asked for in advance fit together to exactly the file."""

import random
from collections.abc import AsyncIterator

import pytest

from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.pipeline.reading import (
    ALL_SCHEMES,
    assert_released,
    fragmented_file,
    make_chunks,
    make_reader,
    read_all,
)
from xetserve.errors import IntegrityError
from xetserve.pipeline.flow import pacing
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.plan import chunk_reuse
from xetserve.pipeline.plan import planner as planner_module
from xetserve.pipeline.plan import window_plan as plan_module
from xetserve.pipeline.plan.window_plan import WindowPlan
from xetserve.pipeline.reader import FileReader
from xetserve.upstream.cas.source import Access
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction, Term

MIB = 1024 * 1024


class WholeAnswers(FakeCas):
    """A CAS that looks only at where a range starts."""

    def _plan(self, asked: ByteRange) -> Reconstruction:
        return super()._plan(ByteRange(asked.start, len(self.file.content)))


def long_file() -> FakeFile:
    a, b = FakeXorb.make(make_chunks(300), ALL_SCHEMES), FakeXorb.make(make_chunks(90, 2))
    runs = [(a, 0, 300), (b, 0, 90), (a, 17, 170), (b, 40, 41), (a, 0, 300)]
    return FakeFile([(xorb, ChunkRange(start, end)) for xorb, start, end in runs])


def guessing(reader: FileReader) -> FileReader:
    """Let a reader ask for many windows at a time, as it does when the CAS is far away."""
    reader._pacer.ahead_limit = 8 * MIB
    return reader


def near(reader: FileReader) -> FileReader:
    """Let a reader never wait for the CAS, however busy the machine is."""
    reader._pacer.note_starved = lambda seconds: None  # type: ignore[method-assign]
    return reader


@pytest.mark.parametrize("knows_size", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("trims", [True, False], ids=["trimmed", "untrimmed"])
@pytest.mark.parametrize("file", [long_file(), fragmented_file()], ids=["long", "fragmented"])
async def test_windows_asked_in_advance_make_the_file(
    file: FakeFile, trims: bool, knows_size: bool
) -> None:
    cas, budget = FakeCas(file, trims=trims), ByteBudget(1 << 27)
    size = len(file.content) if knows_size else None
    reader = guessing(make_reader(cas, budget, size=size))
    assert await read_all(reader) == file.content
    assert reader.is_verified
    starts = [asked.start for asked in cas.asked]
    assert any(start and start % MIB == 0 for start in starts)  # it did guess
    assert_released(cas, budget)


async def test_any_range_is_right_with_guesses() -> None:
    file = long_file()
    content = file.content
    source = random.Random(4)
    for _ in range(15):
        start = source.randrange(len(content))
        end = source.randrange(start + 1, len(content) + 1)
        cas, budget = FakeCas(file), ByteBudget(1 << 27)
        reader = guessing(make_reader(cas, budget, start=start, end=end, size=len(content)))
        assert await read_all(reader) == content[start:end]
        assert_released(cas, budget)


async def test_a_near_upstream_is_asked_at_chunk_boundaries_only() -> None:
    file = long_file()
    cas, budget = FakeCas(file), ByteBudget(1 << 27)
    await read_all(near(make_reader(cas, budget, size=len(file.content))))
    ends = {0}
    at = 0
    for xorb, chunks in file.runs:
        for chunk in xorb.chunks[chunks.start : chunks.end]:
            at += len(chunk)
            ends.add(at)
    assert {asked.start for asked in cas.asked} <= ends


async def test_a_file_that_is_shorter_than_promised_is_an_integrity_error() -> None:
    file = long_file()
    size = len(file.content)
    for promised in (size + 1, size + 3 * MIB):
        cas, budget = FakeCas(file), ByteBudget(1 << 27)
        reader = guessing(make_reader(cas, budget, size=promised))
        with pytest.raises(IntegrityError):
            await read_all(reader)
        assert_released(cas, budget)


async def test_every_question_is_a_closed_range_within_the_file() -> None:
    file = long_file()
    size = len(file.content)
    cas, budget = FakeCas(file), ByteBudget(1 << 27)
    await read_all(guessing(make_reader(cas, budget, size=size)))
    assert all(ByteRange(0, size).start <= asked.start < asked.end <= size for asked in cas.asked)


def many_terms() -> FakeFile:
    """Return a file in terms of one chunk each."""
    a, b = FakeXorb.make(make_chunks(300), ALL_SCHEMES), FakeXorb.make(make_chunks(300, 2))
    runs = [(xorb, ChunkRange(at, at + 1)) for at in range(300) for xorb in (a, b)]
    return FakeFile(runs)


@pytest.mark.parametrize("knows_size", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("guesses", [True, False], ids=["guessing", "not guessing"])
async def test_an_answer_about_the_rest_of_the_file_serves_all_windows(
    guesses: bool, knows_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "MAX_WINDOW", 2 * MIB)
    file = many_terms()
    cas, budget = WholeAnswers(file), ByteBudget(1 << 27)
    reader = make_reader(cas, budget, size=len(file.content) if knows_size else None)
    windows = [
        plan.file_range
        async for plan in planned(guessing(reader) if guesses else near(reader), file)
    ]
    assert max(window.size for window in windows) < 3 * MIB
    assert len(windows) > 5
    # The first window, what lies far ahead, and what was guessed before the first answer.
    asked = [one for one in cas.asked if one.start < len(file.content)]
    assert len(asked) <= (2 if not guesses else 2 + 8)
    assert_released(cas, budget)


async def planned(reader: FileReader, file: FakeFile) -> AsyncIterator[WindowPlan]:
    """Read a file, and give the windows that were planned for it."""
    plans: list[WindowPlan] = []
    add = reader._add_window

    def note(plan: WindowPlan) -> None:
        plans.append(plan)
        add(plan)

    reader._add_window = note  # type: ignore[method-assign]
    assert await read_all(reader) == file.content
    assert reader.is_verified
    for plan in plans:
        yield plan


@pytest.mark.parametrize("limit", [1 << 27, 0], ids=["budget", "no budget"])
@pytest.mark.parametrize("guesses", [True, False], ids=["guessing", "not guessing"])
@pytest.mark.parametrize("kind", [FakeCas, WholeAnswers])
async def test_windows_of_few_fetch_ranges_make_the_file(
    kind: type[FakeCas], guesses: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MAX_PIECES", 7)
    file = many_terms()
    cas, budget = kind(file), ByteBudget(limit)
    reader = make_reader(cas, budget, size=len(file.content))
    plans = [plan async for plan in planned(guessing(reader) if guesses else near(reader), file)]
    # What is kept from earlier windows costs nothing.
    assert max(len(plan.pieces) for plan in plans if plan.steps) <= 7
    if limit and not guesses:
        assert len(cas.asked) < len(plans) // 2
    assert_released(cas, budget)


async def test_terms_without_bytes_do_not_go_round_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "MAX_PIECES", 7)

    def answer_nothing(answer: Reconstruction) -> Reconstruction:
        first = answer.terms[0]
        return answer._replace(
            terms=(Term(first.xorb_hash, first.chunks, 0),) * 20 + answer.terms,
            offset_into_first_range=0,
        )

    file = many_terms()
    cas, budget = FakeCas(file, on_plan=answer_nothing), ByteBudget(1 << 27)
    with pytest.raises(IntegrityError, match="7 terms without bytes"):
        await read_all(make_reader(cas, budget, size=len(file.content)))
    assert_released(cas, budget)


async def test_what_lies_far_ahead_is_asked_as_long_as_it_says_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_reuse, "MAX_KNOWN_CHUNKS", 100)
    monkeypatch.setattr(planner_module, "MIN_SURVEYED", 0)
    monkeypatch.setattr(pacing, "MAX_WINDOW", 2 * MIB)
    file = many_terms()
    size = len(file.content)

    class Silent(FakeCas):
        """A CAS that says nothing about what lies far ahead."""

        async def fetch_reconstruction(
            self, access: Access, file_hash: bytes, byte_range: ByteRange
        ) -> Reconstruction:
            answer = await super().fetch_reconstruction(access, file_hash, byte_range)
            if byte_range.start and byte_range.end == size and byte_range.size > 4 * MIB:
                return Reconstruction(0, (), {})
            return answer

    for kind in (FakeCas, Silent):
        cas, budget = kind(file), ByteBudget(1 << 27)
        assert await read_all(make_reader(cas, budget, size=size)) == file.content
        far = [one for one in cas.asked if one.start and one.end == size]
        assert len(far) <= (2 if kind is Silent else 600 // 25)
        assert len(far) >= 1
        assert_released(cas, budget)
