"""The disk cache around a CAS in memory: what it keeps, what it gives, and what it never gives."""

import asyncio
import errno
import logging
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeAccess, FakeXorb
from tests.pipeline.cache.cache_site import (
    HUGE,
    LARGE,
    SMALL,
    XORB,
    Counts,
    Site,
    make_site,
    make_xorb,
)
from tests.waiting import PATIENCE, wait_until
from xetserve.errors import ConfigError, UpstreamError, UrlExpired
from xetserve.pipeline.cache import disk_cache, store
from xetserve.pipeline.cache import write as write_module
from xetserve.pipeline.cache.entry import Indexer, index_size, parse_entry_name
from xetserve.pipeline.cache.layout import get_cost
from xetserve.pipeline.cache.quota import Quota
from xetserve.pipeline.cache.store import CacheStore, prepare_folder
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo

# Hits and misses


async def test_what_was_read_once_comes_from_disk(site: Site, counts: Callable[[], Counts]) -> None:
    await site.fill(0, 40)
    assert await site.read(0, 40) == site.expected(0, 40)
    assert site.num_fetched == 0
    assert counts() == (1, 1, 0, 0)


async def test_a_xorb_has_only_so_many_entries(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for chunks of it looks at all of them."""
    monkeypatch.setattr(store, "MAX_XORB_ENTRIES", 3)
    for chunk in range(0, 12, 2):
        await site.fill(chunk, chunk + 1)
    assert len(site.entries()) == 3
    assert site.temporaries() == []
    await site.fill(0, 12)
    assert len(site.entries()) == 1


@pytest.mark.parametrize("piece", [1, 9000, 1 << 20], ids=["bytes", "small reads", "large reads"])
@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (39, 40), (5, 31)], ids=["first", "last", "middle"]
)
async def test_any_part_of_what_is_stored_hits(
    site: Site, start: int, end: int, piece: int
) -> None:
    await site.fill(0, 40)
    assert await site.read(start, end, piece=piece) == site.expected(start, end)
    assert site.num_fetched == 0


async def test_an_expired_url_does_not_matter_on_a_hit(site: Site) -> None:
    await site.fill(0, 40)

    def expire(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        raise UrlExpired("403")

    site.cas.on_data = expire
    assert await site.read(3, 9) == site.expected(3, 9)
    async with make_site(site.folder.with_name("other")) as other:
        other.cas.on_data = expire
        with pytest.raises(UrlExpired):
            await other.read(3, 9)


@pytest.mark.parametrize(
    "stored",
    [[(0, 15), (15, 30)], [(0, 20), (10, 30)], [(0, 12), (5, 18), (18, 40)]],
    ids=["side by side", "overlapping", "three"],
)
async def test_several_entries_make_a_range(site: Site, stored: list[tuple[int, int]]) -> None:
    for start, end in stored:
        await site.fill(start, end)
    assert await site.read(2, 30) == site.expected(2, 30)
    assert site.num_fetched == 0


@pytest.mark.parametrize(
    ("start", "end"), [(9, 20), (10, 41), (30, 41), (0, 5)], ids=["before", "after", "tail", "far"]
)
async def test_a_range_that_is_not_all_there_is_fetched_as_signed(
    tmp_path: Path, start: int, end: int
) -> None:
    async with make_site(tmp_path, make_xorb(50)) as site:
        await site.fill(10, 40)
        assert await site.read(start, end) == site.expected(start, end)
        assert [info.chunks for info in site.cas.fetched] == [(start, end)]


async def test_the_same_chunks_packed_in_another_way_are_a_miss(
    site: Site, counts: Callable[[], Counts]
) -> None:
    await site.fill(0, 40)
    repacked = FakeXorb.make(XORB.chunks, [Scheme.BG4_LZ4, Scheme.LZ4])
    repacked.records[3] = repacked.records[3][:4] + b"\1" + repacked.records[3][5:]
    moved = FakeXorb(
        XORB.xorb_hash, XORB.chunks, [b"pad" * 50 + XORB.records[0], *XORB.records[1:]]
    )
    async with make_site(site.folder, moved) as other:
        got = await other.read(5, 9)
        assert (got, other.num_fetched) == (other.expected(5, 9), 1)
    assert counts().damaged == 1


async def test_reconstructions_are_always_asked_for(site: Site) -> None:
    for _ in range(2):
        await site.cache.fetch_reconstruction(FakeAccess(), b"h" * 32, ByteRange(0, 10))
    assert len(site.cas.asked) == 2


async def test_nothing_on_disk_tells_where_it_came_from(site: Site) -> None:
    await site.fill(0, 40)
    (entry,) = site.entries()
    assert b"data.test" not in entry.read_bytes()
    assert entry.parent.name == format_hash(XORB.xorb_hash)
    assert entry.parent.parent.name == format_hash(XORB.xorb_hash)[:2]
    assert site.folder.stat().st_mode & 0o777 == 0o700


# What is kept


@pytest.mark.parametrize("upto", [1, 100_000, 300_000])
async def test_a_body_that_was_left_leaves_nothing(
    tmp_path: Path, upto: int, abandoned: Callable[[], dict[str, float]]
) -> None:
    async with make_site(tmp_path, LARGE) as site:
        await site.read(0, 60, upto=upto)
        await site.cache.settle()
        assert (site.entries(), abandoned()) == ([], {"cut short": 1})
        await asyncio.to_thread(wait_until, lambda: not site.temporaries())


async def test_a_body_that_was_whole_is_kept_when_the_end_was_not_asked_for(site: Site) -> None:
    await site.read(0, 40, upto=len(site.expected(0, 40)))
    await site.cache.settle()
    assert len(site.entries()) == 1


def cut(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
    return data, 100_000


def shorten(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
    return data[:-1], None


def lengthen(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
    return data + b"x", None


def garble(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
    return b"\7" * len(data), None


def split(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
    """Two chunks where one was, in as many bytes."""
    size = len(XORB.records[0])
    chunks = [random.Random(9).randbytes(length) for length in (10, size - 26)]
    return b"".join(FakeXorb.make(chunks).records) + data[size:], None


@pytest.mark.parametrize("wrong", [cut, shorten, lengthen, garble, split])
async def test_a_body_that_is_not_what_was_planned_is_not_kept(
    site: Site, wrong: Callable[[int, FetchInfo, bytes], tuple[bytes, int | None]]
) -> None:
    site.cas.on_data = wrong
    with pytest.raises(UpstreamError) if wrong is cut else nullcontext():
        await site.read(0, 40)
    await site.cache.settle()
    assert site.entries() == []


async def test_two_that_fetch_the_same_at_once_leave_one_entry(site: Site) -> None:
    bodies = await asyncio.gather(*(site.read(0, 40) for _ in range(4)))
    assert set(bodies) == {site.expected(0, 40)}
    await site.cache.settle()
    assert len(site.entries()) in (1, 2, 3, 4)  # who looks before the other renames keeps two
    site.cas.fetched.clear()
    assert await site.read(0, 40) == site.expected(0, 40)
    assert site.num_fetched == 0


async def test_a_wider_entry_takes_the_place_of_what_it_contains(site: Site) -> None:
    await site.fill(3, 9)
    await site.fill(20, 30)
    await site.fill(0, 40)
    assert [path.name.split("-")[:2] for path in site.entries()] == [["0", "40"]]


async def test_two_caches_share_a_folder(site: Site) -> None:
    await site.fill(0, 20)
    async with make_site(site.folder) as other:
        assert await other.read(4, 18) == other.expected(4, 18)
        assert other.num_fetched == 0
        await other.fill(20, 40)
    assert await site.read(0, 40) == site.expected(0, 40)
    assert site.num_fetched == 0


async def test_what_turned_out_wrong_is_forgotten(site: Site, counts: Callable[[], Counts]) -> None:
    await site.fill(0, 10)
    await site.fill(10, 20)
    site.cache.forget(XORB.xorb_hash, ChunkRange(5, 6))
    assert await site.read(3, 7) == site.expected(3, 7)
    assert site.num_fetched == 1
    assert await site.read(10, 20) == site.expected(10, 20)
    assert (site.num_fetched, counts().damaged) == (1, 1)


async def test_what_turned_out_wrong_is_not_stored_late(site: Site) -> None:
    await site.read(0, 10)
    site.cache.forget(XORB.xorb_hash, ChunkRange(0, 1))
    await site.read(0, 10)
    assert site.num_fetched == 2


# Damage


def damage(path: Path, position: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))


@pytest.fixture(scope="module")
def stored() -> Iterator[bytes]:
    """The entry of all of SMALL."""

    async def make(folder: Path) -> bytes:
        async with make_site(folder, SMALL) as site:
            await site.fill(0, 12)
            return site.entries()[0].read_bytes()

    with tempfile.TemporaryDirectory() as folder:
        yield asyncio.run(make(Path(folder)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_entry_never_gives_a_wrong_byte(stored: bytes, data: st.DataObject) -> None:
    how = data.draw(st.sampled_from(["flip", "cut", "grow", "overwrite"]))
    at = data.draw(st.integers(0, len(stored) - 1))
    changed = bytearray(stored)
    if how == "flip":
        changed[at] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del changed[at:]
    elif how == "grow":
        changed += data.draw(st.binary(min_size=1, max_size=50))
    else:
        new = data.draw(st.binary(min_size=1, max_size=200))
        changed[at : at + len(new)] = new
    start = data.draw(st.integers(0, 11))
    end = data.draw(st.integers(start + 1, 12))
    is_known = data.draw(st.booleans())  # the index was read before the damage

    async def check(folder: Path) -> None:
        async with make_site(folder, SMALL) as site:
            await site.fill(0, 12)
            if is_known:
                await site.read(0, 1)
            (entry,) = site.entries()
            entry.write_bytes(changed)
            assert await site.read(start, end, piece=300) == site.expected(start, end)
            await site.cache.settle()
            await site.fill(0, 12)
            assert await site.read(0, 12) == site.expected(0, 12)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))


async def test_damage_in_the_middle_of_a_body_is_passed_over(
    tmp_path: Path, counts: Callable[[], Counts]
) -> None:
    async with make_site(tmp_path, LARGE) as site:
        await site.fill(0, 60)
        (entry,) = site.entries()
        damage(entry, len(site.expected(0, 50)) + 100, 1)
        assert await site.read(0, 60) == site.expected(0, 60)
        assert site.num_fetched == 1
        await site.cache.settle()
        assert counts().damaged == 1
        assert [path != entry for path in site.entries()] == [True]  # stored again as it passed
        assert await site.read(0, 60) == site.expected(0, 60)
        assert site.num_fetched == 1


async def test_an_entry_that_goes_during_a_look_up_is_a_miss(site: Site) -> None:
    await site.fill(0, 20)
    await site.fill(20, 40)
    async with site.cache.open_data(XORB.xorb_hash, site.info(0, 40)) as response:
        got = bytearray()
        buffer = memoryview(bytearray(5000))
        got += buffer[: await response.receive_into(buffer, 1.0)]
        for entry in site.entries():
            entry.unlink()
        while count := await response.receive_into(buffer, 1.0):
            got += buffer[:count]
    assert bytes(got) == site.expected(0, 40)
    assert site.num_fetched == 1


async def test_a_failure_upstream_after_damage_is_the_upstreams(site: Site) -> None:
    await site.fill(0, 40)
    damage(site.entries()[0], 10, 1)

    def refuse(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        raise UpstreamError("503")

    site.cas.on_data = refuse
    with pytest.raises(UpstreamError, match="503"):
        await site.read(0, 40)
    site.cas.on_data = None
    assert await site.read(0, 40) == site.expected(0, 40)


@pytest.mark.parametrize("name", ["3-9-zz.xc", "9-3-0123456789abcdef.xc", "notes.txt", ".xc"])
async def test_files_of_others_are_left_alone(site: Site, name: str) -> None:
    await site.fill(0, 40)
    other = site.entries()[0].with_name(name)
    other.write_text("mine")
    assert await site.read(0, 40) == site.expected(0, 40)
    await site.cache.disk_workers.sweep_now(HUGE // 2)
    assert other.exists()


async def test_an_entry_without_its_index_is_a_miss(
    site: Site, counts: Callable[[], Counts]
) -> None:
    # After a power failure a renamed file may have its size, but not its content.
    await site.fill(0, 40)
    (entry,) = site.entries()
    entry.write_bytes(bytes(entry.stat().st_size))
    async with make_site(site.folder) as other:
        assert await other.read(0, 40) == other.expected(0, 40)
        assert (other.num_fetched, counts().damaged) == (1, 1)


# A disk that fails


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
async def test_a_disk_that_cannot_be_written_costs_no_download(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    abandoned: Callable[[], dict[str, float]],
    code: int,
) -> None:
    writev, num_calls = write_module._writev, 0

    def fail(fd: int, views: list[memoryview]) -> int:
        nonlocal num_calls
        num_calls += 1
        if num_calls % 2:  # a part is written first
            return writev(fd, [views[0][:1000]])
        raise OSError(code, os.strerror(code))

    async with make_site(tmp_path, LARGE) as site:
        monkeypatch.setattr(write_module, "_writev", fail)
        caplog.set_level(logging.WARNING)
        for _ in range(3):
            assert await site.read(0, 60) == site.expected(0, 60)
            await site.cache.settle()
        await asyncio.to_thread(wait_until, lambda: not site.temporaries())
        assert (site.entries(), abandoned()) == ([], {"disk": 3})
    assert [record.message for record in caplog.records] == [
        f"cache: cannot write: {os.strerror(code)}"
    ]


@pytest.mark.parametrize(
    ("part", "name"),
    [(CacheStore, "find"), (CacheStore, "create"), (CacheStore, "publish"), (Quota, "sweep")],
)
async def test_a_disk_that_refuses_costs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type, name: str
) -> None:
    async with make_site(tmp_path) as site:
        await site.fill(0, 20)

        def refuse(*arguments: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(part, name, refuse)
        for start, end in [(0, 20), (0, 40), (0, 40)]:
            assert await site.read(start, end) == site.expected(start, end)
            await site.cache.settle()


async def test_a_disk_that_is_behind_costs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abandoned: Callable[[], dict[str, float]]
) -> None:
    # A disk that never ends a write, and memory for two blocks.
    hanging = threading.Event()

    def hang(fd: int, views: list[memoryview]) -> int:
        hanging.wait(PATIENCE)
        raise OSError(errno.EIO, "it hung")

    async with make_site(tmp_path, LARGE) as site:
        monkeypatch.setattr(write_module, "_writev", hang)
        monkeypatch.setattr(write_module, "MAX_WRITER_BLOCKS", 2)
        assert await site.read(0, 60) == site.expected(0, 60)
        assert abandoned() == {"behind": 1}
        assert site.cache.disk_workers.num_blocks <= 2
        hanging.set()
        await site.cache.settle()
        assert site.entries() == []


async def test_a_download_waits_for_a_disk_that_is_a_little_slower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abandoned: Callable[[], dict[str, float]]
) -> None:
    writev, written = write_module._writev, threading.Event()

    def write_one(fd: int, views: list[memoryview]) -> int:
        written.wait(PATIENCE)
        return writev(fd, views[:1])

    async with make_site(tmp_path, LARGE) as site:
        monkeypatch.setattr(write_module, "_writev", write_one)
        monkeypatch.setattr(write_module, "MAX_WRITER_BLOCKS", 3)
        monkeypatch.setattr(write_module, "MIN_DELAY", 60.0)
        reading = asyncio.ensure_future(site.read(0, 60))
        await asyncio.to_thread(wait_until, lambda: site.cache.disk_workers.num_full > 0)
        assert not reading.done()
        written.set()
        assert await reading == site.expected(0, 60)
        await site.cache.settle()
        assert (len(site.entries()), abandoned()) == (1, {})
        assert (site.cache.disk_workers.num_blocks, site.cache.disk_workers.num_full) == (0, 0)


async def test_only_threads_compute_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feed, threads = Indexer.feed, set()

    def note_thread(indexer: Indexer, data: memoryview) -> None:
        threads.add(threading.current_thread())
        feed(indexer, data)

    monkeypatch.setattr(Indexer, "feed", note_thread)
    async with make_site(tmp_path, LARGE) as site:
        await site.fill(0, 60)
        assert len(site.entries()) == 1
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"\xff" + data[1:], id="first header"),
        pytest.param(lambda data: data[:-1], id="too short"),
        pytest.param(lambda data: data + b"\0", id="too long"),
        pytest.param(lambda data: LARGE.records[1] + LARGE.records[0], id="other records"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: data[: len(data) // 2] * 2, id="repeated"),
    ],
)
async def test_data_that_is_not_what_was_planned_is_not_stored(
    tmp_path: Path,
    abandoned: Callable[[], dict[str, float]],
    damage: Callable[[bytes], bytes],
) -> None:
    async with make_site(tmp_path, LARGE) as site:
        wrong = damage(site.expected(0, 60))
        site.cas.on_data = lambda number, info, data: (wrong, None)
        assert await site.read(0, 60) == wrong  # who reads it finds out by its hashes
        await site.cache.settle()
        await asyncio.to_thread(wait_until, lambda: not site.temporaries())
        assert (site.entries(), abandoned()) == ([], {"not what was planned": 1})
        site.cas.on_data = None
        await site.fill(0, 60)
        assert await site.read(0, 60) == site.expected(0, 60)
        assert site.num_fetched == 0


@pytest.mark.parametrize("fails", [True, False])
async def test_what_has_come_of_a_range_that_ends_early_is_kept(
    tmp_path: Path, fails: bool
) -> None:
    async with make_site(tmp_path, LARGE) as site:
        if fails:
            site.cas.on_data = lambda number, info, data: (data, 1_500_000)
        with pytest.raises(UpstreamError) if fails else nullcontext():
            await site.read(0, 60, upto=HUGE if fails else 1_500_000, piece=100_000)
        await site.cache.settle()
        (entry,) = site.entries()
        chunks = parse_entry_name(entry.name)
        assert chunks is not None
        assert chunks.start == 0 < chunks.end < 60
        assert 1_300_000 < len(site.expected(*chunks)) <= 1_600_000
        assert entry.stat().st_size == len(site.expected(*chunks)) + index_size(chunks)
        site.cas.on_data = None
        site.cas.fetched.clear()
        assert await site.read(*chunks) == site.expected(*chunks)
        assert site.num_fetched == 0
        assert await site.read(0, 60) == site.expected(0, 60)  # and the whole takes its place
        await site.cache.settle()
        assert [parse_entry_name(path.name) for path in site.entries()] == [(0, 60)]
        (entry,) = site.entries()
        usage = site.cache.disk_workers.store.quota.get_usage()
        assert usage == get_cost(entry.stat().st_size)


async def test_many_that_have_only_begun_keep_nobody_waiting(tmp_path: Path) -> None:
    async with make_site(tmp_path, LARGE) as site, AsyncExitStack() as stack:
        buffer = memoryview(bytearray(1000))
        for start in range(30):  # each has a block that only more data would fill
            body = site.cache.open_data(LARGE.xorb_hash, site.info(start, start + 20))
            response = await stack.enter_async_context(body)
            await response.receive_into(buffer, 1.0)
        assert site.cache.disk_workers.num_blocks == 30
        async with asyncio.timeout(PATIENCE / 2):  # it would give up after PATIENCE
            await site.cache.catch_up()


async def test_one_who_waits_for_the_disk_does_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Event()
    writev = write_module._writev

    def wait(fd: int, views: list[memoryview]) -> int:
        written.wait(PATIENCE)
        return writev(fd, views)

    async with make_site(tmp_path, LARGE) as site:
        monkeypatch.setattr(write_module, "_writev", wait)
        monkeypatch.setattr(disk_cache, "MAX_BLOCKS", 4)
        assert await site.read(0, 60) == site.expected(0, 60)
        waiting = asyncio.ensure_future(site.cache.catch_up())
        await asyncio.sleep(0)
        assert not waiting.done()
        written.set()
        await waiting
        await site.cache.settle()
        assert len(site.entries()) == 1
        site.cas.fetched.clear()  # its buffer was reused while the thread waited
        assert await site.read(0, 60) == site.expected(0, 60)
        assert site.num_fetched == 0


async def test_a_file_that_another_process_removes_costs_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abandoned: Callable[[], dict[str, float]]
) -> None:
    writev = write_module._writev

    def remove_first(fd: int, views: list[memoryview]) -> int:
        for path in site.temporaries():
            path.unlink(missing_ok=True)
        return writev(fd, views)

    async with make_site(tmp_path, LARGE) as site:
        monkeypatch.setattr(write_module, "_writev", remove_first)
        assert await site.read(0, 60) == site.expected(0, 60)
        await site.cache.settle()
        assert (site.entries(), abandoned()) == ([], {"disk": 1})
        monkeypatch.undo()
        await site.fill(0, 60)
        assert await site.read(0, 60) == site.expected(0, 60)
        assert site.num_fetched == 0


async def test_a_disk_that_hangs_is_left_alone_for_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.fill(0, 40)
    find, asked = site.cache.disk_workers.store.find, []

    async def time_out(function: Callable[..., object], *arguments: object) -> object:
        asked.append(function)
        raise TimeoutError

    monkeypatch.setattr(site.cache.disk_workers, "run", time_out)
    for _ in range(3):
        assert await site.read(0, 40) == site.expected(0, 40)
    assert asked == [find]


async def test_memory_that_is_short_costs_no_download(
    site: Site, monkeypatch: pytest.MonkeyPatch, abandoned: Callable[[], dict[str, float]]
) -> None:
    monkeypatch.setattr(write_module, "MAX_BLOCKS", 0)
    assert await site.read(0, 40) == site.expected(0, 40)
    monkeypatch.setattr(write_module, "MAX_WRITERS", 0)
    assert await site.read(0, 40) == site.expected(0, 40)
    assert abandoned() == {"behind": 1, "too many": 1}


async def test_many_slow_readers_hold_few_blocks(tmp_path: Path) -> None:
    async with make_site(tmp_path, LARGE) as site:
        await site.fill(0, 60)
        buffers = [memoryview(bytearray(1000)) for _ in range(30)]
        async with asyncio.TaskGroup() as group:
            leave = asyncio.Event()
            waiting = []

            async def read_a_little(buffer: memoryview, ready: asyncio.Event) -> None:
                async with site.cache.open_data(LARGE.xorb_hash, site.info(0, 60)) as response:
                    count = await response.receive_into(buffer, 1.0)
                    assert buffer[:count] == site.expected(0, 60)[:count]
                    ready.set()
                    await leave.wait()
                    count = await response.receive_into(buffer, 1.0)
                    assert buffer[:count] == site.expected(0, 60)[1000 : 1000 + count]

            for buffer in buffers:
                waiting.append(asyncio.Event())
                group.create_task(read_a_little(buffer, waiting[-1]))
            for ready in waiting:
                await ready.wait()
            assert site.cache.disk_workers.num_held <= write_module.MAX_HELD
            leave.set()
        assert site.cache.disk_workers.num_held == 0


@pytest.mark.parametrize("name", ["file", "file/below"])
async def test_a_folder_that_cannot_be_one_stops_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="cannot keep a cache in"):
        prepare_folder(tmp_path / name)


async def test_cancelling_a_read_is_safe_at_any_point(tmp_path: Path) -> None:
    async with make_site(tmp_path, LARGE) as site:
        await site.fill(0, 60)
        for turns in range(25):
            task = asyncio.create_task(site.read(0, 60))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            assert await site.read(0, 60) == site.expected(0, 60)
        await site.cache.settle()
        assert (site.num_fetched, site.cache.disk_workers.num_held) == (0, 0)


async def test_cancelling_a_fetch_is_safe_at_any_point(tmp_path: Path) -> None:
    for turns in range(40):
        async with make_site(tmp_path / str(turns), LARGE) as site:
            task = asyncio.create_task(site.read(0, 60))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))
            await site.cache.settle()
            assert await site.read(0, 60) == site.expected(0, 60)
