"""Limit the bytes of file data that are held between upstream and clients.

The budget always grants what a response needs to make progress. It grants memory for fetching
ahead, which only makes a response faster, while the process is within its limit. So no response
waits for memory that a slower one holds, and each response exceeds the limit by a small constant at
most.
"""

import mmap
from collections.abc import Callable
from typing import Final

from xetserve.metrics.catalogue import BUDGET_REFUSALS

SLAB_SIZE: Final = 1024 * 1024
SMALL_SLAB_SIZE: Final = 256 * 1024
MAX_FREE_SLABS: Final = 4  # of a size
# Bytes for connections, tasks and plans of one response, measured with many slow clients.
READER_COST: Final = 64 * 1024

Slab = bytearray | mmap.mmap

# MAP_POPULATE: one system call instead of a page fault for every 4 KiB.
_SLAB_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


class ByteBudget:
    """A limit on the bytes that a process holds. It also recycles the buffers that hold them.

    Args:
        limit: bytes.

    held: bytes that are taken now.
    promised: bytes that all responses together plan to keep for later (kept_chunks.py).
    num_readers: responses in progress.
    has_files: returns whether file descriptors are left for fetching ahead.
    reclaim: called with the number of bytes to free, before the budget is exceeded.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.promised = 0
        self.num_readers = 0
        self.has_files: Callable[[], bool] = lambda: True
        self.reclaim: Callable[[int], None] | None = None
        self._free: dict[int, list[Slab]] = {SLAB_SIZE: [], SMALL_SLAB_SIZE: []}

    def __repr__(self) -> str:
        return f"<ByteBudget {self.held} of {self.limit}, {self.num_readers} readers>"

    def open_reader(self) -> None:
        """Count a response that begins."""
        self.num_readers += 1
        self.take(READER_COST)

    def close_reader(self) -> None:
        """Count a response that has ended."""
        self.num_readers -= 1
        self.give(READER_COST)

    @property
    def share(self) -> int:
        """Bytes that one response may hold for fetching ahead, with room for one more response."""
        return self.limit // (self.num_readers + 1)

    def try_take(self, size: int) -> bool:
        """Take size bytes if the process stays within its limit; return whether it did."""
        self._reclaim(size)
        if self.held + size > self.limit:
            BUDGET_REFUSALS.add()
            return False
        self.held += size
        return True

    def take(self, size: int) -> None:
        """Take size bytes beyond the limit, if necessary: the response needs them to go on."""
        self._reclaim(size)
        self.held += size

    def _reclaim(self, size: int) -> None:
        if self.reclaim is not None and self.held + size > self.limit:
            self.reclaim(self.held + size - self.limit)

    def give(self, size: int) -> None:
        """Give bytes back."""
        self.held -= size

    def make_slab(self, size: int) -> Slab:
        """Return a buffer of size bytes with any content."""
        free = self._free.get(size)
        if free:
            return free.pop()
        if size >= SMALL_SLAB_SIZE:
            # A mapping of its own returns its pages to the system when it is freed. On the heap,
            # between small objects, half of the freed memory would stay with the process.
            try:
                return mmap.mmap(-1, size, flags=_SLAB_FLAGS)
            except OSError:  # the system limits the number of mappings
                pass
        return bytearray(size)

    def recycle(self, slab: Slab) -> None:
        """Keep a buffer for reuse. Nothing may read or write it any more."""
        free = self._free.get(len(slab))
        if free is not None and len(free) < MAX_FREE_SLABS:
            free.append(slab)
