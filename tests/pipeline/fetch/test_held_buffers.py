"""What one fetch has of the budget: all of it, or a little to stream with, and all of that back."""

import asyncio

import pytest

from xetserve.pipeline.fetch.buffers import ReceiveSlab
from xetserve.pipeline.fetch.held_buffers import STREAM_GRANT, TIGHT_GRANT, HeldBuffers
from xetserve.pipeline.flow.budget import SLAB_SIZE, SMALL_SLAB_SIZE, ByteBudget

SIZE = 16 * SLAB_SIZE


class Site:
    """The buffers of one fetch, and whether somebody waits for its next record."""

    def __init__(self, limit: int, size: int = SIZE) -> None:
        self.budget = ByteBudget(limit)
        self.is_hurried = False
        self.buffers = HeldBuffers(self.budget, size, is_hurried=lambda: self.is_hurried)

    def reserve(self, room: int, *, streams: bool = False, must: bool = False) -> bool:
        return self.buffers.reserve(room, streams=streams, must=must)

    async def fill(self) -> ReceiveSlab:
        """Open a slab and receive all that it takes."""
        slab = await self.buffers.open_slab(0)
        count = min(len(slab.view), self.buffers.num_left)
        self.buffers.note_received(count, len(slab.view) - count)
        slab.num_needed = 1
        self.buffers.close_slab(slab)
        return slab


async def test_with_room_for_all_nothing_waits_and_all_comes_back() -> None:
    site = Site(2 * SIZE)
    assert site.reserve(SIZE)
    assert site.buffers.granted == site.budget.held == SIZE
    slabs = [await site.fill() for _ in range(SIZE // SLAB_SIZE)]
    assert site.buffers.num_left == 0
    assert site.buffers.paused == 0
    for number, slab in enumerate(slabs, 1):
        site.buffers.leave_slab(slab)
        assert site.budget.held == SIZE - number * SLAB_SIZE


@pytest.mark.parametrize("limit", [SIZE // 2, 2 * SIZE], ids=["budget", "room"])
def test_without_room_it_starts_only_to_stream_or_if_it_must(limit: int) -> None:
    room = SIZE - 1 if limit > SIZE else SIZE
    assert not Site(limit).reserve(room)
    for site in (Site(limit), Site(limit)):
        assert site.reserve(room, streams=site.is_hurried, must=not site.is_hurried)
        assert site.budget.held == site.buffers.granted <= STREAM_GRANT
    site = Site(0)
    assert not site.reserve(room, streams=True)
    assert site.reserve(room, must=True)
    assert site.budget.held == TIGHT_GRANT


async def test_who_streams_waits_until_a_slab_is_used_up() -> None:
    site = Site(2 * SIZE)
    assert site.reserve(SIZE - 1, streams=True)
    first, _ = await site.fill(), await site.fill()
    third = asyncio.ensure_future(site.fill())
    await asyncio.sleep(0)
    assert not third.done()
    site.buffers.leave_slab(first)
    await third
    assert site.buffers.paused > 0
    assert site.budget.held == site.buffers.granted == STREAM_GRANT


async def test_who_waits_for_the_next_record_gets_room_for_it() -> None:
    site = Site(0)
    assert site.reserve(SIZE, must=True)
    site.buffers.note_received(0, 0)
    slab = asyncio.ensure_future(site.buffers.open_slab(SMALL_SLAB_SIZE))
    await asyncio.sleep(0)
    assert not slab.done()
    site.is_hurried = True
    site.buffers.hurry()
    assert len((await slab).buffer) == SMALL_SLAB_SIZE
    assert site.budget.held == site.buffers.granted == SMALL_SLAB_SIZE


async def test_a_client_that_turns_fast_or_slow_changes_what_is_held() -> None:
    site = Site(2 * SIZE)
    assert site.reserve(SIZE - 1, streams=True)
    site.buffers.fit(SIZE, is_shared=False)
    assert site.budget.held == SIZE
    site.buffers.fit(SIZE - 1, is_shared=True)  # another may have more
    assert site.budget.held == SIZE
    site.buffers.fit(SIZE - 1, is_shared=False)
    assert site.budget.held == STREAM_GRANT


def test_what_is_decoded_counts_up_to_a_limit() -> None:
    site = Site(2 * SIZE)
    assert site.reserve(SIZE)
    assert site.buffers.try_keep_decoded(100, 150)
    assert not site.buffers.try_keep_decoded(100, 150)
    assert site.budget.held == SIZE + 100
    site.buffers.drop_decoded(100)
    assert site.budget.held == SIZE


async def test_closing_gives_all_back_though_slabs_are_open() -> None:
    site = Site(2 * SIZE)
    assert site.reserve(SIZE)
    slab = await site.buffers.open_slab(0)
    site.buffers.close()
    assert site.budget.held == 0
    site.buffers.close_slab(slab)
    assert site.budget.held == 0


async def test_what_a_socket_may_still_read_is_not_used_again() -> None:
    site = Site(2 * SIZE)
    assert site.reserve(SIZE)
    lent, other = await site.fill(), await site.fill()
    lent.is_lent = True
    site.buffers.leave_slab(lent)
    site.buffers.leave_slab(other)
    assert site.budget.make_slab(SLAB_SIZE) is other.buffer
    assert site.budget.make_slab(SLAB_SIZE) is not lent.buffer
