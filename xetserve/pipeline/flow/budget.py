"""How many bytes of file data may be held between upstream and clients.

What a response must hold to make progress at all is always granted; what would merely make it
faster (fetching ahead) is granted only while the process is within its limit. So nobody ever waits
for memory that somebody slower holds, and the excess over the limit is a small constant for each
response.
"""

import mmap
from collections.abc import Callable
from typing import Final

from xetserve.metrics.catalogue import BUDGET_REFUSALS

SLAB_SIZE: Final = 1024 * 1024
SMALL_SLAB_SIZE: Final = 256 * 1024
MAX_FREE_SLABS: Final = 4  # of a size
READER_COST: Final = (
    64 * 1024
)  # bytes: connections, tasks, plans of one response; measured with many slow clients


Slab = bytearray | mmap.mmap

# Populated: one call instead of a page fault for every 4 KiB.
_SLAB_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


class ByteBudget:
    """A ceiling on bytes held, for the whole process. Also recycles the buffers that hold them.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.promised = 0  # bytes that responses may come to keep for later, all together
        self.num_readers = 0  # responses that are being made
        # Whether there are files for fetches that merely make a response faster.
        self.has_files: Callable[[], bool] = lambda: True
        self.reclaim: Callable[[int], None] | None = None  # asked for bytes that are not needed
        self._free: dict[int, list[Slab]] = {SLAB_SIZE: [], SMALL_SLAB_SIZE: []}

    def __repr__(self) -> str:
        return f"<ByteBudget {self.held} of {self.limit}, {self.num_readers} readers>"

    def open_reader(self) -> None:
        """Count a response that is being made."""
        self.num_readers += 1
        self.take(READER_COST)

    def close_reader(self) -> None:
        """Count it no longer."""
        self.num_readers -= 1
        self.give(READER_COST)

    @property
    def share(self) -> int:
        """Bytes that one response may hold for fetching ahead; one more response always fits."""
        return self.limit // (self.num_readers + 1)

    def try_take(self, size: int) -> bool:
        """Take size bytes if that keeps the process within its limit."""
        self._reclaim(size)
        if self.held + size > self.limit:
            BUDGET_REFUSALS.add()
            return False
        self.held += size
        return True

    def take(self, size: int) -> None:
        """Take size bytes whatever the limit says: they are needed to go on."""
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
            # Pages of its own, which go back when it goes. In a heap, where slabs of many clients
            # come and go beside small objects, half of what was given back would stay with the
            # process.
            try:
                return mmap.mmap(-1, size, flags=_SLAB_FLAGS)
            except OSError:  # the system counts mappings, too
                pass
        return bytearray(size)

    def recycle(self, slab: Slab) -> None:
        """Take back a buffer that nothing reads or writes any more."""
        free = self._free.get(len(slab))
        if free is not None and len(free) < MAX_FREE_SLABS:
            free.append(slab)
