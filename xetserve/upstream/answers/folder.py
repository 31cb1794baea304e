"""The folder of cached answers, beside the disk cache: small files, complete or not there.

    DIR/{scope}/{2 hex}/{64 hex}            answers of the Hub to a token, see cache.py
    DIR/plans/{2 hex}/{64 hex}/{range}      reconstructions of a file,
                                            see upstream/cas/reconstruction_archive.py
    DIR/imported/...                        the same, from an archive
    DIR/**/.{random}                        files that are being written

Each file has the form of stored_file.py. A scope is a fingerprint of a token, never the token
itself. Several processes share the folder: a rename is atomic.

The size limit counts blocks, of files and of folders. A sweep of a full folder works by shares.
Answers to no token, plans and imported answers have one share each. Answers to tokens together have
one, which the tokens divide equally. What one does not need of its share is left to the others.
Files are removed only from what exceeds its share, those that were not used for longest first. The
time of modification is the last use, to within an hour; minor files are dated far back.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.atomic_file import give_to_owner, make_folders, replace_file
from xetserve.base.regular_files import is_folder, open_regular, scan
from xetserve.errors import OtherVersion
from xetserve.metrics.catalogue import METADATA_DAMAGED
from xetserve.upstream.answers.question import Subject
from xetserve.upstream.answers.scope import ANONYMOUS
from xetserve.upstream.answers.stored_file import Stored, pack_file, read_about, unpack_file

PLANS: Final = "plans"
IMPORTED: Final = "imported"
MAX_FILE_SIZE: Final = 16 * 1024 * 1024  # bytes; no file is larger
BLOCK: Final = 4096  # bytes that even the smallest file takes
SWEEP_PART: Final = 8  # a sweep frees an eighth, so that sweeps stay rare
LEFTOVER_AGE: Final = 600.0  # seconds after which an unfinished file is what a crash has left
WRITE_TRIES: Final = 3  # other processes remove empty folders
TOUCH_AGE: Final = 3600.0  # seconds after which a use is recorded again
ABOUT_SIZE: Final = 8192  # bytes at the start of a file that hold its question
MINOR_AGE: Final = 30 * 86400.0  # seconds that minor files are dated back

_COMMON: Final = (ANONYMOUS, PLANS, IMPORTED)


class AnswerFolder:
    """The folder. All methods block, so they are for threads.

    Args:
        max_size: bytes of all files together. The count is an estimate, because other processes
            write here, too; each sweep corrects it.
    """

    def __init__(self, folder: Path, *, max_size: int) -> None:
        self._folder = folder
        self._max_size = max_size
        self._size: int | None = None  # not counted yet

    def read(self, path: str, *, is_imported: bool = False, lead: float = 0.0) -> Stored | None:
        """Return the answer stored at a path; None: there is none, or another version wrote it, or
        it was damaged and is removed.

        Args:
            is_imported: read an imported answer.
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
        try:
            stored = unpack_file(path, data)
        except OtherVersion:
            return None
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
        """Store an answer at a path; one that is too large is left out.

        Args:
            is_minor: it is removed before all answers that are not.
            is_first: leave an answer that is there already.
            only_with: store nothing unless there is an answer at this path, imported or not.
            lead: seconds by which the last use is dated ahead.

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
        """Write a file and return the number of folders made for it.

        Args:
            used: the time of its last use, Unix seconds; None: now.
        """
        temporary = target.parent / f".{os.urandom(12).hex()}"
        num_folders = 0
        for number in range(WRITE_TRIES):
            num_folders += make_folders(target.parent)
            try:
                with replace_file(target, temporary) as file:
                    give_to_owner(file.fileno(), target.parent)
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
        """Remove the answer stored at a path, if there is one."""
        self._remove(self._locate(path))

    def list(self, path: str, *, is_imported: bool = False) -> list[str]:
        """Return the names in a folder."""
        items = scan(self._locate(path, is_imported))
        return [item.name for item in items if not item.name.startswith(".")]

    def has_for_others(self, path: str) -> bool:
        """Return whether the positive answer to the same question is stored for another token.

        Raises:
            OSError: the disk fails.
        """
        scope, _, rest = path.partition("/")
        for is_imported in (False, True):
            for item in scan(self._locate("", is_imported)):
                if item.name in (scope, PLANS, IMPORTED) or item.name.startswith("."):
                    continue
                stored = self.read(f"{item.name}/{rest}", is_imported=is_imported)
                if stored is not None and stored.body.startswith(b"+"):
                    return True
        return False

    def count_by_realm(self, limit: int) -> dict[str, int]:
        """Return the number of stored answers about repositories and files of each Hub.

        Args:
            limit: files to look at; the rest is not counted.
        """
        counts: dict[str, int] = {}
        for path in itertools.islice(self._iter_answers(), limit):
            with contextlib.suppress(OSError), open(open_regular(path), "rb", buffering=0) as file:
                subject = Subject.parse(read_about(file.read(ABOUT_SIZE) or b""))
                if subject is not None and subject.kind in ("api", "file"):
                    counts[subject.realm] = counts.get(subject.realm, 0) + 1
        return counts

    def _iter_answers(self) -> Iterator[str]:
        """Yield the paths of all files but plans."""
        waiting = [self._locate("", is_imported) for is_imported in (False, True)]
        while waiting:
            for item in scan(waiting.pop()):
                if item.name in (PLANS, IMPORTED) or item.name.startswith("."):
                    continue
                if is_folder(item):
                    waiting.append(Path(item.path))
                else:
                    yield item.path

    def _locate(self, path: str, is_imported: bool = False) -> Path:
        return self._folder / IMPORTED / path if is_imported else self._folder / path

    def _has(self, path: str) -> bool:
        return self._locate(path).exists() or self._locate(path, True).exists()

    def _remove(self, target: Path) -> int:
        """Remove a file and the folders that it leaves empty; return the bytes of the folders."""
        with contextlib.suppress(OSError):
            os.unlink(target)
            return self._prune(target.parent)
        return 0

    def _prune(self, folder: Path) -> int:
        """Remove empty folders, from one upwards; return their bytes."""
        size = 0
        with contextlib.suppress(OSError):  # most folders are not empty
            while folder != self._folder:
                os.rmdir(folder)
                folder = folder.parent
                size += BLOCK
        return size

    def _sweep(self, need: int) -> None:
        """Count all files, remove leftovers, and make room for need bytes and more."""
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
    """A file: when it was used last (Unix seconds), its bytes in whole blocks, its path."""

    used: float
    size: int
    path: str


@dataclass(slots=True)
class _Group:
    """The files that one share covers, and the bytes of these files and their folders."""

    files: list[_File] = field(default_factory=list)
    size: int = 0


def _gather(folder: str, files: list[_File], now: float) -> int:
    """Find files below a folder, remove leftovers and empty folders; return the bytes left."""
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
    """Return the limit of each group in bytes; so cut, all groups have at most total bytes."""
    common = {name: size for name, size in sizes.items() if name in _COMMON}
    tokens = {name: size for name, size in sizes.items() if name not in _COMMON}
    level = _find_level([*common.values(), sum(tokens.values())], total)
    token_level = _find_level(tokens.values(), min(level, sum(tokens.values())))
    return dict.fromkeys(common, level) | dict.fromkeys(tokens, token_level)


def _find_level(sizes: Iterable[int], total: int) -> int:
    """Return the largest limit for which sizes, each cut to the limit, have at most total bytes.

    Example: sizes 10, 50 and 90 with total 100 have the limit 45: 10 + 45 + 45.
    """
    level, ordered = total, sorted(sizes)
    for at, size in enumerate(ordered):
        level = total // (len(ordered) - at)
        if size > level:
            break
        total -= size
    return max(0, level)


def round_up(size: int) -> int:
    """Return the approximate bytes that a file takes on disk: whole blocks."""
    return -(-size // BLOCK) * BLOCK
