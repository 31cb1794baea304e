"""Keep the indexes of stored entries in memory: those that were used last."""

import os
import threading
from typing import Final

from xetserve.base.format_version import check_version
from xetserve.base.lru_dict import LruDict
from xetserve.base.regular_files import open_regular
from xetserve.errors import FormatError
from xetserve.pipeline.cache.entry import MAGIC, EntryIndex, Standing, index_size, parse_index
from xetserve.pipeline.cache.layout import Stored
from xetserve.xet.reconstruction import ChunkRange

MAX_INDEX_MEMORY: Final = 8 * 1024 * 1024  # bytes of parsed indexes


class IndexCache:
    """Parsed indexes by the path of their entry; safe to use from any thread.

    If another process or a sweep removes the file, its index is dropped later, as the oldest one.
    """

    def __init__(self) -> None:
        self._indexes: LruDict[str, EntryIndex] = LruDict(max_cost=MAX_INDEX_MEMORY)
        self._lock = threading.Lock()

    def get(self, stored: Stored, xorb_hash: bytes, chunks: ChunkRange) -> EntryIndex:
        """Return the index of an entry of a xorb.

        Raises:
            OtherVersion: another version wrote the entry.
            FormatError: the entry is damaged or truncated.
            OSError: the entry is gone, or the disk fails.
        """
        with self._lock:
            index = self._indexes.get(stored.path)
            if index is not None:
                if index.key.file_size != stored.size:
                    raise FormatError("the file is truncated")
                return index
        fd = open_entry(stored.path)
        try:
            index = read_index(fd, xorb_hash, chunks)
        finally:
            os.close(fd)
        with self._lock:
            self._indexes.put(stored.path, index, index.nbytes)
        return index

    def drop(self, path: str) -> None:
        """Drop the index of a file that is removed."""
        with self._lock:
            self._indexes.pop(path)


def read_index(fd: int, xorb_hash: bytes, chunks: ChunkRange) -> EntryIndex:
    """Read the index of an open entry.

    Raises:
        OtherVersion: another version wrote the entry.
        FormatError: it is damaged, or belongs to another entry.
        OSError: the disk fails.
    """
    size, wanted = os.fstat(fd).st_size, index_size(chunks)
    if wanted > size:  # a name may claim any size, and a read allocates the size that it asks for
        check_version(os.pread(fd, len(MAGIC), max(0, size - len(MAGIC))), MAGIC)
        raise FormatError(f"{size} bytes, fewer than the size of its index")
    return parse_index(os.pread(fd, wanted, size - wanted), xorb_hash, chunks, size)


def open_entry(path: str, flags: int = os.O_RDONLY) -> int:
    """Open an entry, also if it was marked as proven since its path was listed; see open_regular.

    Raises:
        FileNotFoundError: the entry is gone.
        OSError: it cannot be opened.
    """
    try:
        return open_regular(path, flags)
    except FileNotFoundError:
        return open_regular(Standing.PROVEN.rename(path), flags)
