"""Reading stored chunk records: a block at a time, and nothing that was not compared with its hash.

Between two calls at most one record is held, so that many slow clients cost no memory; reading ahead is left to the kernel, whose
page cache is made for it.
"""

import asyncio
import os

import aiofiles
from aiofiles.threadpool.binary import AsyncFileIO

from xetserve.errors import FormatError
from xetserve.pipeline.cache_store import Segment
from xetserve.pipeline.cache_tee import BLOCK_SIZE, Desk


class StoredBody:
    """The packed bytes of a chunk range, out of one entry or several."""

    def __init__(self, desk: Desk, segments: tuple[Segment, ...]) -> None:
        self._desk = desk
        self._segments = segments
        self._number = 0  # of the segment that is being read
        self._chunk = segments[0].chunks.start  # the next one to read
        self._rest = memoryview(b"")  # read, compared, not given out yet
        self._file: AsyncFileIO | None = None
        self._reading: asyncio.Future[bytes] | None = None

    @property
    def segment(self) -> Segment:
        """The segment that is being read."""
        return self._segments[self._number]

    async def receive_into(self, view: memoryview, timeout: float) -> int:
        """Receive into view; 0 at the end.

        Args:
            timeout: seconds that the disk may need.

        Raises:
            FormatError: the entry is damaged.
            OSError: it is gone, or the disk fails; TimeoutError: or hangs.
        """
        if not self._rest:
            async with asyncio.timeout(timeout):
                self._rest = memoryview(await self._read_block(len(view)))
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _read_block(self, size: int) -> bytes:
        """Read as many records as fit into size bytes, or one; none at the end."""
        if self._chunk == self.segment.chunks.end:
            if self._number + 1 == len(self._segments):
                return b""
            await self.aclose()
            self._number += 1
        segment = self.segment
        if self._file is None:
            self._file = await aiofiles.open(
                segment.path, "rb", buffering=0, executor=self._desk.executor
            )
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            if start := segment.entry.offset_of(self._chunk):
                await self._file.seek(start)
        first, entry = self._chunk, segment.entry
        last = entry.find_last(first, segment.chunks.end, min(size, BLOCK_SIZE))
        wanted = entry.offset_of(last) - entry.offset_of(first)
        data = await self._read(self._file, wanted)
        while len(data) < wanted and (more := await self._read(self._file, wanted - len(data))):
            data += more
        if not entry.is_intact(memoryview(data), first, last):
            raise FormatError(f"damaged in chunks {first} to {last}")
        self._chunk = last
        return data

    async def _read(self, file: AsyncFileIO, size: int) -> bytes:
        # A thread cannot be called back: the read goes on when this is cancelled, and aclose has to know.
        self._reading = asyncio.ensure_future(file.read(size))
        return await asyncio.shield(self._reading)

    async def aclose(self) -> None:
        """Close the file, once nobody reads it any more: its descriptor would soon be another's."""
        file, self._file = self._file, None
        if file is not None:
            if self._reading is not None:
                await asyncio.gather(self._reading, return_exceptions=True)
            await file.close()
