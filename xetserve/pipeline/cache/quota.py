"""Count the bytes in the folder of the cache, and evict files when there are too many.

    DIR/usage        bytes of all files in whole blocks, those in tmp included; an estimate that
                     each sweep corrects
    DIR/sweep.lock   locked by the process that sweeps

A writer takes room before it writes, and gives it back if it fails. The least recently used files
are evicted first, whatever they hold: the modification time of a file is the time of its last use,
within a minute. All functions block, and are for threads.
"""

import contextlib
import errno
import fcntl
import heapq
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.regular_files import open_regular, pass_over, scan
from xetserve.base.sizes import format_size
from xetserve.pipeline.cache.entry import is_unproven
from xetserve.pipeline.cache.layout import Stored, get_cost, iter_stored, look_at

HYSTERESIS: Final = 10  # a sweep evicts a tenth of a full cache, so that sweeps stay rare
MIN_ROOM: Final = 1024 * 1024  # bytes; a cache that cannot have as much keeps nothing
MIN_FREE_FILES: Final = 1000  # inodes of the file system that stay free
EVICTION_ROUNDS: Final = 8  # walks over the folder, if files cannot be removed
BATCH: Final = 256  # files that are removed before the usage is changed
# Removing a folder waits for the kernel, 0.2 to 0.9 ms on ext4, and hardly uses the CPU.
NUM_REMOVERS: Final = 8
LOCK_TRIES: Final = 50  # a millisecond each; the holder needs microseconds


class Evicted(NamedTuple):
    """Files that were removed, and their bytes."""

    num: int
    size: int

    def plus(self, other: "Evicted") -> "Evicted":
        """Return the sum of both."""
        return Evicted(self.num + other.num, self.size + other.size)


class Quota:
    """The bytes that all files of a cache use and may use, across processes.

    Args:
        folder: prepared by prepare_folder, see store.py.
        max_size: bytes that all files together may have.
        min_free: bytes of the file system that stay free.

    num_unproven: entries that were not proven at the last count of this process.
    """

    def __init__(self, folder: Path, *, max_size: int, min_free: int) -> None:
        self.max_size = max_size
        self.num_unproven = 0
        self._folder = folder
        self._min_free = min_free

    # Used bytes.

    def take(self, size: int) -> bool:
        """Add bytes to the usage, if there is room; return whether there is.

        Raises:
            OSError: the disk fails.
        """
        cost = get_cost(size)
        return self.get_free() - cost >= self._min_free and self._add(cost, limit=self.max_size)

    def give_back(self, size: int) -> None:
        """Subtract bytes from the usage.

        Raises:
            OSError: the disk fails.
        """
        self._add(-get_cost(size))

    def shrink(self, size: int, new_size: int) -> None:
        """Account for a file that was cut to new_size bytes.

        Raises:
            OSError: the disk fails.
        """
        self._add(get_cost(new_size) - get_cost(size))

    def remove(self, path: str) -> int:
        """Remove a file; return 1, or 0 if it is gone already or the disk fails."""
        with contextlib.suppress(OSError):
            size = os.stat(path, follow_symlinks=False).st_size
            os.unlink(path)
            with contextlib.suppress(OSError):
                self.give_back(size)
            return 1
        return 0

    def get_free(self) -> int:
        """Return the free bytes of the file system; 0 if it has almost no free inodes.

        Raises:
            OSError: the disk fails.
        """
        stat = os.statvfs(self._folder)
        if stat.f_files and stat.f_favail < MIN_FREE_FILES:
            return 0
        return stat.f_bavail * stat.f_frsize

    def check_room(self) -> None:
        """Check that the file system has room for the cache, if all its files were evicted.

        Raises:
            OSError: ENOSPC, it has none; or the disk fails.
        """
        if self._get_disk_room() < MIN_ROOM:
            raise OSError(
                errno.ENOSPC,
                f"no room: {format_size(self.get_free())} of the file system are free, and "
                f"cache_min_free is {format_size(self._min_free)}",
            )

    def get_room(self) -> int:
        """Return the bytes that all files together may have: max_size, or less on a full disk.

        Raises:
            OSError: the disk fails.
        """
        return max(0, min(self.max_size, self._get_disk_room()))

    def _get_disk_room(self) -> int:
        return self.get_free() + self.get_usage() - self._min_free

    def get_usage(self) -> int:
        """Return the used bytes.

        Raises:
            OSError: the disk fails.
        """
        with self._lock_usage() as fd:
            return _read_number(fd)

    def _add(self, size: int, *, limit: int | None = None) -> bool:
        """Add bytes to the usage, unless that exceeds the limit; return whether it was done."""
        with self._lock_usage() as fd:
            usage = _read_number(fd) + size
            if limit is not None and usage > limit:
                return False
            _write_number(fd, usage)
            return True

    @contextlib.contextmanager
    def _lock_usage(self) -> Iterator[int]:
        """Open and lock the usage file."""
        fd = open_regular(self._folder / "usage", os.O_RDWR | os.O_CREAT)
        try:
            for _ in range(LOCK_TRIES):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.001)  # a blocking lock could wait forever for a stopped process
            else:
                raise BlockingIOError("the cache's usage file stays locked")
            yield fd
        finally:
            os.close(fd)

    # Sweeping.

    def sweep(self, need: int = 0) -> int:
        """Remove leftovers of crashes, count the used bytes, and evict files to make room for need
        bytes and a reserve.

        One process sweeps at a time; in others this does nothing.

        Returns:
            the number of evicted files.

        Raises:
            OSError: the disk fails.
        """
        fd = open_regular(self._folder / "sweep.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._sweep(need)[0].num
        except BlockingIOError:
            return 0
        finally:
            os.close(fd)

    def evict(self, *, size: int | None = None, unused_since: float | None = None) -> Evicted:
        """Sweep, and evict more files than necessary. It waits for a sweep of another process.

        Args:
            size: bytes to keep at most.
            unused_since: seconds since the epoch; files that were not used since are evicted.

        Raises:
            OSError: the disk fails.
        """
        fd = open_regular(self._folder / "sweep.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            evicted, left = self._sweep(0)
            if unused_since is not None:
                old = [s for s in iter_stored(self._folder) if s.used < unused_since]
                removed, _ = self._remove_all(old)
                evicted, left = evicted.plus(removed), left - removed.size
            if size is not None:
                evicted = evicted.plus(self._evict(left - size))
            return evicted
        finally:
            os.close(fd)

    def _sweep(self, need: int) -> tuple[Evicted, int]:
        """Return also the bytes of the files that are left, without those in tmp."""
        need = get_cost(need)
        before = self.get_usage()
        of_writers, stored = self._remove_leftovers(), self._count()
        total = of_writers + stored
        with self._lock_usage() as fd:
            total += _read_number(fd) - before  # changes of other processes during the count
            _write_number(fd, total)
        excess = 0
        if total + need > self.max_size:
            excess = total + need - self.max_size + self.max_size // HYSTERESIS
        missing = self._min_free + need - self.get_free()
        if missing > 0:
            excess = max(excess, missing + self._min_free // HYSTERESIS)
        evicted = self._evict(excess)
        return evicted, stored - evicted.size

    def _evict(self, excess: int) -> Evicted:
        """Remove the least recently used files, excess bytes together.

        If a file cannot be removed, a more recent one is removed instead.
        """
        evicted = Evicted(0, 0)
        refused: set[str] = set()
        for _ in range(EVICTION_ROUNDS):
            if excess <= evicted.size:
                break
            stored = (one for one in iter_stored(self._folder) if one.path not in refused)
            oldest = _find_oldest(stored, excess - evicted.size)
            removed, failed = self._remove_all(oldest)
            evicted = evicted.plus(removed)
            if not failed:
                break
            refused |= failed
        return evicted

    def _count(self) -> int:
        size = num_unproven = 0
        for stored in iter_stored(self._folder):
            size += stored.cost
            num_unproven += is_unproven(stored.path)
        self.num_unproven = num_unproven
        return size

    def _remove_all(self, files: Sequence[Stored]) -> tuple[Evicted, set[str]]:
        """Remove files, and folders that become empty.

        Returns:
            the removed files, and the paths of those that could not be removed.
        """
        evicted = Evicted(0, 0)
        failed: set[str] = set()
        with ThreadPoolExecutor(NUM_REMOVERS) as removers:
            for start in range(0, len(files), BATCH):
                paths = [stored.path for stored in files[start : start + BATCH]]
                before = evicted.size
                for path, removed in zip(paths, removers.map(_remove_file, paths), strict=True):
                    if removed is None:
                        failed.add(path)
                    else:
                        evicted = evicted.plus(removed)
                with contextlib.suppress(OSError):
                    self._add(before - evicted.size)
        return evicted, failed

    def _remove_leftovers(self) -> int:
        """Remove temporary files without a writer; return the bytes of the others.

        Files of other users do not count, so that they cannot evict entries.
        """
        total = 0
        for item in scan(self._folder / "tmp"):
            stored = look_at(item)
            if stored is None:
                if os.path.lexists(item.path):  # else its writer has just finished
                    pass_over(item.path, "not a regular file")
            elif not _is_own(stored.path):
                pass_over(stored.path, "another user's file")
            elif not _remove_unless_locked(stored.path):
                total += stored.cost
        return total


def _remove_file(path: str) -> Evicted | None:
    """Remove a file, and its folder if that becomes empty; return None if the file stays."""
    try:
        size = os.stat(path, follow_symlinks=False).st_size
        os.unlink(path)
    except FileNotFoundError:  # another process has removed it
        return Evicted(0, 0)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # it usually has other files
        os.rmdir(os.path.dirname(path))
    return Evicted(1, get_cost(size))


def _find_oldest(entries: Iterator[Stored], excess: int) -> list[Stored]:
    """Return the least recently used entries that have excess bytes together.

    Memory is proportional to the result, whatever the number of entries.
    """
    heap: list[tuple[float, Stored]] = []  # the most recently used one first
    size = 0
    for stored in entries:
        if excess <= 0:
            break
        if size >= excess and -heap[0][0] <= stored.used:
            continue
        heapq.heappush(heap, (-stored.used, stored))
        size += stored.cost
        while size - heap[0][1].cost >= excess:
            size -= heapq.heappop(heap)[1].cost
    return [stored for _, stored in heap]


def _is_own(path: str) -> bool:
    """Return whether a file in tmp is ours; root writes for the owner of the folder."""
    with contextlib.suppress(OSError):
        user = os.geteuid() or os.stat(os.path.dirname(path)).st_uid
        return os.stat(path, follow_symlinks=False).st_uid == user
    return True  # the file is gone


def _remove_unless_locked(path: str) -> bool:
    """Remove a file unless it is locked; return whether it is gone."""
    try:
        fd = open_regular(path, os.O_RDWR)
    except FileNotFoundError:
        return not os.path.lexists(path)
    except OSError as exc:
        pass_over(path, exc)
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    except OSError as exc:
        pass_over(path, exc)
        return False
    finally:
        os.close(fd)
    return True


def _read_number(fd: int) -> int:
    data = os.pread(fd, 32, 0)
    return int(data) if data.strip().isdigit() else 0


def _write_number(fd: int, number: int) -> None:
    os.pwrite(fd, f"{max(0, number):20d}".encode(), 0)
