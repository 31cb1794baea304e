"""The quota of the cache: quota and free space are kept, the account is right, and crashes leave
nothing for ever.
"""

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.pipeline.cache.cache_site import HUGE, LARGE, XORB, Counts, Site, make_site, make_xorb
from tests.pipeline.cache.filled import files, fill, make_store
from tests.waiting import wait_until
from xetserve.errors import ConfigError
from xetserve.pipeline.cache import layout
from xetserve.pipeline.cache import quota as quota_module
from xetserve.pipeline.cache.entry import EntryKey, parse_entry_name
from xetserve.pipeline.cache.layout import make_xorb_path
from xetserve.pipeline.cache.quota import Quota
from xetserve.pipeline.cache.store import prepare_folder
from xetserve.pipeline.cache.temporary import Temporary
from xetserve.xet.reconstruction import ByteRange, ChunkRange


def make_quota(folder: Path, max_size: int = HUGE) -> Quota:
    return Quota(folder, max_size=max_size, min_free=0)


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
    quota = make_quota(tmp_path, (size[1] + size[2]) * 112 // 100)
    assert quota.sweep() == 2
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
        assert make_quota(tmp_path, quota).get_usage() == total
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
    monkeypatch.setattr(Quota, "get_free", lambda self: free[0])
    async with make_site(tmp_path, min_free=900) as site:
        await site.read(0, 40)
        await site.cache.settle()
        assert (site.entries(), abandoned()) == ([], {"no room": 1})
        free[0] = HUGE
        await site.fill(0, 40)
        free[0] = 100
        await site.cache.disk_workers.sweep()
        assert site.entries() == []


def test_folders_are_for_nobody_else(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    prepare_folder(folder)
    store = make_store(folder)
    key = EntryKey(XORB.xorb_hash, ChunkRange(0, 1), ByteRange(0, 1))
    puts: tuple[Callable[[Temporary], object], ...] = (
        lambda temporary: store.publish(temporary, key),
        lambda temporary: store.place(temporary, "plain", f"sha256-{'ab' * 32}"),
        lambda temporary: store.place_beside(temporary, str(folder / "meta/imported/ab/x")),
    )
    before = os.umask(0o022)
    try:
        for put in puts:
            temporary = store.create(1)
            assert temporary is not None
            put(temporary)
            os.close(temporary.fd)
    finally:
        os.umask(before)
    found = [path for path in folder.rglob("*") if path.is_dir()]
    assert len(found) == 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o700}


def test_small_files_cost_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "BLOCK", 4096)
    prepare_folder(tmp_path)
    store = make_store(tmp_path, 10 * 4096)
    for number in range(20):
        temporary = store.create(1)
        if temporary is None:
            store.quota.sweep(1)
            temporary = store.create(1)
        assert temporary is not None
        store.write(temporary, b"x")
        store.place(temporary, "plain", f"sha256-{number:064x}")
        os.close(temporary.fd)
        kept = len(list(tmp_path.glob("plain/*/*")))
        assert (kept <= 10, store.quota.get_usage()) == (True, kept * 4096)
    assert store.quota.evict(size=3 * 4096).num == kept - 3
    assert store.quota.get_usage() == 3 * 4096


async def test_a_file_system_without_files_to_spare_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_by_times(tmp_path)
    quota = Quota(tmp_path, max_size=HUGE, min_free=1)
    values = list(os.statvfs(tmp_path))
    values[7] = 999  # f_favail
    assert quota.take(1)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    assert not quota.take(1)
    assert quota.sweep() > 0


async def test_what_comes_and_goes_is_accounted_for(site: Site) -> None:
    quota = make_quota(site.folder)
    await site.fill(0, 10)
    await site.fill(0, 40)
    await site.read(0, 40)
    assert quota.get_usage() == site.entries()[0].stat().st_size
    site.cache.forget(XORB.xorb_hash, ChunkRange(0, 40))
    await site.cache.settle()
    assert quota.get_usage() == 0


@pytest.mark.parametrize("content", [b"", b"nonsense", b"99999999999999999999"])
async def test_a_wrong_account_is_put_right(site: Site, content: bytes) -> None:
    await site.fill(0, 40)
    (site.folder / "usage").write_bytes(content)
    quota = make_quota(site.folder)
    quota.sweep()
    assert quota.get_usage() == site.entries()[0].stat().st_size


async def test_one_sweeps_at_a_time(site: Site) -> None:
    await site.fill(0, 40)
    quota = make_quota(site.folder, 1)
    with (site.folder / "sweep.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert quota.sweep() == 0
    assert quota.sweep() == 1


async def test_an_account_that_stays_locked_costs_no_download(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_module, "LOCK_TRIES", 2)
    with (site.folder / "usage").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert await site.read(0, 40) == site.expected(0, 40)
        await site.cache.settle()
    assert site.entries() == []


# On request


async def fill_by_times(folder: Path) -> list[Path]:
    """Fill a cache, with every file used a thousand seconds after the one before; gives them,
    oldest first.
    """
    await fill(folder)
    paths = files(folder)
    for number, path in enumerate(paths):
        os.utime(path, (0, 1000 * (number + 1)))
    return paths


async def test_the_oldest_go_until_the_size_is_reached(tmp_path: Path) -> None:
    paths = await fill_by_times(tmp_path)
    sizes = [path.stat().st_size for path in paths]
    quota = make_quota(tmp_path)
    evicted = quota.evict(size=sum(sizes) - 1)
    assert (evicted.num, evicted.size) == (1, sizes[0])
    assert files(tmp_path) == paths[1:]
    assert quota.get_usage() == sum(sizes[1:])
    assert quota.evict(size=0).num == len(paths) - 1
    assert files(tmp_path) == []
    assert quota.get_usage() == 0


async def test_what_was_not_used_for_long_goes(tmp_path: Path) -> None:
    paths = await fill_by_times(tmp_path)
    evicted = make_quota(tmp_path).evict(unused_since=2500)
    assert evicted.num == 2
    assert files(tmp_path) == paths[2:]


def test_many_files_go_in_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 files took minutes: five walks over the folder, and the usage written for each."""
    prepare_folder(tmp_path)
    for number in range(1000):
        folder = Path(make_xorb_path(tmp_path, number.to_bytes(32, "little")))
        folder.mkdir(parents=True)
        (folder / f"0-1-{number:016x}.xc").write_bytes(b"x")
    walks: list[Path] = []

    def walk(folder: Path) -> Iterator[layout.Stored]:
        walks.append(folder)
        return layout.iter_stored(folder)

    changes: list[int] = []
    quota = make_quota(tmp_path)
    add = quota._add

    def count(size: int) -> bool:
        changes.append(size)
        return add(size)

    monkeypatch.setattr(quota_module, "iter_stored", walk)
    monkeypatch.setattr(quota, "_add", count)
    assert quota.evict(size=100 * layout.BLOCK) == (900, 900 * layout.BLOCK)
    assert len(walks) == 2
    assert len(changes) == 4
    assert quota.get_usage() == 100 * layout.BLOCK
    assert len(list(tmp_path.glob("??/*/*.xc"))) == len(list(tmp_path.glob("??/*"))) == 100


async def test_without_a_reason_nothing_goes(tmp_path: Path) -> None:
    paths = await fill_by_times(tmp_path)
    assert make_quota(tmp_path).evict() == (0, 0)
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
    store.quota.sweep()
    assert [str(path) for path in (tmp_path / "tmp").iterdir()] == [living.path]
    assert store.quota.get_usage() == 1000
    os.close(living.fd)


async def test_leftovers_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "left").write_bytes(b"x" * 1000)
    async with make_site(tmp_path) as site:
        await asyncio.to_thread(wait_until, lambda: not site.temporaries())


# What others have put there


def refuse(
    monkeypatch: pytest.MonkeyPatch, name: str, *paths: Path, error: int = errno.EACCES
) -> None:
    """Have a function of os fail for some paths: permissions are nothing to whoever runs these
    tests as root.
    """
    function = getattr(os, name)

    def fail(path: str | Path, *args: object, **kwargs: object) -> object:
        if str(path) in map(str, paths):
            raise OSError(error, os.strerror(error), str(path))
        return function(path, *args, **kwargs)

    monkeypatch.setattr(os, name, fail)


async def test_odd_things_in_tmp_do_not_end_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = await fill_by_times(tmp_path)
    tmp = tmp_path / "tmp"
    for name in ("0unreadable", "left"):
        (tmp / name).write_bytes(b"x" * 100)
    os.mkfifo(tmp / "1fifo")
    (tmp / "2folder").mkdir()
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    (tmp / "3link").symlink_to(theirs)
    (tmp / "4gone").symlink_to("nowhere")
    refuse(monkeypatch, "open", tmp / "0unreadable")
    quota = make_quota(tmp_path)
    for _ in range(2):
        assert quota.evict(size=0).num in (len(paths), 0)
        assert quota.sweep() == 0
    assert files(tmp_path) == []
    assert quota.get_usage() == 100
    left = {path.name for path in tmp.iterdir()}
    assert left == {"0unreadable", "1fifo", "2folder", "3link", "4gone"}
    assert theirs.read_bytes() == b"theirs"
    assert len([line for line in caplog.messages if "passed over" in line]) == len(left)


async def test_a_temporary_file_that_is_gone_before_it_is_looked_at_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await fill_by_times(tmp_path)
    (tmp_path / "tmp" / "finished").write_bytes(b"x")
    look_at = layout.look_at

    def look_late(item: os.DirEntry[str]) -> object:
        if item.name == "finished":
            os.unlink(item.path)
        return look_at(item)

    monkeypatch.setattr(quota_module, "look_at", look_late)
    assert make_quota(tmp_path).sweep() == 0
    assert caplog.messages == []


async def test_folders_that_cannot_be_read_do_not_end_eviction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await fill_by_times(tmp_path)
    (tmp_path / "ff").mkdir()
    (tmp_path / "large").write_bytes(b"no folder")
    refuse(monkeypatch, "scandir", tmp_path / "ff", tmp_path / "tmp")
    assert make_quota(tmp_path).evict(size=0).num == len(paths)


async def test_what_cannot_be_removed_is_passed_over_for_what_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await fill_by_times(tmp_path)
    sizes = [path.stat().st_size for path in paths]
    refuse(monkeypatch, "unlink", paths[0], error=errno.EPERM)
    quota = make_quota(tmp_path, sum(sizes) - 1)
    assert quota.sweep() > 0
    assert paths[0] in files(tmp_path)
    assert quota.get_usage() <= quota.max_size
    make_quota(tmp_path).evict(size=0)
    assert files(tmp_path) == paths[:1]


@pytest.mark.parametrize("name", ["usage", "sweep.lock"])
@pytest.mark.parametrize("odd", ["link", "fifo", "folder"])
async def test_files_of_ours_are_regular_ones(tmp_path: Path, name: str, odd: str) -> None:
    prepare_folder(tmp_path)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(b"theirs")
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if odd == "link":
        path.symlink_to(theirs)
    elif odd == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    for act in (make_quota(tmp_path).sweep, make_quota(tmp_path).evict):
        with pytest.raises(OSError, match=f"{name} is not a regular file"):
            act()
    if name == "usage":
        with pytest.raises(ConfigError, match="usage is not a regular file"):
            prepare_folder(tmp_path)
    assert theirs.read_bytes() == b"theirs"


async def test_files_of_other_users_in_tmp_push_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a hole costs nobody anything, and says that it is as large as one likes."""
    paths = await fill_by_times(tmp_path)
    with (tmp_path / "tmp/theirs").open("wb") as file:
        file.truncate(HUGE)
    monkeypatch.setattr(os, "geteuid", lambda: paths[0].stat().st_uid + 1)
    quota = make_quota(tmp_path, 1 << 30)
    assert quota.sweep(1000) == 0
    assert set(paths) <= set(files(tmp_path))
    assert quota.get_usage() == sum(path.stat().st_size for path in paths)
    assert (tmp_path / "tmp/theirs").exists()


@pytest.mark.parametrize("way", ["entry", "subfolder", "beside"])
@pytest.mark.parametrize("is_late", [False, True], ids=["before", "at the last moment"])
async def test_a_file_that_was_replaced_in_tmp_is_not_put_in_place(
    tmp_path: Path, way: str, is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_folder(tmp_path)
    store = make_store(tmp_path)
    temporary = store.create(100)
    assert temporary is not None

    def replace() -> None:
        Path(temporary.path).unlink()
        Path(temporary.path).write_bytes(b"forged".ljust(100))

    rename = os.rename

    def rename_late(source: str, target: str) -> None:
        replace()
        rename(source, target)

    if is_late:
        monkeypatch.setattr(os, "rename", rename_late)
    else:
        replace()
    key = EntryKey(XORB.xorb_hash, ChunkRange(0, 1), ByteRange(0, 100))
    for folder in (make_xorb_path(tmp_path, XORB.xorb_hash), tmp_path / "plain/ab"):
        os.makedirs(folder)
    put: dict[str, Callable[[], object]] = {
        "entry": partial(store.publish, temporary, key),
        "subfolder": partial(store.place, temporary, "plain", f"sha256-{'ab' * 32}"),
        "beside": partial(store.place_beside, temporary, str(tmp_path / "meta/x")),
    }
    with pytest.raises(OSError, match="another process has replaced a file in tmp"):
        put[way]()
    store.discard(temporary)
    os.close(temporary.fd)
    assert [path for path in files(tmp_path) if path.name != "usage"] == []
