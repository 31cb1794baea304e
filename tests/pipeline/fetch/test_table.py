"""Responses that want the same range at the same time share a fetch."""

import asyncio
from contextlib import aclosing

import pytest

from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.pipeline.reading import (
    ALL_SCHEMES,
    assert_released,
    damage_twice,
    fragmented_file,
    make_chunks,
    make_engine,
    open_reader,
    read_all,
    simple_file,
)
from xetserve.errors import UrlExpired
from xetserve.pipeline.fetch import table as table_module
from xetserve.pipeline.flow import pacing
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.xet.reconstruction import ChunkRange, FetchInfo


def large_file() -> FakeFile:
    xorb = FakeXorb.make(make_chunks(400), ALL_SCHEMES)
    return FakeFile([(xorb, ChunkRange(0, 400))])


@pytest.mark.parametrize("limit", [1 << 27, 0], ids=["budget", "no budget"])
@pytest.mark.parametrize("file", [large_file(), fragmented_file()], ids=["simple", "fragmented"])
async def test_readers_at_the_same_time_fetch_once(
    file: FakeFile, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Windows grow with the pace, which is the machine's; of a fragmented file larger ones cost
    # fewer bytes.
    monkeypatch.setattr(pacing, "MAX_WINDOW", pacing.MIN_WINDOW)
    monkeypatch.setattr(pacing, "MAX_SHARED_WINDOW", pacing.MIN_WINDOW)
    alone = FakeCas(file)
    await read_all(open_reader(make_engine(alone, ByteBudget(limit)), file))
    cas, budget = FakeCas(file), ByteBudget(limit)
    engine = make_engine(cas, budget)
    results = await asyncio.gather(*(read_all(open_reader(engine, file)) for _ in range(16)))
    assert all(result == file.content for result in results)
    fetched, once = (
        sum(info.byte_range.size for info in source.fetched) for source in (cas, alone)
    )
    assert fetched <= 1.05 * once
    assert_released(cas, budget)


class FinishedFetch:
    """A small fetch that nobody uses any more."""

    is_used = is_closed = False
    is_complete = True
    granted = 1
    xorb_hash = bytes(32)

    def __init__(self, number: int) -> None:
        self.chunks = ChunkRange(number, number + 1)

    def close(self) -> None:
        self.is_closed = True


class FinishedLease:
    """The lease for it."""

    def __init__(self, number: int) -> None:
        self.fetch = FinishedFetch(number)

    def close(self) -> None:
        """Nothing is held."""


async def test_few_fetches_are_kept_for_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are: whenever a window is done, all of them are looked at."""
    monkeypatch.setattr(table_module, "MAX_UNUSED", 3)
    table = make_engine(FakeCas(simple_file()), ByteBudget(1 << 27)).fetches
    traffic = FileTraffic()
    traffic.add_reader(0)
    closed = [FinishedLease(number) for number in range(10)]
    for number, lease in enumerate(closed, 1):
        table.close_leases([lease], traffic, number)  # type: ignore[list-item]
        assert len(table._unused) == min(number, 3)
    assert [lease.fetch.is_closed for lease in closed] == [True] * 7 + [False] * 3


async def test_one_that_does_not_read_holds_nobody_up() -> None:
    file = large_file()
    cas, budget = FakeCas(file, piece=50_000), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    async with aclosing(open_reader(engine, file)) as idle:
        await anext(idle)
        assert await read_all(open_reader(engine, file)) == file.content
        # Later, what it holds is still good.
        rest = bytearray()
        async for block in idle:
            rest += b"".join(block)
        assert file.content.endswith(bytes(rest))
    assert_released(cas, budget)


async def test_the_first_may_leave_and_the_others_go_on() -> None:
    file = large_file()
    for num_blocks in range(1, 5):
        cas, budget = FakeCas(file, piece=50_000), ByteBudget(1 << 27)
        engine = make_engine(cas, budget)
        first = open_reader(engine, file)
        await anext(first)
        other = asyncio.ensure_future(read_all(open_reader(engine, file)))
        for _ in range(num_blocks):
            await asyncio.sleep(0)
            await anext(first)
        await first.aclose()
        assert await other == file.content
        assert_released(cas, budget)


async def test_an_expired_url_is_renewed_by_whoever_is_left() -> None:
    file = simple_file()

    def expire(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        if number <= 2:
            raise UrlExpired("403")
        return data, None

    cas, budget = FakeCas(file, on_data=expire), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    results = await asyncio.gather(*(read_all(open_reader(engine, file)) for _ in range(4)))
    assert all(result == file.content for result in results)
    assert_released(cas, budget)


async def test_a_damaged_chunk_is_fetched_again_for_all() -> None:
    file = simple_file()
    cas, budget = FakeCas(file, on_data=damage_twice(file)), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    results = await asyncio.gather(*(read_all(open_reader(engine, file)) for _ in range(4)))
    assert all(result == file.content for result in results)
    assert_released(cas, budget)


async def test_a_range_that_was_partly_used_up_is_not_joined() -> None:
    file = large_file()
    cas, budget = FakeCas(file), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    async with aclosing(open_reader(engine, file)) as ahead:
        for _ in range(4):
            await anext(ahead)
        assert await read_all(open_reader(engine, file)) == file.content
    assert_released(cas, budget)


async def test_those_that_are_kept_are_looked_at_once_for_a_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = make_engine(FakeCas(simple_file()), ByteBudget(1 << 27)).fetches
    looks = 0

    class Traffic(FileTraffic):
        def is_followed(self, position: int) -> bool:
            nonlocal looks
            looks += 1
            return super().is_followed(position)

    traffic = Traffic()
    traffic.add_reader(0)
    closed = [FinishedLease(number) for number in range(200)]
    table.close_leases(closed, traffic, 1)  # type: ignore[arg-type]
    assert looks == 400  # whether to keep each, and then whether it is still wanted
