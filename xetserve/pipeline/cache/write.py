"""Write data into the cache as it passes, and hardly delay the download.

The download feeds an EntryWriter, which only copies the data. A thread computes the checks of the
copies and writes them, in one job. If it falls behind, the download waits for it, for a fifth of
the download's time at most. If the disk is slower than that, if memory or room is short or the disk
fails, the writer gives up, and the download goes on without it.

The thread also finds out whether the data is what was planned. If it is not, nothing is stored. If
a download ends early, the whole records that it has received are stored.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Final, TypeVar

from xetserve.base.waiters import wake
from xetserve.errors import FormatError
from xetserve.metrics.catalogue import CACHE_ABANDONED, CACHE_EVICTIONS, CACHE_STORED_BYTES
from xetserve.pipeline.cache.coverage import Coverage
from xetserve.pipeline.cache.entry import EntryIndex, EntryKey, Indexer, Standing
from xetserve.pipeline.cache.health import CacheHealth
from xetserve.pipeline.cache.store import CacheStore
from xetserve.pipeline.cache.temporary import Temporary
from xetserve.xet.hashes import format_hash

logger = logging.getLogger(__name__)

BLOCK_SIZE: Final = 1024 * 1024  # bytes of one write; smaller writes cost more CPU time
MAX_BLOCKS: Final = 32  # of the whole process
MAX_WRITER_BLOCKS: Final = 12  # of one writer; a fetch may receive 1 MiB per turn of the loop
MAX_FREE_BLOCKS: Final = 4
FREE_BLOCKS: Final = 2  # blocks that the next bytes may fill
MAX_DELAY_SHARE: Final = 0.25  # a download waits at most this share of its other time
MIN_DELAY: Final = 0.25  # seconds that a download may wait in any case
MIN_CUT_SIZE: Final = 256 * 1024  # bytes; less of a range that ended early is not stored
MAX_HELD: Final = 16  # blocks of readers; further readers need more calls
MAX_WRITERS: Final = 64  # each has an open file
LOG_PAUSE: Final = 60.0  # seconds between two warnings

T = TypeVar("T")

_writev = os.writev


class DiskWorkers:
    """The threads, memory and open files that all writers and readers of a process share.

    Args:
        executor: its threads run all blocking calls.
    """

    def __init__(
        self, store: CacheStore, executor: Executor, health: CacheHealth | None = None
    ) -> None:
        self.store = store
        self.executor = executor
        self.num_blocks = 0
        self.num_full = 0  # of the blocks, those that wait or are being written
        self.writers: set[EntryWriter] = set()
        self.num_held = 0  # blocks that readers hold from one call to the next
        self._free: list[bytearray] = []
        self._written: asyncio.Future[None] | None = None
        self._sweeping = asyncio.Lock()
        self._last_warning = -LOG_PAUSE
        self.health = health or CacheHealth(store.folder)

    def take_block(self) -> bytearray:
        """Return a buffer of BLOCK_SIZE bytes with any content; a new one costs 256 page faults."""
        return self._free.pop() if self._free else bytearray(BLOCK_SIZE)

    def give_block(self, block: bytearray) -> None:
        """Keep a buffer for reuse; no task or thread may use it any more."""
        if len(block) == BLOCK_SIZE and len(self._free) < MAX_FREE_BLOCKS:
            self._free.append(block)

    def free_blocks(self, num_blocks: int, num_full: int) -> None:
        """Release blocks, and wake the downloads that wait for one.

        Args:
            num_full: of the blocks, those that were full.
        """
        self.num_blocks -= num_blocks
        self.num_full -= num_full
        if self._written is not None:
            self._written.set_result(None)
            self._written = None

    async def wait_written(self, timeout: float) -> None:
        """Wait until some block is written, timeout seconds at most."""
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._written,), timeout=timeout)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run a function of the store in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.executor, partial(function, *args))

    async def create(self, size: int) -> Temporary | None:
        """Create a file for an entry of size bytes, and evict others if necessary.

        Raises:
            OSError: the disk fails.
        """
        temporary = await self.run(self.store.create, size)
        if temporary is not None:
            return temporary
        async with self._sweeping:
            temporary = await self.run(self.store.create, size)
            if temporary is None:
                await self.sweep_now(size)
                temporary = await self.run(self.store.create, size)
            if temporary is None:
                self.health.doubt()
            return temporary

    async def sweep(self) -> None:
        """Remove leftovers of crashes, and evict files beyond the limit.

        Raises:
            OSError: the disk fails.
        """
        async with self._sweeping:
            await self.sweep_now(0)

    async def sweep_now(self, need: int) -> None:
        """Make room for need bytes; the caller holds the lock for it."""
        evicted = await self.run(self.store.quota.sweep, need)
        CACHE_EVICTIONS.add(amount=evicted)
        logger.debug("cache: swept, %d entries evicted", evicted)

    def warn(self, message: str, *args: object) -> None:
        """Log a failure of the disk, at most once in LOG_PAUSE seconds as a warning.

        While the cache is known to keep nothing, that has been logged already.
        """
        now = time.monotonic()
        if self.health.is_good and now - self._last_warning >= LOG_PAUSE:
            self._last_warning = now
            logger.warning(message, *args)
        else:
            logger.debug(message, *args)


class EntryWriter:
    """Stores the bytes of one fetch range as they pass. Close it after the last ones.

    Args:
        coverage: tracks which of these chunks are proven.
        on_placed: called with the path of the entry once it is in place.

    task: writes; it ends by itself once the writer is closed or abandoned.
    """

    def __init__(
        self,
        disk_workers: DiskWorkers,
        key: EntryKey,
        coverage: Coverage,
        on_placed: Callable[[str], object],
    ) -> None:
        self.key = key
        self.coverage = coverage
        self._on_placed = on_placed
        self._disk_workers = disk_workers
        self._indexer = Indexer(key)  # only one job at a time uses it
        self._num_fed = 0  # bytes
        self._waiting: list[tuple[bytearray, int]] = []  # full blocks, and the bytes in them
        self._num_blocks = 0
        self._num_full = 0  # of the blocks, those that wait or are being written
        self._block = bytearray()
        self._filled = 0
        self._is_closed = False  # no more bytes will be fed
        self._started = time.monotonic()
        self._delay = 0.0  # seconds that the download has waited
        self._is_wanted = True
        self._waiter: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None] | None = None
        if key.file_size > disk_workers.store.max_entry_size:
            self.abandon("too large")
        elif len(disk_workers.writers) >= MAX_WRITERS:
            self.abandon("too many")
        else:
            disk_workers.writers.add(self)
            self.task = asyncio.get_running_loop().create_task(self._run())

    def __repr__(self) -> str:
        state = "wanted" if self._is_wanted else "abandoned"
        return f"<EntryWriter {format_hash(self.key.xorb_hash)[:8]} {self.key.chunks}, {state}>"

    @property
    def is_wanted(self) -> bool:
        """Whether the bytes are going to be stored."""
        return self._is_wanted

    @property
    def num_waiting(self) -> int:
        """Full blocks that are not being written yet."""
        return len(self._waiting)

    @property
    def _is_behind(self) -> bool:
        """Whether the next bytes may find no free block, and the disk is about to free one."""
        disk_workers = self._disk_workers
        if self._num_blocks >= MAX_WRITER_BLOCKS - FREE_BLOCKS:
            return self._num_full > 0
        return disk_workers.num_blocks >= MAX_BLOCKS - FREE_BLOCKS and disk_workers.num_full > 0

    async def catch_up(self) -> None:
        """Wait until there are blocks for the next bytes, or the download has waited too long."""
        while self._is_wanted and self._is_behind:
            now = time.monotonic()
            passed = now - self._started - self._delay
            left = MIN_DELAY + passed * MAX_DELAY_SHARE - self._delay
            if left <= 0:
                return
            await self._disk_workers.wait_written(left)
            self._delay += time.monotonic() - now

    def feed(self, data: memoryview) -> None:
        """Add the next bytes, or none at the end of the body. It never waits and never fails."""
        if not self._is_wanted:
            return
        size = self.key.byte_range.size
        self._num_fed += len(data)
        if self._num_fed > size or (not data and self._num_fed < size):
            self.abandon("not what was planned")
            return
        # Copy the data: the receiver reuses its buffer before these bytes are written.
        at = 0
        while at < len(data):
            if self._filled == len(self._block) and not self._next_block():
                self.abandon("behind")
                return
            part = data[at : at + len(self._block) - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            at += len(part)
        if self._filled == len(self._block):
            self._hand_over()

    def _next_block(self) -> bool:
        """Start another block; return False if there are too many."""
        self._hand_over()
        disk_workers = self._disk_workers
        if self._num_blocks >= MAX_WRITER_BLOCKS or disk_workers.num_blocks >= MAX_BLOCKS:
            return False
        disk_workers.num_blocks += 1
        self._num_blocks += 1
        size = self.key.byte_range.size
        self._block = bytearray(size) if size < BLOCK_SIZE else disk_workers.take_block()
        self._filled = 0
        return True

    def _hand_over(self) -> None:
        if self._filled:
            self._waiting.append((self._block, self._filled))
            self._num_full += 1
            self._disk_workers.num_full += 1
            self._block, self._filled = bytearray(), 0
            wake(self._waiter)

    def close(self) -> None:
        """End the entry. If it is incomplete, its whole records are stored."""
        self._hand_over()
        self._is_closed = True
        wake(self._waiter)

    def abandon(self, cause: str) -> None:
        """Store nothing, and ignore further bytes."""
        if self._is_wanted:
            self._is_wanted = False
            CACHE_ABANDONED.add(cause)
            logger.debug("cache: %r: %s", self, cause)
            wake(self._waiter)

    # The writer.

    async def _run(self) -> None:
        try:
            await self._write()
        except OSError as exc:
            self.abandon("disk")
            self._disk_workers.health.doubt(exc)
        finally:
            self._is_wanted = False
            self._waiting.clear()
            self._block = bytearray()
            self._disk_workers.free_blocks(self._num_blocks, self._num_full)
            self._num_blocks = self._num_full = 0
            self._disk_workers.writers.discard(self)

    async def _write(self) -> None:
        disk_workers, store = self._disk_workers, self._disk_workers.store
        temporary = await disk_workers.create(self.key.file_size)
        if temporary is None:
            self.abandon("no room")
            return
        is_published = False
        try:
            while blocks := await self._next_blocks():
                views = [memoryview(block)[:size] for block, size in blocks]
                try:
                    await disk_workers.run(_check_and_write, temporary.fd, self._indexer, views)
                except FormatError:
                    self.abandon("not what was planned")
                self._num_blocks -= len(blocks)
                self._num_full -= len(blocks)
                disk_workers.free_blocks(len(blocks), len(blocks))
                for block, _ in blocks:
                    disk_workers.give_block(block)
            if self._is_wanted:
                self._settle_size()
            if self._is_wanted:
                if self.key.file_size != temporary.size:
                    temporary = await disk_workers.run(store.cut, temporary, self.key.file_size)
                await disk_workers.run(_write_index, temporary.fd, self._indexer.make_index())
                is_proven = self.coverage.is_proven
                standing = Standing.PROVEN if is_proven else Standing.UNPROVEN
                path = await disk_workers.run(store.publish, temporary, self.key, standing)
                is_published = True
                if path is not None:
                    self._on_placed(path)
                CACHE_STORED_BYTES.add(amount=self.key.byte_range.size)
            disk_workers.executor.submit(os.close, temporary.fd)
        except OSError:
            disk_workers.executor.submit(os.close, temporary.fd)
            raise
        finally:
            # When the task is cancelled because the process ends, a thread may still be writing, so
            # the descriptor stays open.
            if not is_published:
                disk_workers.executor.submit(store.discard, temporary)

    async def _next_blocks(self) -> list[tuple[bytearray, int]]:
        """Wait for full blocks; return none after the last ones."""
        while self._is_wanted:
            if self._waiting:
                blocks, self._waiting = self._waiting, []
                return blocks
            if self._is_closed:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return []

    def _settle_size(self) -> None:
        """Cut the entry behind its last whole record; abandon it if that is too little."""
        if self._indexer.is_complete:
            return
        if self._num_fed == self.key.byte_range.size:
            self.abandon("not what was planned")
            return
        key = self._indexer.cut()
        if key is None or key.byte_range.size < MIN_CUT_SIZE:
            self.abandon("cut short")
        else:
            self.key = key
            self.coverage.cut(key.num_chunks)


def _check_and_write(fd: int, indexer: Indexer, views: list[memoryview]) -> None:
    """Append data to a file, and its checks to the index.

    Raises:
        FormatError: the data is not what was planned.
        OSError: the disk fails.
    """
    for view in views:
        indexer.feed(view)
    _write_all(fd, views)


def _write_index(fd: int, index: EntryIndex) -> None:
    """Write the index behind the records.

    Raises:
        OSError: the disk fails.
    """
    os.lseek(fd, index.key.byte_range.size, os.SEEK_SET)  # the file may have been cut
    _write_all(fd, [memoryview(index.pack())])


def _write_all(fd: int, views: list[memoryview]) -> None:
    """Write all views, with further calls if one writes only a part."""
    while views:
        count = _writev(fd, views)
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views:
            views[0] = views[0][count:]
