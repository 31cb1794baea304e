"""Planning ahead: windows asked for in advance fit together to exactly the file."""

import random

import pytest

from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.pipeline.test_reader import (
    ALL_SCHEMES,
    assert_released,
    fragmented_file,
    make_chunks,
    make_reader,
    read_all,
)
from xetserve.errors import IntegrityError
from xetserve.pipeline.budget import ByteBudget
from xetserve.pipeline.reader import FileReader
from xetserve.xet.reconstruction import ByteRange, ChunkRange

MIB = 1024 * 1024


def long_file() -> FakeFile:
    a, b = FakeXorb.make(make_chunks(300), ALL_SCHEMES), FakeXorb.make(make_chunks(90, 2))
    runs = [(a, 0, 300), (b, 0, 90), (a, 17, 170), (b, 40, 41), (a, 0, 300)]
    return FakeFile([(xorb, ChunkRange(start, end)) for xorb, start, end in runs])


def guessing(reader: FileReader) -> FileReader:
    """Let a reader ask for many windows at a time, as it does when the CAS is far away."""
    reader._pacer.ahead_limit = 8 * MIB
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
    await read_all(make_reader(cas, budget, size=len(file.content)))
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
