"""Store files that are not Xet (blobs) beside the cache: mostly small git files, and old LFS files.

A file is stored under the hash that the Hub gives for it. The Hub is asked for this hash in every
request, so a client gets no file that the Hub does not let it read now. A small file is compared
with its hash before its first byte is sent. A large one is compared block by block with checks,
which were made when the whole file was compared with its hash (blob_file.py). A file that is
damaged, or that the disk does not read in time, counts as not stored.
"""

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from xetserve.base.buffers import Buffer
from xetserve.base.regular_files import open_regular
from xetserve.errors import FormatError, OtherVersion, UpstreamError
from xetserve.metrics.catalogue import CACHE_BYTES, CACHE_DAMAGED, CACHE_HITS, CACHE_MISSES
from xetserve.pipeline.cache.blob_file import (
    BlobKey,
    CheckWriter,
    check_plain,
    check_trailer,
    read_block,
)
from xetserve.pipeline.cache.disk_cache import DISK_TIMEOUT, DiskCache
from xetserve.pipeline.cache.io import run_io
from xetserve.pipeline.cache.store import TOUCH_AGE
from xetserve.pipeline.cache.temporary import Temporary

logger = logging.getLogger(__name__)


class LostError(UpstreamError):
    """The disk cannot read a stored file any further, or it is damaged."""


class StoredBlob:
    """An open stored file, and the range to read. A context manager that closes the file.

    position: of the next byte.
    """

    def __init__(
        self, blob_cache: "BlobCache", key: BlobKey, fd: int, start: int, end: int
    ) -> None:
        self.position = start
        self._blob_cache = blob_cache
        self._key = key
        self._fd = fd
        self._end = end
        self._reading: asyncio.Future[bytes] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._reading is None or self._reading.done():
            self._close()
        else:  # the descriptor must not be reused while a thread may read from it
            self._reading.add_done_callback(lambda _: self._close())

    def _close(self) -> None:
        os.close(self._fd)

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end.

        Raises:
            LostError: the disk fails or hangs, or the file is damaged.
        """
        count = min(len(view), self._end - self.position)
        if not count:
            return 0
        cache = self._blob_cache.cache
        loop = asyncio.get_running_loop()
        self._reading = reading = loop.run_in_executor(
            cache.disk_workers.executor, self._read, count
        )
        try:
            data = await run_io(reading, timeout)
        except FormatError as exc:
            await self._blob_cache.condemn(self._key, exc)
            raise LostError(f"a stored file is {exc}") from exc
        except OSError as exc:
            if isinstance(exc, TimeoutError):
                cache.rest()
                raise LostError("the disk of a stored file does not answer") from exc
            raise LostError(f"a stored file cannot be read: {exc.strerror}") from exc
        if not data:
            raise LostError("a stored file was truncated while it was read")
        view[: len(data)] = data
        self.position += len(data)
        CACHE_BYTES.add(amount=len(data))
        return len(data)

    def _read(self, count: int) -> bytes:
        """Read up to count bytes, of one block at most; runs in a thread."""
        if self._key.is_large:
            return read_block(self._fd, self._key, self.position)[:count]
        return os.pread(self._fd, count, self.position)


class BlobCache:
    """The stored blobs in the folder of a cache."""

    def __init__(self, cache: DiskCache) -> None:
        self.cache = cache
        self._store = cache.disk_workers.store

    def can_keep(self, size: int) -> bool:
        """Return whether a file of size bytes is small enough to store."""
        return BlobKey("", "", size).stored_size <= self._store.max_entry_size

    async def has(self, key: BlobKey) -> bool:
        """Return whether a file is stored, without reading its content."""
        try:
            return await self.cache.disk_workers.run(self._has, key)
        except (OSError, ValueError):
            return False

    def _has(self, key: BlobKey) -> bool:
        fd = open_regular(key.get_path(self._store.folder))
        try:
            if key.is_large:
                check_trailer(fd, key)
            return os.fstat(fd).st_size == key.stored_size
        except FormatError:
            return False
        finally:
            os.close(fd)

    async def open(self, key: BlobKey, start: int, end: int) -> StoredBlob | None:
        """Open bytes [start, end) of a file; None if it is not stored.

        A small file is compared with its key first.
        """
        if not self.can_keep(key.size) or self.cache.is_resting:
            return None
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self.cache.disk_workers.executor, self._open, key)
        fd = None
        try:
            fd = await run_io(opening, DISK_TIMEOUT, on_late=_close_fd)
        except TimeoutError:
            self.cache.rest()
        except OSError as exc:
            self.cache.disk_workers.warn("cache: cannot read: %s", exc.strerror or exc)
        if fd is None:
            CACHE_MISSES.add()
            logger.debug("cache: file %s: miss", key.name)
            return None
        CACHE_HITS.add()
        logger.debug("cache: file %s: hit", key.name)
        return StoredBlob(self, key, fd, start, end)

    def _open(self, key: BlobKey) -> int | None:
        """Open and check a file; None if this version has not stored it, or it is damaged.

        Runs in a thread.
        """
        path = key.get_path(self._store.folder)
        try:
            fd = open_regular(path)
        except FileNotFoundError:
            return None
        try:
            if key.is_large:
                check_trailer(fd, key)
            else:
                check_plain(fd, key)
            if abs(time.time() - os.fstat(fd).st_mtime) > TOUCH_AGE:
                self._store.touch(path)
        except OtherVersion:  # it is replaced when the file is fetched
            os.close(fd)
            return None
        except FormatError as exc:
            os.close(fd)
            self._remove(key, exc)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def condemn(self, key: BlobKey, reason: Exception) -> None:
        """Remove a file that is damaged."""
        await self.cache.disk_workers.run(self._remove, key, reason)

    def _remove(self, key: BlobKey, reason: Exception) -> None:
        logger.info("cache: %s: %s", key.name, reason)
        CACHE_DAMAGED.add(amount=self._store.remove(key.get_path(self._store.folder)))

    def open_writer(self, key: BlobKey) -> "BlobWriter":
        """Return a writer that stores a file as it passes."""
        return BlobWriter(self.cache, key)


class BlobWriter:
    """Stores one file, block by block: write, finish, write, ... close.

    Before the last block is written, the caller must have compared the whole content with the key.
    A disk that fails or hangs delays a download, but never breaks it.
    """

    def __init__(self, cache: DiskCache, key: BlobKey) -> None:
        self._cache = cache
        self._key = key
        self._left = key.size  # bytes to come
        self._temporary: Temporary | None = None
        self._checks: CheckWriter | None = None  # of a large one
        self._is_wanted = not cache.is_resting and key.size > 0
        self._busy: asyncio.Future[None] | None = None  # in a thread

    async def write(self, block: Sequence[Buffer]) -> None:
        """Start writing the next bytes; after the last ones, wait until the file is in place."""
        if not self._is_wanted:
            return
        self._left -= sum(map(len, block))
        try:
            if self._temporary is None:
                self._temporary = await self._create()
            if self._temporary is None or self._left < 0:
                self._is_wanted = False
                return
            loop = asyncio.get_running_loop()
            executor = self._cache.disk_workers.executor
            self._busy = loop.run_in_executor(executor, self._write, self._temporary, block)
        except OSError as exc:
            self._give_up(exc)
        if not self._left:
            await self.finish()

    async def finish(self) -> None:
        """Wait until the block is written and its memory may be reused."""
        if self._busy is None or not self._is_wanted:
            return
        try:
            await run_io(self._busy, DISK_TIMEOUT)
        except OSError as exc:
            self._give_up(exc)

    def _give_up(self, error: OSError) -> None:
        self._is_wanted = False
        if isinstance(error, TimeoutError):
            self._cache.rest()
        else:
            self._cache.disk_workers.health.doubt(error)

    async def _create(self) -> Temporary | None:
        """Create a file; None if there is no room."""
        creating = self._cache.spawn(self._cache.disk_workers.create(self._key.stored_size))
        return await run_io(creating, DISK_TIMEOUT, on_late=self._discard)

    def _discard(self, temporary: Temporary | None) -> None:
        """Remove a file that was created too late."""
        self._temporary = temporary
        self._clear()

    def _write(self, temporary: Temporary, block: Sequence[Buffer]) -> None:
        """Write a block, and put a complete file in place; runs in a thread."""
        store = self._cache.disk_workers.store
        if self._checks is None and self._key.is_large:
            self._checks = CheckWriter(temporary.fd, self._key)
        for part in block:
            store.write(temporary, memoryview(part))
            if self._checks is not None:
                self._checks.feed(memoryview(part))
        if not self._left:
            store.place(temporary, self._key.subfolder, self._key.name)

    def close(self) -> None:
        """Close the file, and remove it if it is not complete."""
        busy = self._busy
        if busy is not None and not busy.done():
            busy.add_done_callback(lambda _: self._clear())
        else:
            self._clear()

    def _clear(self) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is None:
            return
        executor, store = self._cache.disk_workers.executor, self._cache.disk_workers.store
        busy = self._busy
        if self._left or busy is None or busy.cancelled() or busy.exception() is not None:
            executor.submit(store.discard, temporary)
        executor.submit(os.close, temporary.fd)


def _close_fd(fd: int | None) -> None:
    """Close a file that was opened too late."""
    if fd is not None:
        os.close(fd)
