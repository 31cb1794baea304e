"""Metadata on disk, beside the disk cache: small files, complete or not there.

    DIR/{scope}/{2 hex}/{64 hex}            what the Hub said to a token, see cache.py
    DIR/plans/{2 hex}/{64 hex}/{range}      how a range of a file is built,
                                            see upstream/cas/reconstruction_archive.py
    DIR/imported/...                        the same, brought from elsewhere
    DIR/**/.{random}                        being written

A file is MAGIC, 16 bytes of BLAKE3 over its path and all that follows, the time it was said (f64,
Unix seconds, little-endian), what it is about (u32 bytes, UTF-8), and the body. One of before, with
OLD_MAGIC, does not say what it is about. The check holds it to its place: damaged, cut, or brought
here from another scope, it is a miss. Scopes are fingerprints of tokens, never tokens. Several
processes share a folder: a rename is atomic.

The bound counts blocks, of files and of folders. A folder that is too full is emptied by shares:
what was said to no token, plans and what was brought from elsewhere have one each, and what was
said to tokens has one, of which each token has its part. Whoever takes less than a share leaves the
rest to the others, so that nobody pushes out more than what is beyond a share. Of a share, what was
not used for longest goes first: the time of modification is when it was last used, give or take an
hour, and for what is minor, long ago.
"""

import asyncio
import contextlib
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from blake3 import blake3

from xetserve.base.atomic_file import make_folders, replace_file
from xetserve.base.regular_files import is_folder, open_regular, scan
from xetserve.metrics.catalogue import METADATA_DAMAGED
from xetserve.upstream.answers.scope import ANONYMOUS

logger = logging.getLogger(__name__)

MAGIC: Final = b"xsmeta2\n"
OLD_MAGIC: Final = b"xsmeta1\n"
CHECK_SIZE: Final = 16  # bytes
_TIME: Final = struct.Struct("<d")
_FIELDS: Final = struct.Struct("<dI")
MAX_FILE_SIZE: Final = 16 * 1024 * 1024  # bytes; nothing here is larger
BLOCK: Final = 4096  # bytes that even the smallest file takes
SWEEP_PART: Final = 8  # a full folder is emptied by an eighth, so that sweeping stays rare
LEFTOVER_AGE: Final = 600.0  # seconds after which what is being written is what a crash has left
PLANS: Final = "plans"
IMPORTED: Final = "imported"
WRITE_TRIES: Final = 3  # others remove a folder that is empty
TOUCH_AGE: Final = 3600.0  # seconds after which a use is noted again
MINOR_AGE: Final = 30 * 86400.0  # seconds that what is minor is older than it is
WAIT_COST: Final = 1024  # bytes of memory for what waits to be written or removed, beside its texts
READ_TIMEOUT: Final = 2.0  # seconds; a disk that needs longer is worse than none
CLOSE_TIMEOUT: Final = 5.0  # seconds for what is being written when the process ends

_COMMON: Final = (ANONYMOUS, PLANS, IMPORTED)

T = TypeVar("T")


class Stored(NamedTuple):
    """A body, and when it was said, in Unix seconds.

    about: the question that it answers, as text; "": not told.
    """

    said: float
    body: bytes
    about: str = ""


def unpack_file(path: str, data: bytes) -> Stored | None:
    """Read a file that was stored at a path under the folder; None: it is damaged, or from another
    place.
    """
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
    """Return what unpack_file reads."""
    about = stored.about.encode("utf-8", "surrogatepass")
    rest = _FIELDS.pack(stored.said, len(about)) + about + stored.body
    return MAGIC + _make_check(path, rest) + rest


class AnswerFolder:
    """The folder. Everything here blocks, and is for threads.

    Args:
        max_size: bytes of all files together; a guess that sweeping corrects, since others write
            here, too.
    """

    def __init__(self, folder: Path, *, max_size: int) -> None:
        self._folder = folder
        self._max_size = max_size
        self._size: int | None = None  # not counted yet

    def read(self, path: str, *, is_imported: bool = False, lead: float = 0.0) -> Stored | None:
        """Return what is stored at a path; None: nothing, or something damaged, which goes.

        Args:
            is_imported: what was brought from elsewhere.
            lead: see write.

        Raises:
            OSError: the disk fails.
        """
        target = self._locate(path, is_imported)
        try:
            with open(open_regular(target), "rb", buffering=0) as file:
                data = file.read(MAX_FILE_SIZE + 1) or b""
                now = time.time() + lead
                if now - os.fstat(file.fileno()).st_mtime > TOUCH_AGE:
                    with contextlib.suppress(OSError):
                        os.utime(file.fileno(), (now, now))
        except (FileNotFoundError, NotADirectoryError):
            return None
        stored = unpack_file(path, data)
        if stored is None:
            METADATA_DAMAGED.add()
            with contextlib.suppress(OSError):
                os.unlink(target)
        return stored

    def write(
        self,
        path: str,
        stored: Stored,
        *,
        is_minor: bool = False,
        is_first: bool = False,
        only_with: str | None = None,
        lead: float = 0.0,
    ) -> None:
        """Put something in place; what is too large is left out.

        Args:
            is_minor: it goes before all that is not.
            is_first: leave what is there already.
            only_with: a path; where nothing is stored there, nor brought from elsewhere, this is
                not stored.
            lead: seconds by which it counts as used later than it was.

        Raises:
            OSError: the disk fails.
        """
        if only_with is not None and not self._has(only_with):
            return
        if is_first and self._locate(path).exists():
            return
        data = pack_file(path, stored)
        size = round_up(len(data))
        if len(stored.body) > min(MAX_FILE_SIZE // 2, self._max_size // 2):
            return
        if self._size is None or self._size + size > self._max_size:
            self._sweep(size)
        lead = -MINOR_AGE if is_minor else lead
        used = time.time() + lead if lead else None
        num_folders = self._put(self._locate(path), data, used)
        self._size = (self._size or 0) + size + num_folders * BLOCK

    def _put(self, target: Path, data: bytes, used: float | None) -> int:
        """Write a file, used last in Unix seconds, or now; gives the number of folders that were
        made for it.
        """
        temporary = target.parent / f".{os.urandom(12).hex()}"
        num_folders = 0
        for number in range(WRITE_TRIES):
            num_folders += make_folders(target.parent)
            try:
                with replace_file(target, temporary) as file:
                    file.write(data)
                    if used is not None:
                        file.flush()
                        os.utime(file.fileno(), (used, used))
                break
            except FileNotFoundError:  # a sweep has removed the folder, which was empty
                if number + 1 == WRITE_TRIES:
                    raise
        return num_folders

    def remove(self, path: str) -> None:
        """Remove what is stored at a path, if anything is."""
        self._remove(self._locate(path))

    def list(self, path: str, *, is_imported: bool = False) -> list[str]:
        """List the names in a folder."""
        items = scan(self._locate(path, is_imported))
        return [item.name for item in items if not item.name.startswith(".")]

    def _locate(self, path: str, is_imported: bool = False) -> Path:
        return self._folder / IMPORTED / path if is_imported else self._folder / path

    def _has(self, path: str) -> bool:
        return self._locate(path).exists() or self._locate(path, True).exists()

    def _remove(self, target: Path) -> int:
        """Remove a file and the folders that are empty then; gives the bytes of the folders."""
        with contextlib.suppress(OSError):
            os.unlink(target)
            return self._prune(target.parent)
        return 0

    def _prune(self, folder: Path) -> int:
        """Remove folders that are empty, from one upwards; gives their bytes."""
        size = 0
        with contextlib.suppress(OSError):  # others are in there, mostly
            while folder != self._folder:
                os.rmdir(folder)
                folder = folder.parent
                size += BLOCK
        return size

    def _sweep(self, need: int) -> None:
        """Count, and make room for need bytes and more; leftovers of crashes and empty folders
        go.
        """
        groups: dict[str, _Group] = {}
        for item in scan(self._folder):
            if is_folder(item):
                groups[item.name] = group = _Group()
                group.size = _gather(item.path, group.files, time.time())
        self._size = sum(group.size for group in groups.values())
        if self._size + need <= self._max_size:
            return
        wanted = self._max_size - self._max_size // SWEEP_PART - need
        limits = _share_out({name: group.size for name, group in groups.items()}, wanted)
        for name, group in groups.items():
            excess = group.size - limits[name]
            for file in sorted(group.files):
                if excess <= 0:
                    break
                freed = self._remove(Path(file.path))
                if os.path.lexists(file.path):
                    continue  # it cannot be removed
                freed += file.size
                excess -= freed
                self._size -= freed


class _File(NamedTuple):
    """A file, when it was used last in Unix seconds, and its bytes in whole blocks."""

    used: float
    size: int
    path: str


@dataclass(slots=True)
class _Group:
    """What one scope has, or what all share: its files, and the bytes of files and folders."""

    files: list[_File] = field(default_factory=list)
    size: int = 0


def _gather(folder: str, files: list[_File], now: float) -> int:
    """Find the files in a folder and below it, and remove leftovers and empty folders; gives the
    bytes that are left.
    """
    size = 0
    for item in scan(folder):
        if is_folder(item):
            size += _gather(item.path, files, now)
            continue
        with contextlib.suppress(OSError):
            stat = item.stat(follow_symlinks=False)
            if item.name.startswith(".") and now - stat.st_mtime > LEFTOVER_AGE:
                os.unlink(item.path)
                continue
            files.append(_File(stat.st_mtime, round_up(stat.st_size), item.path))
            size += files[-1].size
    if not size:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
            return 0
    return size + BLOCK


def _share_out(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Return how many of total bytes each group may keep."""
    common = {name: size for name, size in sizes.items() if name in _COMMON}
    tokens = {name: size for name, size in sizes.items() if name not in _COMMON}
    level = _find_level([*common.values(), sum(tokens.values())], total)
    token_level = _find_level(tokens.values(), min(level, sum(tokens.values())))
    return dict.fromkeys(common, level) | dict.fromkeys(tokens, token_level)


def _find_level(sizes: Iterable[int], total: int) -> int:
    """Find how much each may have at most, so that all together have total: those that want less
    leave the rest to others.
    """
    level, ordered = total, sorted(sizes)
    for at, size in enumerate(ordered):
        level = total // (len(ordered) - at)
        if size > level:
            break
        total -= size
    return max(0, level)


class AnswerStore:
    """The folder, from the event loop: reads wait for a thread, writes are done later, one after
    the other.

    Args:
        max_pending: bytes that may wait to be written; what comes beyond is not stored.
    """

    def __init__(self, folder: Path, *, max_size: int, max_pending: int) -> None:
        self._folder = AnswerFolder(folder, max_size=max_size)
        self._reading = ThreadPoolExecutor(4, "metadata")
        self._writing = ThreadPoolExecutor(1, "metadata-write")  # one: writes stay in order
        self._max_pending = max_pending
        self._pending = 0
        self._waiting: dict[str, Stored | None] = {}  # what reads have to see already; None: gone
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def read(
        self, path: str, *, is_imported: bool = False, lead: float = 0.0
    ) -> Stored | None:
        """Return what is stored at a path, or soon will be; a disk that fails or hangs has
        nothing.
        """
        if path in self._waiting and not is_imported:
            return self._waiting[path]
        return await self._run(partial(self._folder.read, path, is_imported=is_imported, lead=lead))

    async def list(self, path: str, *, is_imported: bool = False) -> list[str]:
        """List the names in a folder."""
        return await self._run(partial(self._folder.list, path, is_imported=is_imported)) or []

    async def _run(self, function: Callable[[], T | None]) -> T | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await loop.run_in_executor(self._reading, function)
        except (OSError, TimeoutError) as exc:
            logger.warning("metadata: cannot read: %s", exc)
            return None

    def write(
        self,
        path: str,
        stored: Stored,
        *,
        is_minor: bool = False,
        is_first: bool = False,
        only_with: str | None = None,
        lead: float = 0.0,
        is_refusal: bool = False,
    ) -> bool:
        """Store something soon; see AnswerFolder. False: too much is waiting, it will not be
        stored.

        Args:
            is_refusal: it takes something back, and has room of its own where others have none.
        """
        size = WAIT_COST + len(path) + len(stored.body) + len(stored.about)
        if not self._has_room(size, is_refusal=is_refusal):
            return False
        work = partial(
            self._folder.write,
            path,
            stored,
            is_minor=is_minor,
            is_first=is_first,
            only_with=only_with,
            lead=lead,
        )
        if not is_first:
            self._waiting[path] = stored
        self._submit(path, stored, work, size)
        return True

    def remove(self, path: str) -> None:
        """Remove something soon."""
        size = WAIT_COST + len(path)
        if self._waiting.get(path, self) is None or not self._has_room(size, is_refusal=True):
            return
        self._waiting[path] = None
        self._submit(path, None, partial(self._folder.remove, path), size)

    def _has_room(self, size: int, *, is_refusal: bool) -> bool:
        limit = self._max_pending * (2 if is_refusal else 1)
        return not self._is_closed and self._pending + size <= limit

    def _submit(
        self, path: str, stored: Stored | None, work: Callable[[], None], size: int
    ) -> None:
        loop = asyncio.get_running_loop()
        self._pending += size

        async def wait() -> None:
            try:
                await loop.run_in_executor(self._writing, work)
            except OSError as exc:
                logger.warning("metadata: cannot write: %s", exc.strerror or exc)
            finally:
                self._pending -= size
                if path in self._waiting and self._waiting[path] is stored:
                    del self._waiting[path]

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


def round_up(size: int) -> int:
    """Return the bytes that a file takes on disk, about."""
    return -(-size // BLOCK) * BLOCK
