"""Track which chunks of an entry are proven, while a process reads or writes it.

A chunk is proven by a proven file that contains it. If the entry is a whole xorb, the xorb hash
proves all its chunks. Once all chunks are proven, the entry is marked as proven. Pure.
"""

from collections.abc import Callable

from xetserve.xet.hashes import MerkleTree
from xetserve.xet.reconstruction import ChunkRange


class Coverage:
    """The proven chunks of one entry, on disk or being written. It is a Provenance.

    Args:
        on_proven: called with the path once all chunks are proven and the entry is on disk.
        on_part: called with this object when some chunks are proven and the entry is on disk.
        path: of the entry; None while it is being written.
        on_hash: called with this object, a chunk and its hash.
    """

    def __init__(
        self,
        xorb_hash: bytes,
        chunks: ChunkRange,
        on_proven: Callable[[str], object],
        path: str | None = None,
        on_part: Callable[["Coverage"], object] = lambda _: None,
        on_hash: Callable[["Coverage", int, bytes], object] = lambda *_: None,
    ) -> None:
        self._xorb_hash = xorb_hash
        self._chunks = chunks
        self._on_proven = on_proven
        self._on_part = on_part
        self._on_hash = on_hash
        self._path = path
        self._flags = bytearray(chunks.end - chunks.start)
        self._num_left = len(self._flags)
        # A part of a xorb has no hash. Whether the entry is a whole xorb shows with its last chunk.
        self._tree = None if chunks.start else MerkleTree()
        self._early: dict[int, tuple[bytes, int]] = {}  # hashes and sizes of chunks after a gap

    @property
    def xorb_hash(self) -> bytes:
        """The xorb of the entry."""
        return self._xorb_hash

    @property
    def chunks(self) -> ChunkRange:
        """The chunks of the entry."""
        return self._chunks

    @property
    def path(self) -> str | None:
        """The path of the entry; None while it is being written."""
        return self._path

    @property
    def is_proven(self) -> bool:
        """Whether all chunks are proven."""
        return not self._num_left

    def note_hash(self, chunk: int, size: int, chunk_hash: bytes) -> None:
        """See Provenance."""
        self._on_hash(self, chunk, chunk_hash)
        tree = self._tree
        if tree is None:
            return
        self._early[chunk] = (chunk_hash, size)
        while (following := self._early.pop(tree.num_chunks, None)) is not None:
            tree.add(*following)
        if tree.num_chunks == len(self._flags):
            self._tree = None
            self._early.clear()
            if tree.xorb_hash() == self._xorb_hash:
                self.note_proven(self._chunks)

    def note_proven(self, chunks: ChunkRange) -> None:
        """See Provenance."""
        first = chunks.start - self._chunks.start
        end = min(chunks.end - self._chunks.start, len(self._flags))
        if first >= end:
            return  # behind where the entry was cut
        num_new = self._flags.count(0, first, end)
        if not num_new:
            return
        self._flags[first:end] = b"\1" * (end - first)
        self._num_left -= num_new
        if self._path is not None:
            self.settle(self._path)

    def set_proven(self) -> None:
        """Take in that the entry is marked as proven already: only hashes are of interest."""
        self._flags = bytearray(b"\1" * len(self._flags))
        self._num_left = 0
        self._tree = None

    def cut(self, num_chunks: int) -> None:
        """Take in that only the first chunks of the entry have come."""
        del self._flags[num_chunks:]
        self._num_left = self._flags.count(0)
        self._chunks = ChunkRange(self._chunks.start, self._chunks.start + num_chunks)
        self._tree = None  # it is no whole xorb
        self._early.clear()

    def settle(self, path: str) -> None:
        """Record that the entry is at a path, and report what is proven of it."""
        self._path = path
        if self.is_proven:
            self._on_proven(path)
        elif self._num_left < len(self._flags):
            self._on_part(self)

    def find_gaps(self) -> list[ChunkRange]:
        """Return the ranges of chunks that are not proven, in order."""
        gaps = []
        end = 0
        while (start := self._flags.find(0, end)) >= 0:
            end = self._flags.find(1, start)
            end = len(self._flags) if end < 0 else end
            gaps.append(ChunkRange(self._chunks.start + start, self._chunks.start + end))
        return gaps
