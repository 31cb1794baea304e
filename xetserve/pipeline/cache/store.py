"""Store entries in the folder of the cache. All functions block, and are for threads.

    DIR/ab/{64 hex: xorb hash}/                entries, see entry.py
      {start}-{end}-{random}.xc                .proven.xc once the entry is proven,
                                               .imported.xc if it came from an archive
    DIR/ledgers/ab/{64 hex: file hash}.xl      ledgers of proven files, see verify/ledger_file.py
    DIR/plain/ab/{git or sha256}-{hex}         small files that are not Xet, see blob_file.py
    DIR/large/ab/{git or sha256}-{hex}         large files that are not Xet, with checks
    DIR/tmp/{random}                           files that are being written
    DIR/usage, DIR/sweep.lock                  see quota.py

Several processes share a folder. Names are unique and renames are atomic, so a file is either
complete or not there, and reading and writing need no lock. See temporary.py for files in tmp.
"""

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.atomic_file import make_folders
from xetserve.base.permissions import advise_on_folder, describe_os_error
from xetserve.base.regular_files import open_regular
from xetserve.errors import ConfigError, FormatError, OtherVersion
from xetserve.pipeline.cache.compare import has_proven_copies
from xetserve.pipeline.cache.entry import EntryIndex, EntryKey, Standing, make_entry_name
from xetserve.pipeline.cache.indexes import IndexCache
from xetserve.pipeline.cache.layout import (
    Stored,
    find_longest,
    list_entries,
    make_file_path,
    make_xorb_path,
)
from xetserve.pipeline.cache.quota import Quota
from xetserve.pipeline.cache.temporary import Temporary, open_temporary, rename_temporary
from xetserve.xet.reconstruction import ChunkRange

logger = logging.getLogger(__name__)

TOUCH_AGE: Final = 60.0  # seconds after which a use is recorded again
PLACE_TRIES: Final = 5  # a sweep may remove a new folder before a file is in it
MAX_XORB_ENTRIES: Final = 8192  # of one xorb, since a lookup lists all of them


class Segment(NamedTuple):
    """A run of chunks out of one entry."""

    path: str
    entry: EntryIndex
    chunks: ChunkRange


class Found(NamedTuple):
    """The result of a lookup.

    segments: they make up the range; None if the range is not stored completely.
    num_damaged: damaged entries that were removed.
    """

    segments: tuple[Segment, ...] | None
    num_damaged: int

    @property
    def has_imported(self) -> bool:
        """Whether some segments came from an archive and are not proven."""
        return any(Standing.of(one.path) is Standing.IMPORTED for one in self.segments or ())


def prepare_folder(folder: Path) -> None:
    """Create the folder of a cache.

    Raises:
        ConfigError: it cannot be created or written to.
    """
    try:
        make_cache_folder(folder)
    except OSError as exc:
        advice = advise_on_folder(folder) if isinstance(exc, PermissionError) else ""
        raise ConfigError(
            f"cannot keep a cache in {folder}: {describe_os_error(exc)}{advice}"
        ) from None


def prepare_for_owner(folder: Path) -> None:
    """Create the folder of a cache, for a command that fills it beside a service.

    Raises:
        ConfigError: it cannot be created or written to, or the service could not use the files that
            root writes there.
    """
    prepare_folder(folder)
    owner = os.stat(folder)
    if os.geteuid() == 0 and os.stat(folder / "usage").st_uid != owner.st_uid:
        run_as = f"setpriv --reuid {owner.st_uid} --regid {owner.st_gid} --clear-groups"
        raise ConfigError(
            f"{folder} belongs to uid {owner.st_uid}, who could not use the files that root writes "
            f"there, and root may not change their owner: run this with {run_as}"
        )


def make_cache_folder(folder: Path) -> int:
    """Create the folder of a cache, and what is missing in it; return how many folders were made.

    Raises:
        OSError: it cannot be created or written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    num_made = make_folders(folder) + make_folders(folder / "tmp")
    os.close(open_regular(folder / "usage", os.O_RDWR | os.O_CREAT))
    return num_made


class CacheStore:
    """The entries in a folder.

    Args:
        folder: prepared by prepare_folder.
        max_size: bytes that all files together may have.
        min_free: bytes of the file system that stay free.

    quota: the bytes in use and the limits of the folder.
    """

    def __init__(self, folder: Path, *, max_size: int, min_free: int) -> None:
        self.folder = folder
        self.quota = Quota(folder, max_size=max_size, min_free=min_free)
        self.max_entry_size = max_size // 2  # bytes; a larger entry would evict all others
        self._temporary = folder / "tmp"
        self._indexes = IndexCache()
        # Two threads may place the same name: the quota must give back each replaced file once.
        self._placing = threading.Lock()

    # Reading.

    def find(self, key: EntryKey, takes_imported: bool = True) -> Found:
        """Find stored entries that together hold the chunks of a key.

        Args:
            takes_imported: whether to use imported entries where there is no other one.

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
            except OtherVersion:
                usable.remove((stored, chunks))
                continue
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
        """Record that a file is used now."""
        with contextlib.suppress(OSError):
            os.utime(path, follow_symlinks=False)

    def remove(self, path: str) -> int:
        """Remove a file; return 1, or 0 if it is gone already or the disk fails."""
        self._indexes.drop(path)
        if self.quota.remove(path):
            return 1
        proven = Standing.PROVEN.rename(path)
        if not path.endswith(Standing.UNPROVEN.value) or proven == path:
            return 0
        # It may have been marked since its path was listed.
        self._indexes.drop(proven)
        return self.quota.remove(proven)

    def mark_proven(self, path: str) -> None:
        """Mark an entry as proven, if it is still there.

        Raises:
            OSError: the disk fails.
        """
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, Standing.PROVEN.rename(path))

    def prove_gaps(self, xorb_hash: bytes, gaps: dict[str, list[ChunkRange]]) -> list[str]:
        """Mark entries as proven whose unproven chunks have equal records in proven entries.

        Args:
            gaps: path of an entry -> its unproven chunks.

        Returns:
            the former paths of the entries that are marked now.

        Raises:
            OSError: the disk fails.
        """
        proven: list[str] = []
        left = dict(gaps)
        while True:  # an entry that is marked now may prove another one
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
        """Remove all entries of this version that hold any of these chunks; return their number."""
        paths = [
            stored.path
            for stored, found in list_entries(self._get_folder(xorb_hash))
            if found.start < chunks.end
            and chunks.start < found.end
            and not self.is_of_other_version(stored, xorb_hash, found)
        ]
        return sum(map(self.remove, paths))

    def is_of_other_version(self, stored: Stored, xorb_hash: bytes, chunks: ChunkRange) -> bool:
        """Return whether another version wrote an entry, so that it counts as missing."""
        try:
            self._indexes.get(stored, xorb_hash, chunks)
        except OtherVersion:
            return True
        except (FormatError, OSError):
            pass
        return False

    def _get_folder(self, xorb_hash: bytes) -> str:
        return make_xorb_path(self.folder, xorb_hash)

    # Writing.

    def create(self, size: int) -> Temporary | None:
        """Create a file for an entry of size bytes; None if there is no room before a sweep.

        Raises:
            OSError: the disk fails.
        """
        if not self.quota.take(size):
            return None
        try:
            temporary = open_temporary(self._temporary, size)
        except OSError:
            with contextlib.suppress(OSError):
                self.quota.give_back(size)
            raise
        if temporary is None:
            self.quota.give_back(size)
        return temporary

    def cut(self, temporary: Temporary, size: int) -> Temporary:
        """Cut a file that was to be longer to size bytes.

        Raises:
            OSError: the disk fails.
        """
        os.ftruncate(temporary.fd, size)
        self.quota.shrink(temporary.size, size)
        return temporary._replace(size=size)

    def write(self, temporary: Temporary, data: bytes | memoryview) -> None:
        """Append data to the file.

        Raises:
            OSError: the disk fails.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(temporary.fd, view) :]

    def publish(
        self, temporary: Temporary, key: EntryKey, standing: Standing = Standing.UNPROVEN
    ) -> str | None:
        """Rename a complete file into the folder of its xorb.

        Entries that it contains are removed. If another entry contains it, or the xorb has too many
        entries, the file itself is removed. Imported entries matter here only for another imported
        one, and entries of other versions not at all.

        Returns:
            the path; None if the file was removed.

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
            is_covered = counts and chunks.contains(key.chunks)
            if is_covered and not self.is_of_other_version(old, key.xorb_hash, chunks):
                self.discard(temporary)
                return None
        folder = self._get_folder(key.xorb_hash)
        target = f"{folder}/{make_entry_name(key.chunks, os.urandom(8), standing)}"
        try:
            rename_temporary(temporary, target)
        except FileNotFoundError:  # the folder does not exist yet
            make_folders(Path(folder))
            rename_temporary(temporary, target)
        for old, chunks in stored:
            may_go = is_own or Standing.of(old.path) is Standing.IMPORTED
            is_spare = may_go and key.chunks.contains(chunks)
            if is_spare and not self.is_of_other_version(old, key.xorb_hash, chunks):
                self.remove(old.path)
        return target

    def place(self, temporary: Temporary, subfolder: str, name: str) -> None:
        """Rename a complete file into a subfolder, and replace the one of this name.

        Raises:
            OSError: the disk fails.
        """
        target = make_file_path(self.folder, subfolder, name)
        replaced = 0
        with self._placing:
            with contextlib.suppress(FileNotFoundError):
                replaced = os.stat(target, follow_symlinks=False).st_size
            try:
                rename_temporary(temporary, target)
            except FileNotFoundError:  # the folder does not exist yet
                make_folders(Path(target).parent)
                rename_temporary(temporary, target)
        if replaced:
            self.quota.give_back(replaced)

    def place_beside(self, temporary: Temporary, target: str) -> None:
        """Rename a complete file to a path outside the quota, and replace the one that is there.

        Raises:
            OSError: the disk fails.
        """
        for number in range(PLACE_TRIES):
            make_folders(Path(target).parent)
            try:
                rename_temporary(temporary, target)
                break
            except FileNotFoundError:  # another process has removed the empty folder
                if number + 1 == PLACE_TRIES:
                    raise
        self.quota.give_back(temporary.size)

    def discard(self, temporary: Temporary) -> None:
        """Remove an incomplete file."""
        with contextlib.suppress(OSError):
            os.unlink(temporary.path)
        with contextlib.suppress(OSError):
            self.quota.give_back(temporary.size)

    def check(self) -> None:
        """Check that something can be kept; make the folder anew if it was emptied or removed.

        Raises:
            OSError: nothing can be kept; ENOSPC: because there is no room.
        """
        if make_cache_folder(self.folder):
            # One process makes it, and only that one logs this.
            logger.warning("cache: %s was emptied or removed: beginning anew", self.folder)
        path = f"{self._temporary}/{os.urandom(16).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"\0")
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):  # a sweep takes it for a leftover
                os.unlink(path)
        self.quota.check_room()
