"""Files that are not Xet, beside the cache: small git files mostly, without which a model is of no use.

They lie there under the hash that the Hub names them by, which is asked for in every request: what the Hub does not let a
client read now is not looked for. A file is compared with its hash before a byte of it is given out; a damaged one is as
good as none, and so is one that the disk does not give in time.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from xetserve.errors import FormatError, UpstreamError
from xetserve.metrics import CACHE_BYTES, CACHE_DAMAGED, CACHE_HITS, CACHE_MISSES
from xetserve.pipeline.cache import DISK_TIMEOUT, DiskCache
from xetserve.pipeline.cache_list import PLAIN, make_shelf_path
from xetserve.pipeline.cache_store import TOUCH_AGE, Temporary
from xetserve.upstream.hub import FileEntry

if TYPE_CHECKING:
    from hashlib import _Hash

logger = logging.getLogger(__name__)

MAX_PLAIN_SIZE: Final = 64 * 1024 * 1024  # bytes; hashed whole, for every part that is asked for
_BLOCK_SIZE: Final = 1024 * 1024

Buffer = bytes | bytearray | memoryview


class PlainKey(NamedTuple):
    """What a file is known by: "sha256", or "git" (the SHA-1 of a git blob), and hex digits; its size in bytes."""

    kind: str
    digest: str
    size: int

    @classmethod
    def of(cls, entry: FileEntry) -> "PlainKey | None":
        """Make the key of an entry; None if the Hub names no hash of its content."""
        if entry.size is None:
            return None
        if entry.sha256 is not None:
            return cls("sha256", entry.sha256, entry.size)
        etag = entry.etag or ""
        if len(etag) == 40 and set(etag) <= set("0123456789abcdef"):
            return cls("git", etag, entry.size)
        return None

    @classmethod
    def parse(cls, name: str, size: int) -> "PlainKey":
        """Read the name that a file has on its shelf."""
        kind, _, digest = name.partition("-")
        return cls(kind, digest, size)

    @property
    def name(self) -> str:
        """How the file is named on its shelf."""
        return f"{self.kind}-{self.digest}"

    def make_hash(self) -> "_Hash":
        """Give a hash object that the whole content is to be fed to."""
        if self.kind == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def check_plain(fd: int, key: PlainKey) -> None:
    """Compare an open file with its key; for a thread.

    Raises:
        FormatError: it is something else.
        OSError: the disk fails.
    """
    content = key.make_hash()
    buffer = memoryview(bytearray(_BLOCK_SIZE))
    position = 0
    while count := os.preadv(fd, [buffer], position):
        content.update(buffer[:count])
        position += count
    if position != key.size or content.hexdigest() != key.digest:
        raise FormatError(f"{position} bytes that are not {key.name}")


class StoredPlain:
    """An open file, and the part of it that is wanted. A context manager: leaving it closes the file."""

    def __init__(self, cache: DiskCache, fd: int, start: int, end: int) -> None:
        self._cache = cache
        self._fd = fd
        self._position = start
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
        else:  # its descriptor must not be another's as long as a thread may use it
            self._reading.add_done_callback(lambda _: self._close())

    def _close(self) -> None:
        os.close(self._fd)

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end.

        Raises:
            UpstreamError: the disk fails, now that something was given out.
            TimeoutError: or hangs.
        """
        count = min(len(view), self._end - self._position)
        loop = asyncio.get_running_loop()
        self._reading = reading = loop.run_in_executor(
            self._cache.desk.executor, os.pread, self._fd, count, self._position
        )
        try:
            async with asyncio.timeout(timeout):
                data = await asyncio.shield(reading)
        except OSError as exc:
            if isinstance(exc, TimeoutError):
                self._cache.rest()
                raise
            raise UpstreamError(f"a stored file cannot be read: {exc.strerror}") from exc
        if count and not data:
            raise UpstreamError("a stored file was cut while it was read")
        view[: len(data)] = data
        self._position += len(data)
        CACHE_BYTES.add(amount=len(data))
        return len(data)


class PlainShelf:
    """The plain files that the folder of a cache holds."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._store = cache.desk.store

    def can_keep(self, key: PlainKey) -> bool:
        """Tell whether such a file is kept at all."""
        return key.size <= min(MAX_PLAIN_SIZE, self._store.max_entry_size)

    async def has(self, key: PlainKey) -> bool:
        """Tell whether a file is stored, without a look at its content."""
        try:
            path = make_shelf_path(self._store.folder, PLAIN, key.name)
            return await self._cache.desk.run(os.path.getsize, path) == key.size
        except (OSError, ValueError):
            return False

    async def open(self, key: PlainKey, start: int, end: int) -> StoredPlain | None:
        """Open bytes [start, end) of a file, which was compared with its key; None: it is not here."""
        if not self.can_keep(key) or self._cache.is_resting:
            return None
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._cache.desk.executor, self._open, key)
        fd = None
        try:
            async with asyncio.timeout(DISK_TIMEOUT):
                fd = await asyncio.shield(opening)
        except TimeoutError:
            opening.add_done_callback(_close_late)
            self._cache.rest()
        except OSError as exc:
            self._cache.desk.warn("cache: cannot read: %s", exc.strerror or exc)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise
        if fd is None:
            CACHE_MISSES.add()
            return None
        CACHE_HITS.add()
        return StoredPlain(self._cache, fd, start, end)

    def _open(self, key: PlainKey) -> int | None:
        """For a thread."""
        path = make_shelf_path(self._store.folder, PLAIN, key.name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            check_plain(fd, key)
            if abs(time.time() - os.fstat(fd).st_mtime) > TOUCH_AGE:
                self._store.touch(path)
        except FormatError as exc:
            os.close(fd)
            logger.info("cache: %s", exc)
            CACHE_DAMAGED.add(amount=self._store.remove(path))
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def keep(
        self, key: PlainKey, blocks: AsyncGenerator[Sequence[Buffer], None]
    ) -> AsyncGenerator[Sequence[Buffer], None]:
        """Pass the whole content on, and store it on the way.

        Args:
            blocks: the last of them comes only once all were compared with the key.
        """
        keeping = _Keeping(self._cache, key)
        try:
            async with aclosing(blocks):
                async for block in blocks:
                    await keeping.write(block)
                    yield block
        finally:
            keeping.close()


class _Keeping:
    """One file that is being stored. A disk that fails or hangs costs speed, never a download."""

    def __init__(self, cache: DiskCache, key: PlainKey) -> None:
        self._cache = cache
        self._key = key
        self._left = key.size  # bytes to come
        self._temporary: Temporary | None = None
        self._is_wanted = not cache.is_resting and key.size > 0
        self._busy: asyncio.Future[None] | None = None  # in a thread

    async def write(self, block: Sequence[Buffer]) -> None:
        """Take the next bytes; once all are here, the file is put in place."""
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
            executor = self._cache.desk.executor
            self._busy = loop.run_in_executor(executor, self._write, self._temporary, block)
            async with asyncio.timeout(DISK_TIMEOUT):
                await asyncio.shield(self._busy)
        except TimeoutError:
            self._is_wanted = False
            self._cache.rest()
        except OSError as exc:
            self._is_wanted = False
            self._cache.desk.warn("cache: cannot write: %s", exc.strerror or exc)

    async def _create(self) -> Temporary | None:
        """Open a file; None: there is no room."""
        creating = self._cache.spawn(self._cache.desk.create(self._key.size))
        try:
            async with asyncio.timeout(DISK_TIMEOUT):
                return await asyncio.shield(creating)
        except (TimeoutError, asyncio.CancelledError):
            creating.add_done_callback(self._discard_late)
            raise

    def _discard_late(self, creating: asyncio.Task[Temporary | None]) -> None:
        """Remove a file that came too late."""
        if not creating.cancelled() and creating.exception() is None:
            self._temporary = creating.result()
            self._clear()

    def _write(self, temporary: Temporary, block: Sequence[Buffer]) -> None:
        """For a thread."""
        store = self._cache.desk.store
        for part in block:
            store.write(temporary, memoryview(part))
        if not self._left:
            store.place(temporary, PLAIN, self._key.name)

    def close(self) -> None:
        """End; what is not complete is removed."""
        busy = self._busy
        if busy is not None and not busy.done():
            busy.add_done_callback(lambda _: self._clear())
        else:
            self._clear()

    def _clear(self) -> None:
        temporary, self._temporary = self._temporary, None
        if temporary is None:
            return
        executor, store = self._cache.desk.executor, self._cache.desk.store
        busy = self._busy
        if self._left or busy is None or busy.cancelled() or busy.exception() is not None:
            executor.submit(store.discard, temporary)
        executor.submit(os.close, temporary.fd)


def _close_late(opening: "asyncio.Future[int | None]") -> None:
    """Close a file that came too late."""
    if not opening.cancelled() and opening.exception() is None:
        fd = opening.result()
        if fd is not None:
            os.close(fd)
