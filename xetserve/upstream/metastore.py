"""Metadata on disk, beside the disk cache: small files, complete or not there.

    DIR/{scope}/{2 hex}/{64 hex}            what the Hub said to a token, see metadata.py
    DIR/plans/{2 hex}/{64 hex}/{range}      how a range of a file is built, see plans.py
    DIR/**/.{random}                        being written

A file is MAGIC, 16 bytes of BLAKE3 over its path and all that follows, the time it was said (f64, Unix seconds, little-endian),
what it is about (u32 bytes, UTF-8), and the body. One of before, with OLD_MAGIC, does not say what it is about.
The check holds it to its place: damaged, cut, or brought here from another scope, it is a miss. Scopes are
fingerprints of tokens, never tokens. Several processes share a folder: a rename is atomic. What was not used for longest goes
first: the time of modification is when it was last used, give or take an hour, and for what is minor, long ago.
"""

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from blake3 import blake3

from xetserve.metrics import METADATA_DAMAGED
from xetserve.upstream.openfile import open_regular

logger = logging.getLogger(__name__)

MAGIC: Final = b"xsmeta2\n"
OLD_MAGIC: Final = b"xsmeta1\n"
CHECK_SIZE: Final = 16  # bytes
_TIME: Final = struct.Struct("<d")
_FIELDS: Final = struct.Struct("<dI")
_HEAD_SIZE: Final = len(MAGIC) + CHECK_SIZE + _FIELDS.size
MAX_FILE_SIZE: Final = 16 * 1024 * 1024  # bytes; nothing here is larger
BLOCK: Final = 4096  # bytes that even the smallest file takes
SWEEP_PART: Final = 8  # a full folder is emptied by an eighth, so that sweeping stays rare
LEFTOVER_AGE: Final = 600.0  # seconds after which what is being written is what a crash has left
TOUCH_AGE: Final = 3600.0  # seconds after which a use is noted again
MINOR_AGE: Final = 30 * 86400.0  # seconds that what is minor is older than it is
READ_TIMEOUT: Final = 2.0  # seconds; a disk that needs longer is worse than none
CLOSE_TIMEOUT: Final = 5.0  # seconds for what is being written when the process ends

T = TypeVar("T")


class Stored(NamedTuple):
    """A body, and when it was said, in Unix seconds.

    about: the question that it answers, as text; "": not told.
    """

    said: float
    body: bytes
    about: str = ""


def unpack_file(path: str, data: bytes) -> Stored | None:
    """Read a file that was stored at a path under the folder; None: it is damaged, or from another place."""
    magic, rest = data[: len(MAGIC)], data[len(MAGIC) + CHECK_SIZE :]
    if magic not in (MAGIC, OLD_MAGIC) or not data.startswith(magic + _make_check(path, rest)):
        return None
    try:
        if magic == OLD_MAGIC:
            return Stored(_TIME.unpack_from(rest)[0], rest[_TIME.size :])
        said, size = _FIELDS.unpack_from(rest)
        end = _FIELDS.size + size
        if end > len(rest):
            return None
        about = rest[_FIELDS.size : end].decode("utf-8", "surrogatepass")
    except (struct.error, UnicodeDecodeError):
        return None
    return Stored(said, rest[end:], about)


def pack_file(path: str, stored: Stored) -> bytes:
    """Give what unpack_file reads."""
    about = stored.about.encode("utf-8", "surrogatepass")
    rest = _FIELDS.pack(stored.said, len(about)) + about + stored.body
    return MAGIC + _make_check(path, rest) + rest


class MetaFolder:
    """The folder. Everything here blocks, and is for threads.

    Args:
        max_size: bytes of all files together; a guess that sweeping corrects, since others write here, too.
    """

    def __init__(self, folder: Path, *, max_size: int) -> None:
        self._folder = folder
        self._max_size = max_size
        self._size: int | None = None  # not counted yet

    def read(self, path: str) -> Stored | None:
        """Give what is stored at a path; None: nothing, or something damaged, which goes.

        Raises:
            OSError: the disk fails.
        """
        try:
            with open(open_regular(self._folder / path), "rb", buffering=0) as file:
                data = file.read(MAX_FILE_SIZE + 1) or b""
                if time.time() - os.fstat(file.fileno()).st_mtime > TOUCH_AGE:
                    with contextlib.suppress(OSError):
                        os.utime(file.fileno())
        except (FileNotFoundError, NotADirectoryError):
            return None
        stored = unpack_file(path, data)
        if stored is None:
            METADATA_DAMAGED.add()
            self.remove(path)
        return stored

    def write(self, path: str, stored: Stored, *, is_minor: bool = False) -> None:
        """Put something in place; what is too large is left out.

        Args:
            is_minor: it goes before all that is not.

        Raises:
            OSError: the disk fails.
        """
        data = pack_file(path, stored)
        size = _round_up(len(data))
        if len(stored.body) > min(MAX_FILE_SIZE // 2, self._max_size // 2):
            return
        if self._size is None or self._size + size > self._max_size:
            self._sweep(size)
        target = self._folder / path
        temporary = target.parent / f".{os.urandom(12).hex()}"
        _make_folders(target.parent)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            if is_minor:
                past = time.time() - MINOR_AGE
                os.utime(temporary, (past, past))
            os.rename(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._size = (self._size or 0) + size

    def remove(self, path: str) -> None:
        """Remove what is stored at a path, if anything is."""
        with contextlib.suppress(OSError):
            os.unlink(self._folder / path)

    def list(self, path: str) -> list[str]:
        """List the names in a folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [name for name in os.listdir(self._folder / path) if not name.startswith(".")]
        return []

    def _sweep(self, need: int) -> None:
        """Count, and make room for need bytes and more; leftovers of crashes go."""
        found = []
        now = time.time()
        for item in _walk(self._folder):
            with contextlib.suppress(OSError):
                stat = item.stat(follow_symlinks=False)
                if item.name.startswith(".") and now - stat.st_mtime > LEFTOVER_AGE:
                    os.unlink(item.path)
                    continue
                found.append((stat.st_mtime, _round_up(stat.st_size), item.path))
        self._size = sum(size for _, size, _ in found)
        if self._size + need <= self._max_size:
            return
        wanted = self._max_size - self._max_size // SWEEP_PART - need
        for _, size, path in sorted(found):
            if self._size <= wanted:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            self._size -= size
            with contextlib.suppress(OSError):  # others are in there, mostly
                os.rmdir(os.path.dirname(path))


class MetaStore:
    """The folder, from the event loop: reads wait for a thread, writes are done later, one after the other.

    Args:
        max_pending: bytes that may wait to be written; what comes beyond is not stored.
    """

    def __init__(self, folder: Path, *, max_size: int, max_pending: int) -> None:
        self._folder = MetaFolder(folder, max_size=max_size)
        self._reading = ThreadPoolExecutor(4, "metadata")
        self._writing = ThreadPoolExecutor(1, "metadata-write")  # one: writes stay in order
        self._max_pending = max_pending
        self._pending = 0
        self._waiting: dict[str, Stored | None] = {}  # what reads have to see already; None: gone
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def read(self, path: str) -> Stored | None:
        """Give what is stored at a path, or soon will be; a disk that fails or hangs has nothing."""
        if path in self._waiting:
            return self._waiting[path]
        return await self._run(self._folder.read, path)

    async def list(self, path: str) -> list[str]:
        """List the names in a folder."""
        return await self._run(self._folder.list, path) or []

    async def _run(self, function: Callable[[str], T | None], path: str) -> T | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await loop.run_in_executor(self._reading, function, path)
        except (OSError, TimeoutError) as exc:
            logger.warning("metadata: cannot read: %s", exc)
            return None

    def write(self, path: str, stored: Stored, *, is_minor: bool = False) -> None:
        """Store something soon; see MetaFolder."""
        size = len(stored.body) + len(stored.about) + _HEAD_SIZE
        if self._is_closed or self._pending + size > self._max_pending:
            return
        self._pending += size
        work = partial(self._folder.write, path, stored, is_minor=is_minor)
        self._submit(path, stored, work, size)

    def remove(self, path: str) -> None:
        """Remove something soon."""
        if not self._is_closed:
            self._submit(path, None, partial(self._folder.remove, path), 0)

    def _submit(
        self, path: str, stored: Stored | None, work: Callable[[], None], size: int
    ) -> None:
        loop = asyncio.get_running_loop()
        self._waiting[path] = stored

        async def wait() -> None:
            try:
                await loop.run_in_executor(self._writing, work)
            except OSError as exc:
                logger.warning("metadata: cannot write: %s", exc.strerror or exc)
            finally:
                self._pending -= size
                if self._waiting.get(path) is stored:
                    self._waiting.pop(path, None)

        task = loop.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until all has been written."""
        while tasks := set(self._tasks):
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        """Finish writing, within a few seconds."""
        self._is_closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.settle()
        for executor in (self._reading, self._writing):
            executor.shutdown(wait=False, cancel_futures=True)


def _make_check(path: str, rest: bytes) -> bytes:
    return blake3(path.encode() + b"\0" + rest).digest(CHECK_SIZE)


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it, for nobody else; mkdir's mode is for the last one only."""
    with contextlib.suppress(FileExistsError):
        try:
            folder.mkdir(mode=0o700)
        except FileNotFoundError:
            _make_folders(folder.parent)
            folder.mkdir(mode=0o700)


def _round_up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _walk(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        items = list(os.scandir(folder))
    except OSError:
        return
    for item in items:
        if item.is_dir(follow_symlinks=False):
            yield from _walk(item.path)
        elif item.is_file(follow_symlinks=False):
            yield item
