"""The disk cache: packed chunk records of xorb ranges, kept between the pipeline and the CAS.

A cache is a CasSource around another one. Reconstructions always come from the other one: cached
bytes are only reached through a plan that the CAS gave to this very token, so whoever may not read
a file does not get it from here either. Data that is stored comes from disk, and no URL is used for
it; data that is not comes from the other source, and is written beside the download while it passes
(write.py).

What comes from disk has been compared with the hashes that were taken when it was fetched. If it is
damaged, cut or gone, in the middle of a body too, the other source goes on where the disk has
stopped. A failure of the cache is a miss and a counter, never a client's problem.

Entries know xorbs and chunks; no token, URL or path of a repository is ever among them. Beside
them, in the same folder and under the same quota, lie proven ledgers
(pipeline/verify/ledger_store.py) and files that are not Xet (blobs.py). What the Hub said of
repositories is in a folder of its own (upstream/answers/folder.py).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from xetserve.errors import FormatError, UpstreamError
from xetserve.metrics.catalogue import (
    CACHE_BYTES,
    CACHE_DAMAGED,
    CACHE_HITS,
    CACHE_LIMIT,
    CACHE_MISSES,
    CACHE_SIZE,
    CACHE_UNPROVEN,
)
from xetserve.pipeline.cache.coverage_table import CoverageTable
from xetserve.pipeline.cache.entry import EntryKey
from xetserve.pipeline.cache.read import StoredBody
from xetserve.pipeline.cache.store import CacheStore, Found, Segment, prepare_folder
from xetserve.pipeline.cache.write import MAX_BLOCKS, DiskWorkers, EntryWriter
from xetserve.pipeline.provenance import Provenance
from xetserve.pipeline.source import CasSource, DataResponse
from xetserve.upstream.cas.client import Access
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction

logger = logging.getLogger(__name__)

MAX_THREADS: Final = 8  # also bounds the blocks that are being read
SCRATCH_SIZE: Final = 256 * 1024  # bytes
DISK_TIMEOUT: Final = 2.0  # seconds; a disk that needs longer is worse than none
PAUSE: Final = 30.0  # seconds without the cache after such a wait
SWEEP_INTERVAL: Final = 600.0  # seconds
CATCH_UP_INTERVAL: Final = 0.01  # seconds
CLOSE_TIMEOUT: Final = 5.0  # seconds for what is being written when the process ends


T = TypeVar("T")


class DiskCache:
    """Keeps what passes, and gives it again.

    Args:
        inner: where everything comes from that is not stored.
        max_size: bytes that the folder may hold.
        min_free: bytes of its file system that are left to others.
    """

    keeps_data = True

    def __init__(self, inner: CasSource, folder: Path, *, max_size: int, min_free: int) -> None:
        self._inner = inner
        self._max_size = max_size
        self._store = CacheStore(folder, max_size=max_size, min_free=min_free)
        self._executor = ThreadPoolExecutor(MAX_THREADS, "cache")
        self.disk_workers = DiskWorkers(self._store, self._executor)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.coverages = CoverageTable(self.disk_workers, self.spawn)
        self._removals: dict[bytes, asyncio.Task[None]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._resume_time = 0.0  # monotonic; the disk is left alone until then

    async def start(self) -> None:
        """Make the folder, and begin to sweep it now and then.

        Raises:
            ConfigError: the folder cannot be used.
        """
        await self.disk_workers.run(prepare_folder, self._store.folder)
        CACHE_LIMIT.set(self._max_size)
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_forever())

    async def aclose(self) -> None:
        """Finish writing what is complete, within a few seconds."""
        for tee in self.disk_workers.tees:
            tee.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.settle()
        tasks = self._tasks | {tee.task for tee in self.disk_workers.tees if tee.task is not None}
        if self._sweeper is not None:
            tasks.add(self._sweeper)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # What is submitted is done, unless the disk hangs.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.to_thread(self._executor.shutdown)

    async def settle(self) -> None:
        """Wait until everything that was complete has been written."""
        while tasks := self._tasks | {t.task for t in self.disk_workers.tees if t.task is not None}:
            await asyncio.wait(tasks)

    async def catch_up(self) -> None:
        """Wait while much of what has passed is to be written still, but not for longer than a disk
        may need.

        For those to whom that matters more than speed. Blocks that are not full do not count: only
        more data fills them.
        """
        deadline = time.monotonic() + DISK_TIMEOUT
        while sum(tee.num_waiting for tee in self.disk_workers.tees) > MAX_BLOCKS // 4:
            tasks = [tee.task for tee in self.disk_workers.tees if tee.task is not None]
            if not tasks or time.monotonic() > deadline:
                return
            await asyncio.wait(tasks, timeout=CATCH_UP_INTERVAL)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.disk_workers.sweep()
                CACHE_UNPROVEN.set(self._store.room.num_unproven)
            except OSError as exc:
                self.disk_workers.warn("cache: cannot sweep: %s", exc.strerror or exc)
            await asyncio.sleep(SWEEP_INTERVAL)

    async def check_writable(self) -> None:
        """Check whether something can be kept now, and how much is.

        Raises:
            OSError: it cannot.
        """
        await self.disk_workers.run(self._store.check_writable)
        await self.measure()

    async def measure(self) -> None:
        """Tell how full it is; where that cannot be read, nothing new is told."""
        with contextlib.suppress(OSError):
            CACHE_SIZE.set(await self.disk_workers.run(self._store.room.get_usage))

    # A CasSource.

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Ask how a range of a file is built: always the other source, with this token."""
        return await self._inner.fetch_reconstruction(access, file_hash, byte_range)

    @asynccontextmanager
    async def open_data(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        *,
        is_proven: bool = False,
        takes_imported: bool = True,
    ) -> AsyncIterator[DataResponse]:
        """Open the packed bytes of a fetch range of a xorb, from disk where they are stored."""
        key = EntryKey(xorb_hash, info.chunks, info.byte_range)
        found = await self._find(key, takes_imported=takes_imported)
        segments = None if found is None else found.segments
        async with AsyncExitStack() as stack:
            body = _Body(self, key, info, stack)
            stack.callback(body.close)
            if found is None or segments is None:
                CACHE_MISSES.add()
                self._log("miss", key)
                await body.open_inner()
            else:
                CACHE_HITS.add()
                self._log("hit", key)
                body.has_imported = found.has_imported
                body.open_stored(segments, checks=not is_proven)
            yield body

    def _log(self, what: str, key: EntryKey) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            name = format_hash(key.xorb_hash)[:8]
            logger.debug("cache: xorb %s, chunks %d..%d: %s", name, *key.chunks, what)

    async def _find(self, key: EntryKey, *, takes_imported: bool) -> Found | None:
        """Look for stored chunks; a disk that fails or hangs has none."""
        if self.is_resting:
            return None
        try:
            async with asyncio.timeout(DISK_TIMEOUT):
                removal = self._removals.get(key.xorb_hash)
                if removal is not None:
                    await asyncio.wait((removal,))
                found = await self.disk_workers.run(self._store.find, key, takes_imported)
        except TimeoutError:
            self.rest()
            return None
        except OSError as exc:
            self.disk_workers.warn("cache: cannot read: %s", exc.strerror or exc)
            return None
        if found.num_damaged:
            CACHE_DAMAGED.add(amount=found.num_damaged)
        return found

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Drop what is stored or about to be stored of these chunks: it is not what was promised.

        The next open_data does not see it any more.
        """
        late = [
            tee
            for tee in self.disk_workers.tees
            if tee.key.xorb_hash == xorb_hash
            and tee.key.chunks.start < chunks.end
            and chunks.start < tee.key.chunks.end
        ]
        for tee in late:
            tee.abandon("wrong")
        self._remove_later(
            xorb_hash,
            partial(self._store.remove_chunks, xorb_hash, chunks),
            [tee.task for tee in late if tee.task is not None],
        )

    def _remove_later(
        self, xorb_hash: bytes, remove_now: Callable[[], int], late: list[asyncio.Task[None]]
    ) -> None:
        """Remove entries of a xorb once some tasks have ended; look-ups for it wait until then."""
        if xorb_hash in self._removals:
            late.append(self._removals[xorb_hash])

        async def remove() -> None:
            if late:
                await asyncio.wait(late)
            try:
                CACHE_DAMAGED.add(amount=await self.disk_workers.run(remove_now))
            except OSError as exc:
                self.disk_workers.warn("cache: cannot remove: %s", exc.strerror or exc)
            finally:
                if self._removals.get(xorb_hash) is task:
                    del self._removals[xorb_hash]

        task = self._removals[xorb_hash] = self.spawn(remove())

    # For bodies.

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something beside the downloads; aclose waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def is_resting(self) -> bool:
        return time.monotonic() < self._resume_time

    def rest(self) -> None:
        """Leave the disk alone for a while, because it hangs."""
        self._resume_time = time.monotonic() + PAUSE
        self.disk_workers.warn(
            "cache: the disk does not answer; going without for %g seconds", PAUSE
        )

    def open_inner(
        self, key: EntryKey, info: FetchInfo
    ) -> AbstractAsyncContextManager[DataResponse]:
        """Open the other source."""
        return self._inner.open_data(key.xorb_hash, info)

    def make_tee(self, key: EntryKey) -> EntryWriter:
        """Begin to store what passes."""
        coverage = self.coverages.make(key)
        on_placed = partial(self.coverages.add, key, coverage)
        return EntryWriter(self.disk_workers, key, coverage, on_placed)

    def note_failure(self, segment: Segment, error: Exception) -> None:
        """Take note that an entry could not be read."""
        logger.info("cache: %s: %s", segment.path.rpartition("/")[2], error)
        if isinstance(error, TimeoutError):
            self.rest()
        elif not isinstance(error, FileNotFoundError):  # that is an eviction by somebody else
            remove = partial(self._store.remove, segment.path)
            self._remove_later(segment.entry.key.xorb_hash, remove, [])


class _Body:
    """The packed bytes of a range: from disk as far as that goes, then from the other source."""

    def __init__(
        self, cache: DiskCache, key: EntryKey, info: FetchInfo, stack: AsyncExitStack
    ) -> None:
        self._cache = cache
        self._key = key
        self._info = info
        self._stack = stack
        self._stored: StoredBody | None = None
        self._inner: DataResponse | None = None
        self._tee: EntryWriter | None = None
        self._given = 0  # bytes from disk
        self.has_imported = False

    def open_stored(self, segments: tuple[Segment, ...], *, checks: bool) -> None:
        """Begin with what is on disk."""
        self._stored = StoredBody(self._cache.disk_workers, segments, checks=checks)

    @property
    def is_stored(self) -> bool:
        """Whether the bytes received last came from disk."""
        return self._stored is not None

    @property
    def origin(self) -> Provenance | None:
        """See DataResponse."""
        if self._stored is not None:
            return self._cache.coverages.find(self._stored.segment)
        return self._tee.coverage if self._tee is not None and self._tee.is_wanted else None

    async def open_inner(self) -> None:
        """Begin with the other source, and keep what it gives."""
        response = self._cache.open_inner(self._key, self._info)
        self._inner = await self._stack.enter_async_context(response)
        if not self._cache.is_resting:
            self._tee = self._cache.make_tee(self._key)

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end."""
        if self._stored is not None:
            try:
                count = await self._stored.receive_into(view, DISK_TIMEOUT)
            except (FormatError, OSError) as exc:
                await self._go_on_inside(self._stored, exc, timeout)
            else:
                self._given += count
                CACHE_BYTES.add(amount=count)
                return count
        return await self._receive_inner(view, timeout)

    async def _go_on_inside(
        self, stored: StoredBody, error: Exception, timeout: float | None
    ) -> None:
        """Let the other source go on where the disk has stopped."""
        self._stored = None
        self._cache.note_failure(stored.segment, error)
        self._cache.spawn(stored.aclose())
        await self.open_inner()
        scratch = memoryview(bytearray(min(self._given, SCRATCH_SIZE)))
        left = self._given
        while left:
            count = await self._receive_inner(scratch[:left], timeout)
            if not count:
                raise UpstreamError(f"the data host sent {left} bytes too few")
            left -= count

    async def _receive_inner(self, view: memoryview, timeout: float | None) -> int:
        if self._inner is None:
            raise UpstreamError("the data host could not be asked")  # it has failed before
        count = await self._inner.receive_into(view, timeout)
        if self._tee is not None:
            self._tee.feed(view[:count])
        return count

    def close(self) -> None:
        """End; whatever is to be done on disk is done afterwards."""
        if self._stored is not None:
            self._cache.spawn(self._stored.aclose())
        if self._tee is not None:
            self._tee.close()
