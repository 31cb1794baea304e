"""Parts of a file prove each other, and what is wrong is cut, fetched again, or at least
forgotten.
"""

import time
from itertools import pairwise
from typing import Final

import pytest

from tests.fakes import FakeAccess, FakeCas
from tests.pipeline.reading import FILE, assert_released, damaged, make_engine, read_all
from xetserve.errors import IntegrityError
from xetserve.pipeline.engine import Engine
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.reader import FileReader

CONTENT: Final = FILE.content
SIZE: Final = len(CONTENT)


def make_reader(engine: Engine, start: int, end: int | None, size: int | None) -> FileReader:
    return engine.read(FakeAccess(), FILE.file_hash, start=start, end=end, size=size)


async def read(engine: Engine, start: int = 0, end: int | None = None) -> FileReader:
    """Read a part, right or not at all; gives the reader."""
    reader = make_reader(engine, start, end, SIZE)
    assert await read_all(reader) == CONTENT[start : SIZE if end is None else end]
    return reader


async def test_the_part_that_completes_the_file_is_verified() -> None:
    cas, budget = FakeCas(FILE), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    cuts = [0, 1000, SIZE // 3, SIZE // 2, SIZE]
    parts = list(pairwise(cuts))
    for start, end in (parts[2], parts[0], parts[3]):
        assert not (await read(engine, start, end)).is_verified
    assert (await read(engine, *parts[1])).is_verified
    assert (await read(engine, 5, 10)).is_verified
    assert_released(cas, budget)


async def test_after_a_whole_read_every_part_is_verified() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    assert (await read(engine)).is_verified
    assert (await read(engine, SIZE // 2, SIZE // 2 + 1)).is_verified


async def test_the_answer_that_completes_a_wrong_file_is_cut() -> None:
    cas, budget = damaged(), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    await read(engine, SIZE // 2, SIZE)
    into = bytearray()
    with pytest.raises(IntegrityError, match="all parts together"):
        await read_all(make_reader(engine, 0, SIZE // 2, SIZE), into)
    assert len(into) < SIZE // 2
    assert cas.forgotten
    assert not engine.ledgers.get(FILE.file_hash).is_complete(SIZE)
    assert_released(cas, budget)


async def test_a_whole_file_that_is_wrong_is_forgotten() -> None:
    cas = damaged()
    engine = make_engine(cas, ByteBudget(1 << 27))
    with pytest.raises(IntegrityError):
        await read_all(make_reader(engine, 0, None, SIZE))
    [(xorb, chunks)] = cas.forgotten
    assert xorb == FILE.runs[0][0].xorb_hash
    assert (chunks.start, chunks.end) == (0, 60)


@pytest.mark.parametrize("end", [None, 40_000], ids=["whole", "part"])
async def test_a_chunk_that_is_wrong_in_a_known_file_is_fetched_again(end: int | None) -> None:
    cas = damaged(times=2)
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    await read(engine)
    engine.fetches.source = cas
    assert (await read(engine, 0, end)).is_verified
    assert [chunks for _, chunks in cas.forgotten] == [(0, 1)] * 2


async def test_a_chunk_that_stays_wrong_in_a_known_file_is_not_given_out() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    await read(engine)
    engine.fetches.source = damaged()
    into = bytearray()
    with pytest.raises(IntegrityError, match="is not the file's"):
        await read_all(make_reader(engine, 0, 100, SIZE), into)
    assert not into


@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "part"])
async def test_the_last_chunks_are_judged_though_more_was_asked_for(is_whole: bool) -> None:
    """Who asks for parts may ask for more than it wants, and leave when it has that."""
    cas, budget = damaged(), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    chunk = len(FILE.runs[0][0].chunks[0])
    await read(engine, chunk, SIZE)
    with pytest.raises(IntegrityError, match="all parts together"):
        await anext(make_reader(engine, 0, None if is_whole else SIZE - 1, SIZE))
    cas = FakeCas(FILE)
    engine.fetches.source = cas
    await read(engine, chunk, SIZE)
    reader = make_reader(engine, 0, None if is_whole else SIZE - 1, SIZE)
    await anext(reader)
    assert engine.ledgers.get(FILE.file_hash).is_proven
    await reader.aclose()
    assert_released(cas, budget)


async def test_a_part_that_is_cut_before_it_has_begun_is_a_cut_of_the_file() -> None:
    """Whoever asked for it has the others."""
    engine = make_engine(damaged(), ByteBudget(1 << 27))
    last = SIZE - len(FILE.runs[0][0].chunks[-1])
    await read_all(make_reader(engine, 0, last, SIZE))
    into = bytearray()
    with pytest.raises(IntegrityError):
        await read_all(make_reader(engine, last, SIZE, SIZE), into)
    assert not into
    assert engine.ledgers.was_cut(FILE.file_hash, time.monotonic())


async def test_damage_to_a_proven_file_is_no_cut() -> None:
    """All that was given out was held against the list: whoever has it may go on."""
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    await read(engine)
    engine.fetches.source = damaged()
    for end in (None, 100):
        with pytest.raises(IntegrityError, match="is not the file's"):
            await read_all(make_reader(engine, 0, end, SIZE))
    assert not engine.ledgers.was_cut(FILE.file_hash, time.monotonic())


async def test_without_the_size_parts_prove_nothing() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    for start, end in ((0, SIZE // 2), (SIZE // 2, None)):
        reader = make_reader(engine, start, end, None)
        assert await read_all(reader) == CONTENT[start:end]
        assert not reader.is_verified


async def test_a_wrong_size_from_the_hub_is_found_by_the_parts() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    chunk = len(FILE.runs[0][0].chunks[0])
    with pytest.raises(IntegrityError):
        await read_all(make_reader(engine, 0, chunk - 1, chunk))


async def test_a_file_that_was_cut_is_known() -> None:
    engine = make_engine(damaged(), ByteBudget(1 << 27))
    assert not engine.ledgers.was_cut(FILE.file_hash, time.monotonic())
    with pytest.raises(IntegrityError):
        await read_all(make_reader(engine, 0, None, SIZE))
    assert engine.ledgers.was_cut(FILE.file_hash, time.monotonic())
