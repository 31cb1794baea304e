"""Packed ranges: byte for byte what upstream has, and nothing that is not the file's comes to its
end.
"""

import asyncio
import time
from contextlib import aclosing
from itertools import pairwise

import pytest

from tests.fakes import FakeAccess, FakeFile, FakeXorb
from tests.pipeline.packed_reading import Damage, Side
from tests.pipeline.reading import (
    FILE,
    SIZE,
    fragmented_file,
    read_all,
    simple_file,
)
from tests.waiting import until
from xetserve.errors import IntegrityError, UpstreamBusy, UpstreamError, UrlExpired, XetserveError
from xetserve.metrics.catalogue import INTEGRITY_FAILURES
from xetserve.pipeline.packed_reader import PLACES_AT_ONCE
from xetserve.xet.compression import Scheme
from xetserve.xet.grants import GrantedRange
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo
from xetserve.xet.xorb import CHUNK_HEADER_SIZE


@pytest.mark.parametrize("limit", [1 << 27, 1 << 18], ids=["roomy", "tight"])
@pytest.mark.parametrize("make_file", [simple_file, fragmented_file])
async def test_all_ranges_of_a_file(make_file: type[FakeFile], limit: int) -> None:
    side = Side(make_file(), limit)  # type: ignore[call-arg]
    grants = await side.grant()
    verified = [(await side.read(grant)).is_verified for grant in grants]
    assert verified == [False] * (len(grants) - 1) + [True]  # the last one completes the file
    assert (await side.read(grants[0])).is_verified  # it is known by now
    side.assert_released()


async def test_windows_of_a_file_complete_it_in_any_order() -> None:
    side = Side()
    cuts = [0, 1000, SIZE // 3, SIZE // 2, SIZE]
    parts = [grant for a, b in pairwise(cuts) for grant in await side.grant(a, b)]
    for part in (parts[2], parts[0], parts[3], parts[2]):
        assert not (await side.read(part)).is_verified
    assert (await side.read(parts[1])).is_verified
    side.assert_released()


async def test_wrong_data_never_comes_to_its_end() -> None:
    side = Side()
    side.cas.on_data = Damage(3)
    (grant,) = await side.grant()
    before, came = INTEGRITY_FAILURES.total, bytearray()
    with pytest.raises(IntegrityError, match="not file"):
        await read_all(side.open(grant), came)
    assert len(came) < grant.ranges[0].byte_range.size
    assert INTEGRITY_FAILURES.total == before + 1
    assert side.cas.forgotten == [(grant.xorb_hash, grant.ranges[0].chunks)]
    assert side.engine.ledgers.was_cut(FILE.file_hash, time.monotonic())
    side.cas.on_data = None
    assert (await side.read(grant)).is_verified
    side.assert_released()


async def test_the_answer_that_completes_a_wrong_file_is_cut_and_all_of_it_forgotten() -> None:
    side = Side()
    side.cas.on_data = Damage(3)
    first, second = await side.grant(0, SIZE // 2), await side.grant(SIZE // 2)
    await read_all(side.open(first[0]))  # wrong, but nobody can know
    with pytest.raises(IntegrityError, match="not file"):
        await read_all(side.open(second[0]))
    ((xorb_hash, chunks),) = side.cas.forgotten
    assert xorb_hash == first[0].xorb_hash
    assert chunks.contains(first[0].ranges[0].chunks)
    assert chunks.contains(second[0].ranges[0].chunks)
    side.assert_released()


@pytest.mark.parametrize("make_file", [simple_file, fragmented_file])
async def test_what_another_has_proven_is_held_against_its_digest(
    make_file: type[FakeFile],
) -> None:
    there = Side(make_file())  # type: ignore[call-arg]
    for grant in await there.grant():
        await there.read(grant)
    for grant in await there.grant():
        here = Side(there.file)
        reader = here.open(grant)
        assert await reader.can_prove()
        assert await read_all(reader) == here.expected(grant)


async def test_what_is_not_what_another_has_proven_is_cut_and_forgotten() -> None:
    there, here = Side(), Side()
    (grant,) = await there.grant(0, SIZE // 2)
    await read_all(there.open(grant))
    (rest,) = await there.grant(SIZE // 2)
    await there.read(rest)
    (grant,) = await there.grant(0, SIZE // 2)
    here.cas.on_data = Damage(3)
    reader, came = here.open(grant), bytearray()
    assert await reader.can_prove()
    with pytest.raises(IntegrityError, match="not the one that was granted"):
        await read_all(reader, came)
    assert len(came) < grant.ranges[0].byte_range.size
    assert (grant.xorb_hash, grant.ranges[0].chunks) in here.cas.forgotten
    assert here.engine.ledgers.was_cut(FILE.file_hash, time.monotonic())
    here.assert_released()


async def test_nothing_proves_a_part_of_a_file_that_nobody_has_proven() -> None:
    there, here = Side(), Side()
    (grant,) = await there.grant()
    assert not await here.open(grant).can_prove()
    await here.read(grant)
    assert await here.open(grant).can_prove()


async def test_two_different_chunks_in_one_place_cut_the_second() -> None:
    side = Side()
    side.cas.on_data = Damage(3, times=1)
    (first,) = await side.grant(0, SIZE // 2)
    await read_all(side.open(first))
    with pytest.raises(IntegrityError, match="two different chunks"):
        await side.read(first)
    assert side.engine.ledgers.was_cut(FILE.file_hash, time.monotonic())
    side.assert_released()


async def test_a_proven_file_is_checked_chunk_by_chunk_and_fetched_again() -> None:
    side = Side()
    (grant,) = await side.grant()
    await side.read(grant)
    side.cas.on_data = Damage(3, times=2)
    assert (await side.read(grant)).is_verified
    chunk = side.cas.forgotten[0][1]
    assert [chunks for _, chunks in side.cas.forgotten] == [chunk, chunk]
    assert (chunk.start, chunk.end) == (3, 4)
    side.cas.on_data = Damage(3)
    came = bytearray()
    with pytest.raises(IntegrityError, match="chunk 3 is not the file's"):
        await read_all(side.open(grant), came)
    assert side.expected(grant).startswith(came)
    assert len(came) < grant.ranges[0].byte_range.size
    # The list is what shows who is wrong: it stays, and others need not start again.
    assert not side.engine.ledgers.was_cut(FILE.file_hash, time.monotonic())
    with pytest.raises(IntegrityError, match="chunk 3 is not the file's"):
        await read_all(side.open(grant))
    side.cas.on_data = None
    assert (await side.read(grant)).is_verified
    side.assert_released()


async def test_a_chunk_that_does_not_decode_is_fetched_again() -> None:
    side = Side()
    (grant,) = await side.grant()
    records = FILE.runs[0][0].records

    def damage(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        at = len(records[0]) + CHUNK_HEADER_SIZE  # the second chunk is LZ4
        return (data[:at] + b"\0" + data[at + 1 :] if number <= broken else data), None

    side.cas.on_data = damage
    broken = 2
    await side.read(grant)
    broken = 1000
    with pytest.raises(XetserveError):
        await read_all(side.open(grant))
    side.assert_released()


@pytest.mark.parametrize("change", [-1, 1])
async def test_a_term_of_another_size_is_an_error(change: int) -> None:
    side = Side()
    (grant,) = await side.grant()
    (granted,) = grant.ranges
    use = granted.uses[0]
    wrong = granted._replace(uses=(use._replace(decoded_size=use.decoded_size + change),))
    with pytest.raises(IntegrityError, match="decoded bytes, expected"):
        await read_all(side.open(grant._replace(ranges=(wrong,))))
    side.assert_released()


async def test_a_range_that_is_no_part_of_a_xorb_is_an_error() -> None:
    side = Side()
    (grant,) = await side.grant()
    wrong = GrantedRange(grant.ranges[0].chunks, ByteRange(0, 9), ())
    with pytest.raises(IntegrityError, match="chunks in 9 bytes"):
        await read_all(side.open(grant._replace(ranges=(wrong,))))
    side.assert_released()


class Expiry:
    """Refuses some URLs."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls

    def __call__(self, number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        if info.url in self.urls:
            raise UrlExpired("expired")
        return data, None


async def test_an_expired_url_is_the_clients_to_renew() -> None:
    side = Side()
    (old,), (new,) = await side.grant(), await side.grant()
    side.cas.on_data = Expiry(old.url)
    with pytest.raises(UrlExpired):
        await read_all(side.open(old))
    assert len(side.cas.fetched) == 1
    await side.read(new)
    side.assert_released()


async def test_whoever_has_a_good_url_helps_the_others() -> None:
    side = Side()
    (old,), (new,) = await side.grant(), await side.grant()
    side.cas.on_data = Expiry(old.url)
    reader = side.engine.read(FakeAccess(), FILE.file_hash, size=SIZE, start=0, end=SIZE)
    async with asyncio.TaskGroup() as group:
        packed = [group.create_task(read_all(side.open(grant))) for grant in (old, new)]
        whole = group.create_task(read_all(reader))
    assert [task.result() for task in packed] == [side.expected(old)] * 2
    assert whole.result() == FILE.content
    side.assert_released()


async def test_packed_and_plain_readers_share_a_fetch() -> None:
    """Of a range that several want, decoded chunks are not kept in place of packed ones."""
    file = simple_file(8)
    side = Side(file)
    (grant,) = await side.grant()
    size = len(file.content)
    readers = [side.engine.read(FakeAccess(), file.file_hash, size=size) for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        plain = [group.create_task(read_all(reader)) for reader in readers]
        packed = [group.create_task(read_all(side.open(grant))) for _ in range(3)]
    assert {task.result() for task in plain} == {file.content}
    assert {task.result() for task in packed} == {side.expected(grant)}
    assert len(side.cas.fetched) <= 2
    side.assert_released()


async def test_a_client_that_leaves_takes_nothing_along() -> None:
    side = Side(limit=1 << 18)
    (grant,) = await side.grant()
    reader = side.open(grant)
    await anext(reader)
    assert side.budget.held
    await reader.aclose()
    side.assert_released()


async def test_a_cancelled_wait_takes_nothing_along() -> None:
    side = Side()
    (grant,) = await side.grant()
    side.cas.on_data = lambda number, info, data: (data[:100], None)
    task = asyncio.create_task(read_all(side.open(grant)))
    await until(lambda: side.cas.num_open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    side.assert_released()


async def test_an_upstream_that_fails_for_good() -> None:
    side = Side()
    (grant,) = await side.grant()
    side.cas.on_data = lambda number, info, data: (data, 100)
    with pytest.raises(UpstreamError):
        await read_all(side.open(grant))
    side.assert_released()


async def test_memory_is_bounded_however_large_the_range() -> None:
    side = Side(simple_file(600), limit=1 << 20)
    (grant,) = await side.grant()
    peak = 0
    reader = side.open(grant)
    async with aclosing(reader):
        async for _ in reader:
            peak = max(peak, side.budget.held)
    assert grant.ranges[0].byte_range.size > 5 << 20
    assert peak < 2 << 20
    side.assert_released()


ZEROS = FakeXorb.make([bytes(10_000), b"x" * 5000], [Scheme.NONE])


async def test_a_file_of_one_chunk_thousands_of_times_is_proven() -> None:
    side = Side(FakeFile([(ZEROS, ChunkRange(0, 1))] * 3000))
    (grant,) = await side.grant()
    assert (await side.read(grant)).is_verified
    side.assert_released()


async def test_a_wrong_byte_in_a_file_of_one_chunk_never_comes_to_its_end() -> None:
    side = Side(FakeFile([(ZEROS, ChunkRange(0, 1))] * 3000))
    (grant,) = await side.grant()
    side.cas.on_data = lambda number, info, data: (data[:-1] + b"\1", None)
    with pytest.raises(IntegrityError, match="not file"):
        await read_all(side.open(grant))
    side.assert_released()


async def test_a_chunk_in_many_places_is_looked_at_in_many_turns() -> None:
    side = Side(FakeFile([(ZEROS, ChunkRange(0, 1))] * 5000))
    grants = await side.grant()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    await side.read(grants[0])
    few = turns
    side = Side(FakeFile([(ZEROS, ChunkRange(0, 1))] * (5000 + 20 * PLACES_AT_ONCE)))
    grants, turns = await side.grant(), 0
    await side.read(grants[0])
    counting.cancel()
    assert turns >= few + 20


async def test_the_end_does_not_come_once_the_other_parts_are_forgotten() -> None:
    """They are forgotten while the last one is on its way, so nobody could refuse it in the
    beginning.
    """
    side = Side()
    side.cas.on_data = Damage(3)
    first, second = await side.grant(0, SIZE // 2), await side.grant(SIZE // 2)
    await read_all(side.open(first[0]))  # wrong, but nobody can know
    last = side.open(second[0])
    ledgers = side.engine.ledgers
    begun = ledgers.find(FILE.file_hash)
    assert begun is not None
    begun.forget()  # as of a file that is too large
    begun.has_lost = True
    with pytest.raises(UpstreamBusy, match="were dropped"):
        async for _ in last:
            pass
    assert not last.is_verified
    side.assert_released()
