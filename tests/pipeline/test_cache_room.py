"""Room in the cache: quota and free space are kept, the account is right, and crashes leave nothing for ever."""

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.cache_site import (
    HUGE,
    LARGE,
    XORB,
    Counts,
    Site,
    make_site,
    make_xorb,
    wait_until,
)
from tests.pipeline.filled import files, fill, make_store
from xetserve.pipeline import cache_room
from xetserve.pipeline.cache_entry import parse_entry_name
from xetserve.pipeline.cache_room import Room
from xetserve.pipeline.cache_store import prepare_folder
from xetserve.xet.reconstruction import ChunkRange


def make_room(folder: Path, max_size: int = HUGE) -> Room:
    return Room(folder, max_size=max_size, min_free=0)


async def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    size = [0] * 4
    async with make_site(tmp_path) as site:
        for number in range(4):
            await site.fill(number * 10, number * 10 + 10)
        for path in site.entries():
            chunks = parse_entry_name(path.name)
            assert chunks is not None
            number = chunks.start // 10
            size[number] = path.stat().st_size
            os.utime(path, (0, [3000, 1000, 4000, 2000][number]))
        await site.read(10, 20)  # now the latest
        assert site.num_fetched == 0
    room = make_room(tmp_path, (size[1] + size[2]) * 112 // 100)
    assert room.sweep() == 2
    left = {path.name.partition("-")[0] for path in site.entries()}
    assert left == {"10", "20"}


async def test_the_quota_is_kept(tmp_path: Path, counts: Callable[[], Counts]) -> None:
    xorb = make_xorb(100, 5, 5000)
    quota = sum(map(len, xorb.records)) // 3
    async with make_site(tmp_path, xorb, max_size=quota) as site:
        for start in range(0, 100, 5):
            await site.read(start, start + 5)
            await site.cache.settle()
            total = sum(path.stat().st_size for path in site.entries())
            assert total <= quota
        assert total > quota // 2
        assert counts().evictions > 5
        assert make_room(tmp_path, quota).get_usage() == total
        site.cas.fetched.clear()
        await site.read(95, 100)
        assert site.num_fetched == 0


async def test_an_entry_too_large_for_the_quota_evicts_nothing(
    tmp_path: Path, abandoned: Callable[[], dict[str, float]]
) -> None:
    async with make_site(tmp_path, LARGE, max_size=2_000_000) as site:
        await site.fill(0, 5)
        await site.read(0, 60)
        await site.cache.settle()
        assert (len(site.entries()), abandoned()) == (1, {"too large": 1})


async def test_a_full_disk_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abandoned: Callable[[], dict[str, float]]
) -> None:
    free = [1000]
    monkeypatch.setattr(Room, "get_free", lambda self: free[0])
    async with make_site(tmp_path, min_free=900) as site:
        await site.read(0, 40)
        await site.cache.settle()
        assert (site.entries(), abandoned()) == ([], {"no room": 1})
        free[0] = HUGE
        await site.fill(0, 40)
        free[0] = 100
        await site.cache.desk.sweep()
        assert site.entries() == []


async def test_what_comes_and_goes_is_accounted_for(site: Site) -> None:
    room = make_room(site.folder)
    await site.fill(0, 10)
    await site.fill(0, 40)
    await site.read(0, 40)
    assert room.get_usage() == site.entries()[0].stat().st_size
    site.cache.forget(XORB.xorb_hash, ChunkRange(0, 40))
    await site.cache.settle()
    assert room.get_usage() == 0


@pytest.mark.parametrize("content", [b"", b"nonsense", b"99999999999999999999"])
async def test_a_wrong_account_is_put_right(site: Site, content: bytes) -> None:
    await site.fill(0, 40)
    (site.folder / "usage").write_bytes(content)
    room = make_room(site.folder)
    room.sweep()
    assert room.get_usage() == site.entries()[0].stat().st_size


async def test_one_sweeps_at_a_time(site: Site) -> None:
    await site.fill(0, 40)
    room = make_room(site.folder, 1)
    with (site.folder / "sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert room.sweep() == 0
    assert room.sweep() == 1


async def test_an_account_that_stays_locked_costs_no_download(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_room, "LOCK_TRIES", 2)
    with (site.folder / "usage").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await site.read(0, 40) == site.expected(0, 40)
        await site.cache.settle()
    assert site.entries() == []


# On request


async def fill_by_times(folder: Path) -> list[Path]:
    """Fill a cache, with every file used a thousand seconds after the one before; gives them, oldest first."""
    await fill(folder)
    paths = files(folder)
    for number, path in enumerate(paths):
        os.utime(path, (0, 1000 * (number + 1)))
    return paths


async def test_the_oldest_go_until_the_size_is_reached(tmp_path: Path) -> None:
    paths = await fill_by_times(tmp_path)
    sizes = [path.stat().st_size for path in paths]
    room = make_room(tmp_path)
    evicted = room.evict(size=sum(sizes) - 1)
    assert (evicted.num, evicted.size) == (1, sizes[0])
    assert files(tmp_path) == paths[1:]
    assert room.get_usage() == sum(sizes[1:])
    assert room.evict(size=0).num == len(paths) - 1
    assert files(tmp_path) == []
    assert room.get_usage() == 0


async def test_what_was_not_used_for_long_goes(tmp_path: Path) -> None:
    paths = await fill_by_times(tmp_path)
    evicted = make_room(tmp_path).evict(unused_since=2500)
    assert evicted.num == 2
    assert files(tmp_path) == paths[2:]


async def test_without_a_reason_nothing_goes(tmp_path: Path) -> None:
    paths = await fill_by_times(tmp_path)
    assert make_room(tmp_path).evict() == (0, 0)
    assert files(tmp_path) == paths


# Crashes


async def test_leftovers_of_the_dead_are_removed_and_files_of_the_living_are_not(
    tmp_path: Path,
) -> None:
    prepare_folder(tmp_path)
    store = make_store(tmp_path)
    living, dead = store.create(1000), store.create(500)
    assert living is not None
    assert dead is not None
    os.close(dead.fd)  # as the end of a process does
    store.room.sweep()
    assert [str(path) for path in (tmp_path / "tmp").iterdir()] == [living.path]
    assert store.room.get_usage() == 1000
    os.close(living.fd)


async def test_leftovers_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "left").write_bytes(b"x" * 1000)
    async with make_site(tmp_path) as site:
        await asyncio.to_thread(wait_until, lambda: not site.temporaries())
