"""Receiving the answer of a data host or a store: from bytes to whole records in slabs."""

from xetserve.errors import UpstreamError
from xetserve.pipeline.fetch.buffers import ArrivedChunk, ReceiveSlab
from xetserve.pipeline.fetch.held_buffers import HeldBuffers
from xetserve.upstream.cas.source import DataResponse, Provenance
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, RecordReader, parse_chunk_header


class Receiver:
    """Receives one answer. Close it after the answer, not before.

    A slab is filled with record after record:

        | record 3 | record 4 | record 5, so f|ar      free      |
                              ^ position      ^ filled

    What does not fit is moved to the beginning of the next slab: the one copy of packed bytes.

    Args:
        buffers: has begun to receive so many bytes as the answer should have.
        stall_timeout: seconds without a byte after which the connection is given up.
    """

    def __init__(self, buffers: HeldBuffers, stall_timeout: float) -> None:
        self._buffers = buffers
        self._stall_timeout = stall_timeout
        self._slab: ReceiveSlab | None = None
        self._reader = RecordReader()  # knows the position
        self._filled = 0
        self._has_begun = False  # whether a record had, before the last bytes came
        self._origin: Provenance | None = None  # of the record that has begun

    @property
    def is_between_records(self) -> bool:
        """Whether the received bytes end with a whole record."""
        return self._reader.position == self._filled

    async def receive(self, response: DataResponse) -> int:
        """Receive the next bytes, and return their number.

        Raises:
            UpstreamError: the answer ends too early.
            FormatError: the header of a record is damaged.
        """
        slab, buffers = await self._make_room(), self._buffers
        self._has_begun = not self.is_between_records
        count = await response.receive_into(
            slab.view[self._filled : self._filled + buffers.num_left], self._stall_timeout
        )
        if not count:
            raise UpstreamError(f"the data host sent {buffers.num_left} bytes too few")
        self._filled += count
        buffers.note_received(count, len(slab.view) - self._filled)
        return count

    def take_chunks(self, response: DataResponse) -> list[ArrivedChunk]:
        """Return the chunks that the last bytes have completed.

        Raises:
            FormatError: the header of a record is damaged.
        """
        slab = self._slab
        assert slab is not None
        came_from = response.origin
        # A record that came from two places is no proof of either.
        origin = came_from if not self._has_begun or self._origin is came_from else None
        arrived = []
        reader = self._reader
        for record in reader.scan(slab.view, self._filled):
            arrived.append(ArrivedChunk(record, slab, reader.position, origin))
            origin = came_from
        self._origin = origin
        return arrived

    async def check_end(self, response: DataResponse) -> None:
        """Check that the answer ends here, also one of unknown length.

        Raises:
            UpstreamError: more bytes came.
        """
        if await response.receive_into(memoryview(bytearray(1)), self._stall_timeout):
            raise UpstreamError("the data host sent more than was asked for")

    def close(self) -> None:
        """Stop receiving. A slab stays until all its needed chunks are released."""
        if self._slab is not None:
            self._buffers.close_slab(self._slab)
            self._slab = None

    async def _make_room(self) -> ReceiveSlab:
        """Return a slab that has room for the record that has begun, or for a header."""
        slab, position = self._slab, self._reader.position
        if slab is None:
            self._slab = slab = await self._buffers.open_slab(0)
        needed = _size_of_record(slab.view, position, self._filled)
        if position + needed <= len(slab.view) and self._filled < len(slab.view):
            return slab
        rest = self._filled - position
        self._slab = await self._buffers.open_slab(max(needed, rest))
        self._slab.view[:rest] = slab.view[position : self._filled]
        self._reader.move_to(0)
        self._filled = rest
        self._buffers.close_slab(slab)
        return self._slab


def _size_of_record(view: memoryview, position: int, filled: int) -> int:
    """Return the size of the record at position, or of its header as long as that is incomplete."""
    if filled - position < CHUNK_HEADER_SIZE:
        return CHUNK_HEADER_SIZE
    return parse_chunk_header(view, position).record_size
