"""The disk cache: it stores packed chunk records of xorb ranges, between the pipeline and the CAS.

The cache is a CasSource around another one, the inner source. Reconstructions always come from the
inner source: the cache serves data only for a reconstruction that the CAS gave to the client's
token. So a client that may not read a file does not get it from the cache either. Stored data comes
from disk, without a request. Other data comes from the inner source, and is written beside the
download as it passes (write.py).

Data from disk is compared with the checks that were made when it was fetched. If an entry is
damaged, truncated or gone, the inner source goes on where the disk has stopped, also in the middle
of a body. A failure of the cache is a miss and a counter, never a client's problem.

Entries hold xorb hashes and chunks, and never a token, a URL or the path of a repository. The same
folder also has proven ledgers (pipeline/verify/ledger_store.py) and files that are not Xet
(blobs.py), under the same quota, and the Hub's answers (upstream/answers/folder.py).
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
from xetserve.pipeline.cache.entry import EntryKey, Standing
from xetserve.pipeline.cache.health import CacheHealth
from xetserve.pipeline.cache.proven_records import StoredRecords
from xetserve.pipeline.cache.read import StoredBody
from xetserve.pipeline.cache.store import CacheStore, Found, Segment, prepare_folder
from xetserve.pipeline.cache.write import MAX_BLOCKS, DiskWorkers, EntryWriter
from xetserve.upstream.cas.source import Access, CasSource, DataResponse, Provenance
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction

logger = logging.getLogger(__name__)

MAX_THREADS: Final = 8  # this also limits the blocks that are read at one time
SCRATCH_SIZE: Final = 256 * 1024  # bytes
DISK_TIMEOUT: Final = 2.0  # seconds; with a slower disk, the cache only delays clients
PAUSE: Final = 30.0  # seconds without the cache after such a timeout
SWEEP_INTERVAL: Final = 600.0  # seconds
CATCH_UP_INTERVAL: Final = 0.01  # seconds
CLOSE_TIMEOUT: Final = 5.0  # seconds to finish writing when the process ends


T = TypeVar("T")


class DiskCache:
    """Stores data as it passes, and serves it from disk.

    Args:
        inner: the source of reconstructions, and of data that is not stored.
        max_size: bytes that the folder may hold.
        min_free: bytes of its file system that stay free.
        speaks: log changes of its state as warnings; False: another worker does.
    """

    def __init__(
        self,
        inner: CasSource,
        folder: Path,
        *,
        max_size: int,
        min_free: int,
        speaks: bool = True,
    ) -> None:
        self._inner = inner
        self._max_size = max_size
        self._store = CacheStore(folder, max_size=max_size, min_free=min_free)
        self.max_stored_size = self._store.max_entry_size
        self._executor = ThreadPoolExecutor(MAX_THREADS, "cache")
        self._health = CacheHealth(folder, speaks=speaks)
        self.disk_workers = DiskWorkers(self._store, self._executor, self._health)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.coverages = CoverageTable(self.disk_workers, self.spawn)
        self._removals: dict[bytes, asyncio.Task[None]] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._resume_time = 0.0  # monotonic; the disk is not used before

    async def start(self) -> None:
        """Create the folder, and start to check and sweep it regularly.

        Raises:
            ConfigError: the folder cannot be created or written to.
        """
        await self.disk_workers.run(prepare_folder, self._store.folder)
        CACHE_LIMIT.set(self._max_size)
        self._health.note_size(self._max_size)
        loop = asyncio.get_running_loop()
        self._keepers = [loop.create_task(each()) for each in (self._sweep_forever, self._watch)]

    async def aclose(self) -> None:
        """Finish writing complete entries, within a few seconds."""
        for writer in self.disk_workers.writers:
            writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.settle()
        tasks = self._list_tasks() | set(self._keepers)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # The threads finish their work, unless the disk hangs.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.to_thread(self._executor.shutdown)

    async def settle(self) -> None:
        """Wait until all complete entries are written."""
        while tasks := self._list_tasks():
            await asyncio.wait(tasks)

    def _list_tasks(self) -> set[asyncio.Task[Any]]:
        writing = {writer.task for writer in self.disk_workers.writers if writer.task is not None}
        return self._tasks | writing

    async def catch_up(self) -> None:
        """Wait until few full blocks are left to write, DISK_TIMEOUT seconds at most.

        For callers that want to store data rather than to be fast. Blocks that are not full do not
        count, since only more data fills them.
        """
        deadline = time.monotonic() + DISK_TIMEOUT
        while sum(writer.num_waiting for writer in self.disk_workers.writers) > MAX_BLOCKS // 4:
            tasks = [writer.task for writer in self.disk_workers.writers if writer.task is not None]
            if not tasks or time.monotonic() > deadline:
                return
            await asyncio.wait(tasks, timeout=CATCH_UP_INTERVAL)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                await self.disk_workers.sweep()
                CACHE_UNPROVEN.set(self._store.quota.num_unproven)
            except OSError as exc:
                self.disk_workers.warn("cache: cannot sweep: %s", exc.strerror or exc)
            await asyncio.sleep(SWEEP_INTERVAL)

    async def _watch(self) -> None:
        """Check the cache now and then, and whenever a write has failed."""
        while True:
            failure = self._health.take_failure()
            with contextlib.suppress(OSError):  # check has recorded it
                await self.check()
                if failure is not None and not isinstance(failure, FileNotFoundError):
                    self.disk_workers.warn("cache: cannot write: %s", failure.strerror or failure)
            await self._health.wait_for_doubt()

    async def check(self) -> None:
        """Check that something can be kept now, and measure the used space.

        Raises:
            OSError: nothing can be kept; TimeoutError: the disk does not answer.
        """
        try:
            async with asyncio.timeout(DISK_TIMEOUT):
                await self.disk_workers.run(self._store.check)
        except OSError as exc:
            self._health.note(exc)
            raise
        self._health.note(None)
        await self.measure()

    async def get_room(self) -> int:
        """Return the bytes that all files together may have now.

        Raises:
            OSError: the disk fails.
        """
        return await self.disk_workers.run(self._store.quota.get_room)

    async def measure(self) -> None:
        """Set the metric of used space; leave it unchanged if the space cannot be read."""
        with contextlib.suppress(OSError):
            CACHE_SIZE.set(await self.disk_workers.run(self._store.quota.get_usage))

    # A CasSource.

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Fetch a reconstruction from the inner source, with the client's token."""
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
        """Open the packed bytes of a fetch range of a xorb, from disk if they are stored."""
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

    async def find_proven(self, xorb_hash: bytes, info: FetchInfo) -> StoredRecords | None:
        """See ProvenStore."""
        known = self.coverages.hashes
        if not known:
            return None
        key = EntryKey(xorb_hash, info.chunks, info.byte_range)
        found = await self._find(key, takes_imported=False)
        hashes = bytearray()
        if found is None or found.segments is None:
            return None
        for segment in found.segments:
            part = known.find(segment.path, segment.chunks)
            if part is None or Standing.of(segment.path) is not Standing.PROVEN:
                return None
            hashes += part
        CACHE_HITS.add()
        self._log("proven", key)
        return StoredRecords(
            found.segments,
            bytes(hashes),
            self._executor,
            on_failure=self.note_failure,
            close_later=self._close_later,
        )

    def _close_later(self, reading: "asyncio.Future[None]", close: Callable[[], None]) -> None:
        async def wait_and_close() -> None:
            await asyncio.wait((reading,))
            close()

        self.spawn(wait_and_close())

    def _log(self, what: str, key: EntryKey) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            name = format_hash(key.xorb_hash)[:8]
            logger.debug("cache: xorb %s, chunks %d..%d: %s", name, *key.chunks, what)

    async def _find(self, key: EntryKey, *, takes_imported: bool) -> Found | None:
        """Find stored chunks; None if the disk fails or hangs."""
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
        """Remove all entries with these chunks, stored or being written, since their data is wrong.

        The next open_data does not find them any more.
        """
        late = [
            writer
            for writer in self.disk_workers.writers
            if writer.key.xorb_hash == xorb_hash
            and writer.key.chunks.start < chunks.end
            and chunks.start < writer.key.chunks.end
        ]
        for writer in late:
            writer.abandon("wrong")
        self._remove_later(
            xorb_hash,
            partial(self._store.remove_chunks, xorb_hash, chunks),
            [writer.task for writer in late if writer.task is not None],
        )

    def _remove_later(
        self, xorb_hash: bytes, remove_now: Callable[[], int], late: list[asyncio.Task[None]]
    ) -> None:
        """Remove entries of a xorb once some tasks have ended. Lookups of the xorb wait for it."""
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
        """Run a task beside the downloads; aclose waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def is_resting(self) -> bool:
        return time.monotonic() < self._resume_time

    def rest(self) -> None:
        """Do not use the disk for PAUSE seconds, because it hangs."""
        self._resume_time = time.monotonic() + PAUSE
        self.disk_workers.warn(
            "cache: the disk does not answer: the cache is not used for %g seconds", PAUSE
        )

    def open_inner(
        self, key: EntryKey, info: FetchInfo
    ) -> AbstractAsyncContextManager[DataResponse]:
        """Open a fetch range of the inner source."""
        return self._inner.open_data(key.xorb_hash, info)

    def make_writer(self, key: EntryKey) -> EntryWriter:
        """Return a writer that stores an entry as its data passes."""
        coverage = self.coverages.make(key)
        on_placed = partial(self.coverages.add, key, coverage)
        return EntryWriter(self.disk_workers, key, coverage, on_placed)

    def note_failure(self, segment: Segment, error: Exception) -> None:
        """Handle an entry that could not be read: remove it, or pause if the disk hangs."""
        logger.info("cache: %s: %s", segment.path.rpartition("/")[2], error)
        if isinstance(error, TimeoutError):
            self.rest()
        elif not isinstance(error, FileNotFoundError):  # another process has evicted the entry
            remove = partial(self._store.remove, segment.path)
            self._remove_later(segment.entry.key.xorb_hash, remove, [])


class _Body:
    """The packed bytes of a range: from disk as far as possible, then from the inner source."""

    def __init__(
        self, cache: DiskCache, key: EntryKey, info: FetchInfo, stack: AsyncExitStack
    ) -> None:
        self._cache = cache
        self._key = key
        self._info = info
        self._stack = stack
        self._stored: StoredBody | None = None
        self._inner: DataResponse | None = None
        self._writer: EntryWriter | None = None
        self._given = 0  # bytes from disk
        self.has_imported = False

    def open_stored(self, segments: tuple[Segment, ...], *, checks: bool) -> None:
        """Start with stored segments."""
        self._stored = StoredBody(self._cache.disk_workers, segments, checks=checks)

    @property
    def is_stored(self) -> bool:
        """Whether the last received bytes came from disk."""
        return self._stored is not None

    @property
    def origin(self) -> Provenance | None:
        """See DataResponse."""
        if self._stored is not None:
            return self._cache.coverages.find(self._stored.segment)
        return (
            self._writer.coverage if self._writer is not None and self._writer.is_wanted else None
        )

    async def open_inner(self) -> None:
        """Start with the inner source, and store its data."""
        response = self._cache.open_inner(self._key, self._info)
        self._inner = await self._stack.enter_async_context(response)
        if not self._cache.is_resting:
            self._writer = self._cache.make_writer(self._key)

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
        """Go on with the inner source where the disk has stopped."""
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
            raise UpstreamError("the data host failed before")  # open_inner has raised its error
        if self._writer is not None:
            await self._writer.catch_up()
        count = await self._inner.receive_into(view, timeout)
        if self._writer is not None:
            self._writer.feed(view[:count])
        return count

    def close(self) -> None:
        """Close the body; tasks in the background finish the work on disk."""
        if self._stored is not None:
            self._cache.spawn(self._stored.aclose())
        if self._writer is not None:
            self._writer.close()
