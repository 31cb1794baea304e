"""Keep the indexes of stored entries in memory: those that were used last."""

import os
import threading
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.base.regular_files import open_regular
from xetserve.errors import FormatError
from xetserve.pipeline.cache.entry import EntryIndex, Standing, index_size, parse_index
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
            FormatError: the entry is damaged or truncated.
            OSError: the entry is gone, or the disk fails.
        """
        with self._lock:
            index = self._indexes.get(stored.path)
            if index is not None:
                if index.key.file_size != stored.size:
                    raise FormatError("the file is truncated")
                return index
        size = index_size(chunks)
        if size > stored.size:
            raise FormatError(f"a file of {stored.size} bytes, expected at least {size}")
        with open(open_entry(stored.path), "rb", buffering=0) as file:
            file.seek(stored.size - size)
            index = parse_index(file.read(size) or b"", xorb_hash, chunks, stored.size)
        with self._lock:
            self._indexes.put(stored.path, index, index.nbytes)
        return index

    def drop(self, path: str) -> None:
        """Drop the index of a file that is removed."""
        with self._lock:
            self._indexes.pop(path)


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
