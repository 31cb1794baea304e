"""Reading stored chunk records: a block at a time, and nothing that was not compared with its hash.

A read takes a block, and what the caller has no room for waits for the next call. Where many do so at once, the others
read only what fits, or one record, so that a thousand slow clients do not hold a thousand blocks. Reading ahead is left to
the kernel, whose page cache is made for it.
"""

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiofiles
from aiofiles.threadpool.binary import AsyncFileIO

from xetserve.errors import FormatError
from xetserve.pipeline.cache_store import Segment
from xetserve.pipeline.cache_tee import BLOCK_SIZE, MAX_HELD, Desk

T = TypeVar("T")


class StoredBody:
    """The packed bytes of a chunk range, out of one entry or several."""

    def __init__(self, desk: Desk, segments: tuple[Segment, ...]) -> None:
        self._desk = desk
        self._segments = segments
        self._number = 0  # of the segment that is being read
        self._chunk = segments[0].chunks.start  # the next one to read
        self._rest = memoryview(b"")  # read, compared, not given out yet
        self._block: bytearray | None = None  # where that lies
        self._is_holding = False  # whether the block counts as held
        self._file: AsyncFileIO | None = None
        self._work: asyncio.Task[Any] | None = None  # what a thread does, or has done

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
            # Not into view itself: a thread would go on writing there after this was cancelled.
            async with asyncio.timeout(timeout):
                if not await self._open_next():
                    return 0
                await self._read_block(len(view))
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        if not self._rest:
            self._let_go()
        elif not self._is_holding and self._block is not None:
            self._rest, block = memoryview(bytes(self._rest)), self._block
            self._block = None
            self._desk.give_block(block)
        return count

    async def _open_next(self) -> bool:
        """Have the file open that holds the next chunk; False: there is no next one."""
        if self._chunk == self.segment.chunks.end:
            if self._number + 1 == len(self._segments):
                return False
            await self._close_file()
            self._number += 1
        if self._file is None:
            await self._finish(self._open(self.segment))
        return True

    async def _open(self, segment: Segment) -> None:
        self._file = file = await aiofiles.open(
            segment.path, "rb", buffering=0, executor=self._desk.executor
        )
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        if start := segment.entry.offset_of(self._chunk):
            await file.seek(start)

    async def _read_block(self, size: int) -> None:
        """Read a block of records, or as many as fit into size bytes if others hold many blocks already."""
        desk, file = self._desk, self._file
        assert file is not None
        self._is_holding = desk.num_held < MAX_HELD
        desk.num_held += self._is_holding
        block = desk.take_block()
        try:
            view = memoryview(block)
            segment, first = self.segment, self._chunk
            entry = segment.entry
            limit = BLOCK_SIZE if self._is_holding else min(size, BLOCK_SIZE)
            last = entry.find_last(first, segment.chunks.end, limit)
            view = view[: entry.offset_of(last) - entry.offset_of(first)]
            filled = 0
            while filled < len(view):
                count = await self._finish(file.readinto(view[filled:]))
                if not count:
                    break
                filled += count
            if not entry.is_intact(view[:filled], first, last):
                raise FormatError(f"damaged in chunks {first} to {last}")
        except BaseException:
            desk.num_held -= self._is_holding  # the block is lost: a thread may be writing there
            raise
        self._block, self._rest = block, view
        self._chunk = last

    def _let_go(self) -> None:
        """Give the block back."""
        if self._block is not None:
            self._desk.give_block(self._block)
            self._block = None
            self._desk.num_held -= self._is_holding
        self._rest = memoryview(b"")

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what a thread does; it goes on when this is cancelled, and closing has to know."""
        self._work = task = asyncio.ensure_future(work)
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """Close, once nobody reads the file any more: its descriptor would soon be another's."""
        self._let_go()
        await self._close_file()

    async def _close_file(self) -> None:
        if self._work is not None:
            await asyncio.gather(self._work, return_exceptions=True)
        file, self._file = self._file, None
        if file is not None:
            await file.close()
