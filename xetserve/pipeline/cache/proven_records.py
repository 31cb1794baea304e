"""Read the records of proven entries, whose chunk hashes are known, as they are.

Nothing is decoded: the caller compares the hashes with the file before it reads the first record,
and every record is compared with its check as it leaves the disk. See pipeline/packed_reader.py,
which says why that is enough.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from xetserve.errors import FormatError
from xetserve.metrics.catalogue import CACHE_BYTES
from xetserve.pipeline.cache.indexes import open_entry
from xetserve.pipeline.cache.read import PAGE_CACHE_ONLY
from xetserve.pipeline.cache.store import Segment

MAX_EXCESS: Final = 4  # the buffer may be so many times as large as what is read into it


class StoredRecords:
    """The records of a chunk range, in order. See ProvenRecords in pipeline/proven_store.py.

    Args:
        hashes: of their chunks.
        on_failure: called with the segment that could not be read.
        close_later: calls a function once a future is done.
    """

    def __init__(
        self,
        segments: tuple[Segment, ...],
        hashes: bytes,
        executor: Executor,
        on_failure: Callable[[Segment, Exception], object],
        close_later: Callable[["asyncio.Future[None]", Callable[[], None]], object],
    ) -> None:
        self.hashes = hashes
        self._segments = segments
        self._executor = executor
        self._on_failure = on_failure
        self._close_later = close_later
        self._number = 0  # of the segment that is being read
        self._chunk = segments[0].chunks.start  # the next one
        self._fd: int | None = None
        self._buffer = bytearray()
        self._reading: asyncio.Future[None] | None = None

    async def read(self, size: int, timeout: float) -> tuple[memoryview, int]:
        """See ProvenRecords."""
        if self._chunk == self._segments[self._number].chunks.end:
            self._number += 1
            self._close_file()
        segment, first = self._segments[self._number], self._chunk
        last = segment.entry.find_last(first, segment.chunks.end, size)
        view = self._take_view(segment.entry.offset_of(last) - segment.entry.offset_of(first))
        try:
            if not self._load_cached(segment, first, last, view):
                # The thread goes on when this is cancelled, and close waits for it.
                self._reading = asyncio.get_running_loop().run_in_executor(
                    self._executor, self._load, segment, first, last, view
                )
                async with asyncio.timeout(timeout):
                    await asyncio.shield(self._reading)
        except (FormatError, OSError) as exc:
            self._on_failure(segment, exc)
            raise
        CACHE_BYTES.add(amount=len(view))
        self._chunk = last
        return view, last - first

    def _take_view(self, size: int) -> memoryview:
        """Return a part of the buffer, which the caller has done with: fresh memory costs a page
        fault for each 4 KiB.
        """
        if not size <= len(self._buffer) <= MAX_EXCESS * size:
            self._buffer = bytearray(size)
        return memoryview(self._buffer)[:size]

    def _load_cached(self, segment: Segment, first: int, last: int, view: memoryview) -> bool:
        """Read records from the page cache; False: a thread has to read them."""
        if PAGE_CACHE_ONLY is None or self._fd is None:
            return False
        try:
            count = os.preadv(self._fd, [view], segment.entry.offset_of(first), PAGE_CACHE_ONLY)
        except OSError:  # not in the page cache, or not supported
            return False
        if count < len(view):
            return False
        _check(segment, first, last, view)
        return True

    def _load(self, segment: Segment, first: int, last: int, view: memoryview) -> None:
        """Open the file if it is not, and read records; runs in a thread."""
        if self._fd is None:
            self._fd = open_entry(segment.path)
        start, filled = segment.entry.offset_of(first), 0
        while filled < len(view):
            count = os.preadv(self._fd, [view[filled:]], start + filled)
            if not count:
                raise FormatError("the file is truncated")
            filled += count
        _check(segment, first, last, view)

    def close(self) -> None:
        """Close the file, once no thread reads it any more: its descriptor would be reused."""
        if self._reading is not None and not self._reading.done():
            self._close_later(self._reading, self._close_file)
        else:
            self._close_file()

    def _close_file(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _check(segment: Segment, first: int, last: int, view: memoryview) -> None:
    """Compare records with their checks.

    Raises:
        FormatError: one differs.
    """
    if not segment.entry.is_intact(view, first, last):
        raise FormatError(f"damaged in chunks {first} to {last}")
