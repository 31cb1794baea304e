"""What an engine tells of files: proven, cut, suspect; and what it does for all readers."""

import time

import pytest

from tests.fakes import FakeAccess, FakeCas
from tests.pipeline.reading import (
    CONTENT,
    FILE,
    SIZE,
    assert_released,
    damaged,
    make_engine,
    open_reader,
    read_all,
)
from xetserve.errors import IntegrityError
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.verify.worker_bus import PLACE_SIZE, WorkerBus

HASH = FILE.file_hash


async def test_nothing_is_known_of_a_file_that_was_not_read() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    assert not engine.is_proven(HASH)
    assert not engine.was_cut(HASH)
    assert not engine.is_suspect(HASH)
    assert not engine.was_cut_since(HASH, 0.0)
    assert not engine.was_lost_since(HASH, 0.0)
    assert engine.find_hashes(HASH, 0, SIZE) is None
    await engine.recall(HASH)  # from nowhere
    assert not engine.is_proven(HASH)


async def test_a_file_that_was_read_is_proven() -> None:
    cas, budget = FakeCas(FILE), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    assert await read_all(open_reader(engine, FILE)) == CONTENT
    assert engine.is_proven(HASH)
    hashes = engine.find_hashes(HASH, 0, SIZE)
    assert hashes is not None
    assert len(hashes) == 32 * 60
    assert_released(cas, budget)


async def test_a_file_that_was_damaged_counts_as_cut_and_suspect() -> None:
    before = time.monotonic()
    engine = make_engine(damaged(), ByteBudget(1 << 27))
    with pytest.raises(IntegrityError):
        await read_all(open_reader(engine, FILE))
    assert engine.was_cut(HASH)
    assert engine.is_suspect(HASH)
    assert engine.was_cut_since(HASH, before)
    assert not engine.was_cut_since(HASH, time.monotonic() + 1)
    assert not engine.is_proven(HASH)


async def test_the_fetches_of_open_readers_are_counted() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    assert engine.num_fetches == 0
    reader = engine.read(FakeAccess(), HASH, start=5, size=SIZE)
    assert engine.num_fetches == 0  # it is not started
    await reader.start()
    assert engine.num_fetches > 0
    await reader.aclose()
    assert engine.num_fetches == 0


async def test_what_another_worker_has_proven_is_recalled_and_heard() -> None:
    places = [memoryview(bytearray(PLACE_SIZE)) for _ in range(2)]
    one, other = (
        make_engine(FakeCas(FILE), ByteBudget(1 << 27), worker_bus=WorkerBus(places, number))
        for number in range(2)
    )
    assert await read_all(open_reader(one, FILE)) == CONTENT
    other.hear_workers()
    await other.recall(HASH)
    assert other.is_proven(HASH)
