"""Memory that the C library holds back goes to the system again, where many clients are served.

Blocks of some 64 KiB of hundreds of clients come and go beside small objects that stay. glibc keeps
what lies between
them: a quarter of the process, with 500 clients. musl does not, and has nothing to call.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final, Protocol

INTERVAL: Final = 0.5  # seconds
MIN_READERS: Final = 32  # with fewer there is little to gain
MIN_FREE: Final = 8 * 1024 * 1024  # bytes; less is needed again before long


class MallocTrimmer(Protocol):
    """The allocator of the process."""

    def count_free(self) -> int:
        """Bytes that are allocated by nobody, and held back."""
        ...

    def trim(self) -> None:
        """Give back what is free; may take some milliseconds."""
        ...


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class _Glibc:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._trim = library.malloc_trim
        self._info = library.mallinfo2
        self._info.restype = _Mallinfo

    def count_free(self) -> int:
        return int(self._info().fordblks)

    def trim(self) -> None:
        self._trim(0)


def find_heap() -> MallocTrimmer | None:
    """Return the process's heap, if it is of a kind that has to be told; None: it is not."""
    try:
        return _Glibc(ctypes.CDLL(None))
    except (AttributeError, OSError):
        return None


async def keep_trimmed(heap: MallocTrimmer, count_readers: Callable[[], int]) -> None:
    """Trim now and then while many are served, and once they have gone; never returns."""
    was_many = False
    while True:
        await asyncio.sleep(INTERVAL)
        is_many = count_readers() >= MIN_READERS
        if (is_many or was_many) and heap.count_free() >= MIN_FREE:
            # In a thread: other threads, and this loop, go on unless they need the allocator.
            await asyncio.to_thread(heap.trim)
        was_many = is_many
