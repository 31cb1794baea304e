"""Read stored chunk records, and compare them with their checks.

The checks are skipped if the caller compares every chunk with a proven file.

Records in the kernel's page cache are read at once, directly into the caller's buffer. For others,
a thread reads and checks one block while the caller takes the previous one. Only MAX_HELD readers
hold blocks; the others read just the bytes that the caller has room for, or one record. So a
thousand slow clients do not hold a thousand blocks. Reading further ahead is left to the kernel.
"""

import asyncio
import os
from typing import Final, NamedTuple

import aiofiles
import aiofiles.os
from aiofiles.threadpool.binary import AsyncFileIO

from xetserve.errors import FormatError
from xetserve.pipeline.cache.entry import EntryIndex
from xetserve.pipeline.cache.indexes import open_entry
from xetserve.pipeline.cache.store import Segment
from xetserve.pipeline.cache.write import BLOCK_SIZE, MAX_HELD, DiskWorkers

# Read from the page cache or not at all (Linux 4.14). Older versions of musl do not define it.
PAGE_CACHE_ONLY: Final[int | None] = getattr(os, "RWF_NOWAIT", None)


class _Block(NamedTuple):
    """Records that a thread reads into a buffer.

    last: the chunk after the last one.
    is_held: whether the block counts towards MAX_HELD.
    """

    buffer: bytearray
    size: int
    last: int
    is_held: bool
    loading: asyncio.Task[None]


def _load(
    fd: int, view: memoryview, entry: EntryIndex, first: int, last: int, checks: bool
) -> None:
    """Read records [first, last) into view, which has their size; runs in a thread."""
    start = entry.offset_of(first)
    filled = 0
    while filled < len(view):
        count = os.preadv(fd, [view[filled:]], start + filled)
        if not count:
            break
        filled += count
    if filled < len(view) or (checks and not entry.is_intact(view, first, last)):
        raise _damaged(first, last)


def _damaged(first: int, last: int) -> FormatError:
    return FormatError(f"damaged in chunks {first} to {last}")


_load_async = aiofiles.os.wrap(_load)


class StoredBody:
    """Reads the packed records of a chunk range from the entries that hold them.

    Args:
        checks: whether to compare records with their checks; False if the caller verifies them.
    """

    def __init__(
        self, disk_workers: DiskWorkers, segments: tuple[Segment, ...], *, checks: bool = True
    ) -> None:
        self._disk_workers = disk_workers
        self._checks = checks
        self._segments = segments
        self._number = 0  # of the segment that is being read
        self._chunk = segments[0].chunks.start  # the next one to load
        self._block: _Block | None = None  # the caller takes its records
        self._rest = memoryview(b"")  # of its bytes, which the caller has not taken yet
        self._next: _Block | None = None
        self._file: AsyncFileIO | None = None
        self._opening: asyncio.Task[None] | None = None

    @property
    def segment(self) -> Segment:
        """The segment that is being read."""
        return self._segments[self._number]

    async def receive_into(self, view: memoryview, timeout: float) -> int:
        """Receive into view; 0 at the end.

        Args:
            timeout: seconds.

        Raises:
            FormatError: the entry is damaged.
            TimeoutError: the disk hangs.
            OSError: the entry is gone, or the disk fails.
        """
        if not self._rest:
            self._let_go()
            if self._next is None:
                if self._file is None or self._chunk == self.segment.chunks.end:
                    async with asyncio.timeout(timeout):
                        if not await self._open_next():
                            return 0
                if count := self._receive_cached(view):
                    await asyncio.sleep(0)  # let other tasks run
                    return count
                self._load_next(len(view))
            async with asyncio.timeout(timeout):
                await self._take_block()
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        if not self._rest:
            self._let_go()
        elif self._block is not None and not self._block.is_held:
            rest = memoryview(bytes(self._rest))
            self._let_go()
            self._rest = rest
        return count

    def _receive_cached(self, view: memoryview) -> int:
        """Receive whole records from the page cache, or the beginning of one.

        Returns 0 if a thread has to read them from disk.

        Raises:
            FormatError: the entry is damaged.
        """
        if PAGE_CACHE_ONLY is None or self._file is None:
            return 0
        entry, first = self.segment.entry, self._chunk
        last = entry.find_last(first, self.segment.chunks.end, len(view))
        start = entry.offset_of(first)
        size = entry.offset_of(last) - start
        fits = size <= len(view)
        records = view[:size] if fits else memoryview(bytearray(size))
        try:
            count = os.preadv(self._file.fileno(), [records], start, PAGE_CACHE_ONLY)
        except OSError:  # not in the page cache, or not supported; a thread reads it instead
            return 0
        if count < size:
            return 0
        if self._checks and not entry.is_intact(records, first, last):
            raise _damaged(first, last)
        self._chunk = last
        if fits:
            return size
        view[:] = records[: len(view)]
        self._rest = records[len(view) :]
        return len(view)

    async def _take_block(self) -> None:
        """Wait for the block that is being loaded, and start loading the next one."""
        block = self._next
        assert block is not None
        # The thread has a buffer of its own: it would go on writing after this was cancelled.
        await asyncio.shield(block.loading)
        self._block, self._next = block, None
        self._rest = memoryview(block.buffer)[: block.size]
        if block.is_held and self._chunk < self.segment.chunks.end and self._may_hold:
            self._load_next(BLOCK_SIZE)

    async def _open_next(self) -> bool:
        """Open the file with the next chunk; return False if there is none."""
        if self._chunk == self.segment.chunks.end:
            if self._number + 1 == len(self._segments):
                return False
            await self._close_file()
            self._number += 1
        if self._file is None:
            # Opening goes on when this is cancelled, and _close_file waits for it.
            self._opening = asyncio.ensure_future(self._open(self.segment))
            await asyncio.shield(self._opening)
        return True

    async def _open(self, segment: Segment) -> None:
        self._file = file = await aiofiles.open(
            segment.path,
            "rb",
            buffering=0,
            opener=open_entry,
            executor=self._disk_workers.executor,
        )
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def _may_hold(self) -> bool:
        return self._disk_workers.num_held < MAX_HELD

    def _load_next(self, size: int) -> None:
        """Start loading a block of records in a thread; only size bytes if MAX_HELD are held."""
        disk_workers, file = self._disk_workers, self._file
        assert file is not None
        is_held = self._may_hold
        disk_workers.num_held += is_held
        segment, first = self.segment, self._chunk
        entry = segment.entry
        limit = BLOCK_SIZE if is_held else min(size, BLOCK_SIZE)
        last = entry.find_last(first, segment.chunks.end, limit)
        wanted = entry.offset_of(last) - entry.offset_of(first)
        buffer = disk_workers.take_block()
        view = memoryview(buffer)[:wanted]
        loading = asyncio.ensure_future(
            _load_async(
                file.fileno(),
                view,
                entry,
                first,
                last,
                self._checks,
                executor=disk_workers.executor,
            )
        )
        self._chunk = last
        self._next = _Block(buffer, wanted, last, is_held, loading)

    def _let_go(self) -> None:
        """Return the current block to the pool."""
        block, self._block = self._block, None
        self._rest = memoryview(b"")
        if block is not None:
            self._disk_workers.num_held -= block.is_held
            self._disk_workers.give_block(block.buffer)

    async def aclose(self) -> None:
        """Close the file, once no thread reads it any more: its descriptor would be reused."""
        self._let_go()
        await self._close_file()

    async def _close_file(self) -> None:
        block, self._next = self._next, None
        if block is not None:
            self._disk_workers.num_held -= block.is_held
            # If the thread hangs, the buffer is not reused, since it may still write there.
            await asyncio.gather(block.loading, return_exceptions=True)
            self._disk_workers.give_block(block.buffer)
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        file, self._file = self._file, None
        if file is not None:
            await file.close()
