"""Return free memory of the C library to the system, on a server with many clients.

Hundreds of clients allocate and free blocks of about 64 KiB between small objects that stay
allocated. glibc keeps the free memory between those objects: a quarter of the process with 500
clients. malloc_trim returns it. musl does not keep such memory and has no such function.
"""

import asyncio
import ctypes
from collections.abc import Callable
from typing import Final, Protocol

INTERVAL: Final = 0.5  # seconds
MIN_READERS: Final = 32  # readers; with fewer, trimming gains little
MIN_FREE: Final = 8 * 1024 * 1024  # bytes; a smaller amount is soon allocated again


class MallocTrimmer(Protocol):
    """The allocator of the process."""

    def count_free(self) -> int:
        """Return the bytes that are free but still held by the allocator."""
        ...

    def trim(self) -> None:
        """Return free memory to the system; this may take some milliseconds."""
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
    """Return the process's allocator; None: it is not glibc, and needs no trimming."""
    try:
        return _Glibc(ctypes.CDLL(None))
    except (AttributeError, OSError):
        return None


async def keep_trimmed(heap: MallocTrimmer, count_readers: Callable[[], int]) -> None:
    """Trim periodically while there are many readers, and once after they have gone.

    Never returns.
    """
    was_many = False
    while True:
        await asyncio.sleep(INTERVAL)
        is_many = count_readers() >= MIN_READERS
        if (is_many or was_many) and heap.count_free() >= MIN_FREE:
            # In a thread: the event loop runs on unless it needs the allocator.
            await asyncio.to_thread(heap.trim)
        was_many = is_many
