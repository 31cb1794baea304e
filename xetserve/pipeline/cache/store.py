"""The folder of the cache. Everything here blocks, and is for threads.

    DIR/ab/{64 hex: xorb hash}/                entries, see entry.py
      {start}-{end}-{random}.xc                .proven.xc once they are proven,
                                               .imported.xc as long as only an archive has them
    DIR/ledgers/ab/{64 hex: file hash}.xl      ledgers of proven files, see verify/ledger_file.py
    DIR/plain/ab/{git or sha256}-{hex}         files that are not Xet, see blob_file.py
    DIR/large/ab/{git or sha256}-{hex}         large ones, with checks
    DIR/tmp/{random}                           what is being written
    DIR/usage, DIR/sweep.lock                  see quota.py

Several processes share a folder. Names are unique and a rename is atomic, so reading and writing
need no lock: a file is complete or not there. See temporary.py for what is being written.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.atomic_file import make_folders
from xetserve.base.regular_files import open_regular
from xetserve.errors import ConfigError, FormatError
from xetserve.pipeline.cache.compare import has_proven_copies
from xetserve.pipeline.cache.entry import EntryIndex, EntryKey, Standing, make_entry_name
from xetserve.pipeline.cache.indexes import IndexCache
from xetserve.pipeline.cache.layout import (
    Stored,
    find_longest,
    list_entries,
    make_shelf_path,
    make_xorb_path,
)
from xetserve.pipeline.cache.quota import Quota
from xetserve.pipeline.cache.temporary import Temporary, open_temporary, rename_temporary
from xetserve.xet.reconstruction import ChunkRange

TOUCH_AGE: Final = 60.0  # seconds after which a use is noted again
PLACE_TRIES: Final = 5  # a sweep may remove an empty folder before a file comes into it
MAX_XORB_ENTRIES: Final = 8192  # of one xorb: whoever looks for chunks of it looks at all


class Segment(NamedTuple):
    """A run of chunks out of one entry."""

    path: str
    entry: EntryIndex
    chunks: ChunkRange


class Found(NamedTuple):
    """What a lookup gave: the segments that make up the range, None if they do not; entries removed
    as damaged.
    """

    segments: tuple[Segment, ...] | None
    num_damaged: int

    @property
    def has_imported(self) -> bool:
        """Whether some of them came in an archive, and nothing speaks for them yet."""
        return any(Standing.of(one.path) is Standing.IMPORTED for one in self.segments or ())


def prepare_folder(folder: Path) -> None:
    """Make the folder of a cache.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    try:
        for path in (folder, folder / "tmp"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(open_regular(folder / "usage", os.O_RDWR | os.O_CREAT))
    except OSError as exc:
        raise ConfigError(f"cannot keep a cache in {folder}: {exc.strerror}") from None


class CacheStore:
    """Entries on disk.

    Args:
        folder: a prepared one.
        max_size: bytes that all files together may have.
        min_free: bytes of the file system that stay free.

    room: for all that is in the folder.
    """

    def __init__(self, folder: Path, *, max_size: int, min_free: int) -> None:
        self.folder = folder
        self.room = Quota(folder, max_size=max_size, min_free=min_free)
        self.max_entry_size = max_size // 2  # bytes; a larger one would push out all others
        self._temporary = folder / "tmp"
        self._indexes = IndexCache()
        # Of two files that come with the same name, each is counted out once.
        self._placing = threading.Lock()

    # Reading.

    def find(self, key: EntryKey, takes_imported: bool = True) -> Found:
        """Find stored entries that together hold the chunks of a key; the newest indexes are kept
        in memory.

        Args:
            takes_imported: also those that are imported, where there is no other.

        Raises:
            OSError: the disk fails.
        """
        now = time.time()
        entries: list[tuple[Stored, ChunkRange]] = []
        imported: list[tuple[Stored, ChunkRange]] = []
        for entry in list_entries(self._get_folder(key.xorb_hash)):
            is_imported = Standing.of(entry[0].path) is Standing.IMPORTED
            (imported if is_imported else entries).append(entry)
        num_damaged = 0
        segments: list[Segment] = []
        chunk = key.chunks.start
        while chunk < key.chunks.end:
            usable = entries
            stored, chunks = find_longest(entries, chunk)
            if stored is None and takes_imported:
                usable = imported
                stored, chunks = find_longest(imported, chunk)
            if stored is None:
                return Found(None, num_damaged)
            end = min(chunks.end, key.chunks.end)
            try:
                index = self._indexes.get(stored, key.xorb_hash, chunks)
                position = index.position_of(chunk)
                expected = segments[-1].entry.position_of(chunk) if segments else None
                if position != (key.byte_range.start if expected is None else expected):
                    raise FormatError("packed in another way")
                if end == key.chunks.end and index.position_of(end) != key.byte_range.end:
                    raise FormatError("packed in another way")
            except FormatError:
                usable.remove((stored, chunks))
                num_damaged += self.remove(stored.path)
                continue
            except FileNotFoundError:
                usable.remove((stored, chunks))  # another process has removed it
                continue
            segments.append(Segment(stored.path, index, ChunkRange(chunk, end)))
            chunk = end
            if abs(now - stored.used) > TOUCH_AGE:
                self.touch(stored.path)
        return Found(tuple(segments) or None, num_damaged)

    def touch(self, path: str) -> None:
        """Note that a file is used."""
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)

    def remove(self, path: str) -> int:
        """Remove a file; gives 1, or 0 where somebody else has done it or the disk refuses."""
        self._indexes.drop(path)
        if self.room.remove(path):
            return 1
        proven = Standing.PROVEN.rename(path)
        if not path.endswith(Standing.UNPROVEN.value) or proven == path:
            return 0
        # It may have been marked since its path was seen.
        self._indexes.drop(proven)
        return self.room.remove(proven)

    def mark_proven(self, path: str) -> None:
        """Give an entry its standing, if it is still there.

        Raises:
            OSError: the disk fails.
        """
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, Standing.PROVEN.rename(path))

    def prove_gaps(self, xorb_hash: bytes, gaps: dict[str, list[ChunkRange]]) -> list[str]:
        """Mark entries of which other entries prove what is not proven otherwise.

        Args:
            gaps: path of an entry -> the chunks that nothing else proves.

        Returns:
            the paths that the entries had which are marked now.

        Raises:
            OSError: the disk fails.
        """
        proven: list[str] = []
        left = dict(gaps)
        while True:  # what has been marked may prove another one
            found = [path for path in left if self._has_copies(xorb_hash, path, left[path])]
            for path in found:
                del left[path]
                self.mark_proven(path)
            proven += found
            if not found or not left:
                return proven

    def _has_copies(self, xorb_hash: bytes, path: str, gaps: list[ChunkRange]) -> bool:
        entries = list_entries(self._get_folder(xorb_hash))
        return has_proven_copies(self._indexes, entries, xorb_hash, path, gaps)

    def remove_chunks(self, xorb_hash: bytes, chunks: ChunkRange) -> int:
        """Remove all entries that hold any of these chunks; gives their number."""
        paths = [
            stored.path
            for stored, found in list_entries(self._get_folder(xorb_hash))
            if found.start < chunks.end and chunks.start < found.end
        ]
        return sum(map(self.remove, paths))

    def _get_folder(self, xorb_hash: bytes) -> str:
        return make_xorb_path(self.folder, xorb_hash)

    # Writing.

    def create(self, size: int) -> Temporary | None:
        """Open a new file for an entry of size bytes; None: there is no room for it, sweeping may
        help.

        Raises:
            OSError: the disk fails.
        """
        if not self.room.take(size):
            return None
        try:
            temporary = open_temporary(self._temporary, size)
        except OSError:
            with contextlib.suppress(OSError):
                self.room.give_back(size)
            raise
        if temporary is None:
            self.room.give_back(size)
        return temporary

    def write(self, temporary: Temporary, data: bytes | memoryview) -> None:
        """Write all of data where the last write ended.

        Raises:
            OSError: the disk fails.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(temporary.fd, view) :]

    def publish(
        self, temporary: Temporary, key: EntryKey, standing: Standing = Standing.UNPROVEN
    ) -> str | None:
        """Put a complete file in place; what it contains as well goes, and so does it if others
        contain it, or are too many.

        Those that are imported do not count as others, unless it is, too.

        Returns:
            its path; None: it has gone.

        Raises:
            OSError: the disk fails.
        """
        stored = list_entries(self._get_folder(key.xorb_hash))
        if sum(not key.chunks.contains(chunks) for _, chunks in stored) >= MAX_XORB_ENTRIES:
            self.discard(temporary)
            return None
        is_own = standing is not Standing.IMPORTED
        for old, chunks in stored:
            counts = not is_own or Standing.of(old.path) is not Standing.IMPORTED
            if counts and chunks.contains(key.chunks):
                self.discard(temporary)
                return None
        folder = self._get_folder(key.xorb_hash)
        target = f"{folder}/{make_entry_name(key.chunks, os.urandom(8), standing)}"
        try:
            rename_temporary(temporary, target)
        except FileNotFoundError:  # no folder yet
            make_folders(Path(folder))
            rename_temporary(temporary, target)
        for old, chunks in stored:
            may_go = is_own or Standing.of(old.path) is Standing.IMPORTED
            if may_go and key.chunks.contains(chunks):
                self.remove(old.path)
        return target

    def place(self, temporary: Temporary, shelf: str, name: str) -> None:
        """Put a complete file on a shelf, in place of the one that has its name.

        Raises:
            OSError: the disk fails.
        """
        target = make_shelf_path(self.folder, shelf, name)
        replaced = 0
        with self._placing:
            with contextlib.suppress(FileNotFoundError):
                replaced = os.stat(target, follow_symlinks=False).st_size
            try:
                rename_temporary(temporary, target)
            except FileNotFoundError:  # no folder yet
                make_folders(Path(target).parent)
                rename_temporary(temporary, target)
        if replaced:
            self.room.give_back(replaced)

    def place_beside(self, temporary: Temporary, target: str) -> None:
        """Put a complete file at a path that is not under the quota, in place of the one that is
        there.

        Raises:
            OSError: the disk fails.
        """
        for number in range(PLACE_TRIES):
            make_folders(Path(target).parent)
            try:
                rename_temporary(temporary, target)
                break
            except FileNotFoundError:  # somebody has removed the folder, which was empty
                if number + 1 == PLACE_TRIES:
                    raise
        self.room.give_back(temporary.size)

    def discard(self, temporary: Temporary) -> None:
        """Remove an incomplete file."""
        with contextlib.suppress(OSError):
            os.unlink(temporary.path)
        with contextlib.suppress(OSError):
            self.room.give_back(temporary.size)

    def check_writable(self) -> None:
        """Write something, and remove it.

        Raises:
            OSError: it cannot be done.
        """
        path = f"{self._temporary}/{os.urandom(16).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"\0")
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):  # whoever sweeps takes it for a leftover
                os.unlink(path)
