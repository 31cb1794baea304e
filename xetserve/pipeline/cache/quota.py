"""Room in the folder of the cache: the bytes that are used, and what goes when they are too many.
Blocks; for threads.

    DIR/usage        bytes of all files in whole blocks, those in tmp included; a guess that
                     sweeping corrects
    DIR/sweep.lock   held by whoever sweeps

Whoever is about to write takes room first, and gives it back when nothing came of it. The least
recently used files go first, whatever they are: the time of modification is when an entry was last
used, give or take a minute.
"""

import contextlib
import fcntl
import heapq
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.regular_files import open_regular, pass_over, scan
from xetserve.pipeline.cache.entry import is_unproven
from xetserve.pipeline.cache.layout import Stored, get_cost, iter_stored, look_at

HYSTERESIS: Final = 10  # a full cache is emptied by a tenth, so that sweeping stays rare
MIN_FREE_FILES: Final = 1000  # inodes of the file system that are left to others
EVICTION_ROUNDS: Final = 8  # walks over the folder, where files cannot be removed
LOCK_TRIES: Final = 50  # a millisecond each; the holder needs microseconds


class Evicted(NamedTuple):
    """Files that were removed, and their bytes."""

    num: int
    size: int


class Quota:
    """How much all files of a cache have, and may have; whichever processes write them.

    Args:
        folder: a prepared one, see store.py.
        max_size: bytes that all files together may have.
        min_free: bytes of the file system that stay free.

    num_unproven: entries for which nothing spoke when they were last counted here.
    """

    def __init__(self, folder: Path, *, max_size: int, min_free: int) -> None:
        self.max_size = max_size
        self.num_unproven = 0
        self._folder = folder
        self._min_free = min_free

    # The account.

    def take(self, size: int) -> bool:
        """Account for bytes that come, unless there is no room for them.

        Raises:
            OSError: the disk fails.
        """
        cost = get_cost(size)
        return self.get_free() - cost >= self._min_free and self._add(cost, limit=self.max_size)

    def give_back(self, size: int) -> None:
        """Account for bytes that have gone.

        Raises:
            OSError: the disk fails.
        """
        self._add(-get_cost(size))

    def remove(self, path: str) -> int:
        """Remove a file; gives 1, or 0 where somebody else has done it or the disk refuses."""
        with contextlib.suppress(OSError):
            size = os.stat(path, follow_symlinks=False).st_size
            os.unlink(path)
            with contextlib.suppress(OSError):
                self.give_back(size)
            return 1
        return 0

    def get_free(self) -> int:
        """Return the bytes that the file system has left; none, if it can hardly have more files.

        Raises:
            OSError: the disk fails.
        """
        stat = os.statvfs(self._folder)
        if stat.f_files and stat.f_favail < MIN_FREE_FILES:
            return 0
        return stat.f_bavail * stat.f_frsize

    def get_usage(self) -> int:
        """Return the bytes that are accounted for.

        Raises:
            OSError: the disk fails.
        """
        with self._lock_usage() as fd:
            return _read_number(fd)

    def _add(self, size: int, *, limit: int | None = None) -> bool:
        """Account for bytes that come or go, unless that passed the limit."""
        with self._lock_usage() as fd:
            usage = _read_number(fd) + size
            if limit is not None and usage > limit:
                return False
            _write_number(fd, usage)
            return True

    @contextlib.contextmanager
    def _lock_usage(self) -> Iterator[int]:
        """Open and lock the file with the account."""
        fd = open_regular(self._folder / "usage", os.O_RDWR | os.O_CREAT)
        try:
            for _ in range(LOCK_TRIES):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.001)  # in a thread; a blocking lock could hang with a stopped process
            else:
                raise BlockingIOError("the cache's usage file stays locked")
            yield fd
        finally:
            os.close(fd)

    # Sweeping.

    def sweep(self, need: int = 0) -> int:
        """Remove what crashes have left, count, and evict until there is room for need bytes, and
        more.

        One process sweeps at a time; for others this does nothing.

        Returns:
            the number of evicted files.

        Raises:
            OSError: the disk fails.
        """
        fd = open_regular(self._folder / "sweep.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._sweep(need)
        except BlockingIOError:
            return 0
        finally:
            os.close(fd)

    def evict(self, *, size: int | None = None, unused_since: float | None = None) -> Evicted:
        """Sweep, and evict more than has to go. Waits for others who sweep.

        Args:
            size: bytes that may stay.
            unused_since: what was not used since then goes, in seconds since the epoch.

        Raises:
            OSError: the disk fails.
        """
        fd = open_regular(self._folder / "sweep.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = self._count()
            num = self._sweep(0)
            if unused_since is not None:
                old = [s for s in iter_stored(self._folder) if s.used < unused_since]
                num += self._remove_all(old)
            if size is not None:
                num += self._evict(self._count() - size)
            return Evicted(num, max(0, before - self._count()))
        finally:
            os.close(fd)

    def _sweep(self, need: int) -> int:
        need = get_cost(need)
        before = self.get_usage()
        total = self._remove_leftovers() + self._count()
        with self._lock_usage() as fd:
            total += _read_number(fd) - before  # what others did while we counted
            _write_number(fd, total)
        excess = 0
        if total + need > self.max_size:
            excess = total + need - self.max_size + self.max_size // HYSTERESIS
        missing = self._min_free + need - self.get_free()
        if missing > 0:
            excess = max(excess, missing + self._min_free // HYSTERESIS)
        return self._evict(excess)

    def _evict(self, excess: int) -> int:
        """Remove the files that were not used for longest, until excess bytes are gone; gives their
        number.

        Files that cannot be removed are passed over, and later ones go instead.
        """
        count = 0
        refused: set[str] = set()
        for _ in range(EVICTION_ROUNDS):
            stored = (one for one in iter_stored(self._folder) if one.path not in refused)
            num_refused = len(refused)
            for one in _find_oldest(stored, excess):
                count += self._remove_all([one])
                if os.path.lexists(one.path):
                    refused.add(one.path)
                else:
                    excess -= one.cost
            if len(refused) == num_refused:
                break
        return count

    def _count(self) -> int:
        size = num_unproven = 0
        for stored in iter_stored(self._folder):
            size += stored.cost
            num_unproven += is_unproven(stored.path)
        self.num_unproven = num_unproven
        return size

    def _remove_all(self, evicted: Iterable[Stored]) -> int:
        """Remove files, and folders that are empty then; gives the number of files."""
        count = 0
        for stored in evicted:
            count += self.remove(stored.path)
            with contextlib.suppress(OSError):  # others are in there, mostly
                os.rmdir(os.path.dirname(stored.path))
        return count

    def _remove_leftovers(self) -> int:
        """Remove temporary files that nobody writes any more; gives the bytes of the others.

        Files of other users are not ours: they must not push out what is.
        """
        total = 0
        for item in scan(self._folder / "tmp"):
            stored = look_at(item)
            if stored is None:
                pass_over(item.path, "not a regular file")
            elif not _is_own(stored.path):
                pass_over(stored.path, "another user's file")
            elif not _remove_unless_locked(stored.path):
                total += stored.cost
        return total


def _find_oldest(entries: Iterator[Stored], excess: int) -> list[Stored]:
    """Find the entries that were not used for longest and have excess bytes together.

    Holds only about those, whatever the number of entries.
    """
    heap: list[tuple[float, Stored]] = []  # the latest of them first
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
    with contextlib.suppress(OSError):
        return os.stat(path, follow_symlinks=False).st_uid == os.geteuid()
    return True  # it has gone


def _remove_unless_locked(path: str) -> bool:
    """Remove a file unless somebody has locked it; tells whether it is gone."""
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
