"""Remember the hashes of the chunks in stored entries, as this process has computed them.

A hash is noted only by who has decoded and hashed a record that was read from the entry, or that
went into it while it was written. So hash and record belong together, whatever the CAS, an archive
or another process says of the entry. The name of an entry is never used twice, so another file
cannot take the place of the one that was hashed. Nothing of this is stored: what is on disk
proves nothing here. Pure.
"""

from collections.abc import Hashable
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.pipeline.cache.entry import Standing
from xetserve.xet.hashes import HASH_SIZE
from xetserve.xet.reconstruction import ChunkRange

MAX_HASH_MEMORY: Final = 8 * 1024 * 1024  # bytes; about 250,000 chunks, 16 GB of files


class _EntryHashes:
    """The hashes of one entry, zeros where one is not known."""

    __slots__ = ("chunks", "hashes", "num_left")

    def __init__(self, chunks: ChunkRange) -> None:
        self.chunks = chunks
        self.num_left = chunks.end - chunks.start
        self.hashes = bytearray(HASH_SIZE * self.num_left)


class ChunkHashes:
    """The chunk hashes of the entries that were used last.

    Entries are known by any key while they are written, and then by name_of(path).
    """

    def __init__(self) -> None:
        self._entries: LruDict[Hashable, _EntryHashes] = LruDict(max_cost=MAX_HASH_MEMORY)

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, key: Hashable, chunks: ChunkRange, chunk: int, chunk_hash: bytes) -> None:
        """Note the hash of one of an entry's chunks. If another one is known, all are forgotten:
        the record has changed.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = _EntryHashes(chunks)
            self._entries.put(key, entry, len(entry.hashes))
        if not entry.chunks.start <= chunk < entry.chunks.end:
            return  # behind where the entry was cut
        at = (chunk - entry.chunks.start) * HASH_SIZE
        known = entry.hashes[at : at + HASH_SIZE]
        if known == chunk_hash:
            return
        if any(known):
            self._entries.pop(key)
            return
        entry.hashes[at : at + HASH_SIZE] = chunk_hash
        entry.num_left -= 1

    def place(self, key: Hashable, path: str, chunks: ChunkRange) -> None:
        """Take in that an entry has been written to a path, with these chunks, which may be fewer
        than were expected.
        """
        entry = self._entries.pop(key)
        if entry is not None:
            del entry.hashes[HASH_SIZE * (chunks.end - chunks.start) :]
            placed = _EntryHashes(chunks)
            placed.hashes = entry.hashes
            placed.num_left = sum(
                not any(entry.hashes[at : at + HASH_SIZE])
                for at in range(0, len(entry.hashes), HASH_SIZE)
            )
            self._entries.put(name_of(path), placed, len(placed.hashes))

    def has_all(self, path: str) -> bool:
        """Return whether all hashes of an entry are known."""
        entry = self._entries.peek(name_of(path))
        return entry is not None and not entry.num_left

    def find(self, path: str, chunks: ChunkRange) -> bytes | None:
        """Return the hashes of some of an entry's chunks; None if not all of the entry's are
        known.
        """
        entry = self._entries.get(name_of(path))
        if entry is None or entry.num_left or not entry.chunks.contains(chunks):
            return None
        first = entry.chunks.start
        start, end = (HASH_SIZE * (chunk - first) for chunk in chunks)
        return bytes(entry.hashes[start:end])


def name_of(path: str) -> str:
    """Return what stays of the path of an entry when its standing changes."""
    return path.removesuffix(Standing.of(path).value)
