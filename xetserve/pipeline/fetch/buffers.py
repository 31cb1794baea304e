"""The buffers that a fetch receives into, and the chunks that lie in them."""

from xetserve.base.buffers import Buffer
from xetserve.pipeline.flow.budget import Slab
from xetserve.upstream.cas.source import Provenance
from xetserve.xet.xorb import ChunkRecord


class ReceiveSlab:
    """A receive buffer and the number of records in it that are still needed."""

    __slots__ = ("buffer", "is_lent", "is_open", "num_needed", "view")

    def __init__(self, buffer: Slab) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.num_needed = 0
        self.is_open = True  # still being received into
        self.is_lent = False  # a client that was cut may still have parts of it in its socket


class ArrivedChunk:
    """A chunk that has arrived: packed in a slab, or decoded already for somebody else.

    end: of its record in the slab.
    """

    __slots__ = ("chunk_hash", "decoded", "end", "origin", "record", "slab")

    def __init__(
        self, record: ChunkRecord, slab: ReceiveSlab, end: int, origin: Provenance | None
    ) -> None:
        self.record = record
        self.end = end
        self.origin = origin
        self.slab: ReceiveSlab | None = slab
        self.decoded: Buffer | None = None
        self.chunk_hash: bytes | None = None
