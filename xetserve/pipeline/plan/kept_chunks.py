"""Packed chunks that one response keeps because its file uses them again (chunk_reuse.py)."""

from typing import Final, NamedTuple

from xetserve.errors import IntegrityError
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.plan.chunk_reuse import ChunkKey, ChunkReuse
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import Reconstruction
from xetserve.xet.xorb import ChunkRecord

PROMISED: Final = 0.75  # share of the budget that all responses together may plan to keep


class KeptChunk(NamedTuple):
    """A chunk's record, and the hash of what it decodes to."""

    record: ChunkRecord
    chunk_hash: bytes


class KeptChunks:
    """The chunks that a response keeps, within the budget.

    reuse: decides which chunks are kept; positions in it are decoded bytes.
    cursor: the position up to which the file has been read, and the index of the chunk there.
    """

    def __init__(self, budget: ByteBudget) -> None:
        self.reuse = ChunkReuse()
        self.cursor = (0, 0)
        self._budget = budget
        self._chunks: dict[ChunkKey, KeptChunk] = {}
        self._promised = 0
        self._plan_size = 0
        self._is_closed = False

    def learn(self, answer: Reconstruction, start: int, *, planned: int) -> None:
        """Add the terms from a position on, see ChunkReuse.add."""
        budget = self._budget
        if self._is_closed:
            return
        budget.promised -= self._promised
        room = int(PROMISED * budget.limit) - budget.promised
        room = max(0, min(room, budget.share))
        self.reuse.add(answer, start, read=self.cursor, planned=planned, capacity=room)
        self._promised = self.reuse.peak
        budget.promised += self._promised

    def get(self, key: ChunkKey) -> KeptChunk:
        """Return a chunk that a window counts on.

        Raises:
            IntegrityError: the chunk was not kept, since the CAS has described the file in two
                different ways.
        """
        chunk = self._chunks.get(key)
        if chunk is None:
            raise IntegrityError(f"chunk {key[1]} of xorb {format_hash(key[0])} was not kept")
        return chunk

    def has(self, key: ChunkKey) -> bool:
        """Return whether a chunk is kept now."""
        return key in self._chunks

    def put(self, key: ChunkKey, chunk: KeptChunk) -> None:
        """Keep a chunk, whose record must be a copy of its own."""
        self._chunks[key] = chunk
        self._budget.take(chunk.record.header.record_size)

    def drop(self, key: ChunkKey) -> None:
        """Drop a chunk, if it is kept."""
        chunk = self._chunks.pop(key, None)
        if chunk is not None:
            self._budget.give(chunk.record.header.record_size)

    def hold_plan(self, size: int) -> bool:
        """Reserve bytes for a plan, in place of the previous reservation.

        Returns False if the budget has no room, and then nothing is reserved.
        """
        self._budget.give(self._plan_size)
        self._plan_size = 0
        if size and (self._is_closed or not self._budget.try_take(size)):
            return False
        self._plan_size = size
        return True

    def close(self) -> None:
        """Give everything back to the budget."""
        self._is_closed = True
        self.hold_plan(0)
        for key in list(self._chunks):
            self.drop(key)
        self._budget.promised -= self._promised
        self._promised = 0
