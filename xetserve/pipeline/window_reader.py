"""Turn the chunks of a window into blocks, in file order: decode, hash and compare them.

Nothing here waits. If a chunk has not arrived, fill() returns its lease, and the caller waits and
calls again. A damaged chunk is rejected: it counts as not arrived until it was fetched again.
"""

from typing import Final

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError, IntegrityError
from xetserve.pipeline.blocks import Block
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.plan.kept_chunks import KeptChunk, KeptChunks
from xetserve.pipeline.plan.window_plan import Piece
from xetserve.pipeline.verify.verifier import Verifier
from xetserve.pipeline.windows import Window
from xetserve.upstream.cas.source import CasSource
from xetserve.xet.reconstruction import ChunkRange
from xetserve.xet.xorb import make_raw_record

MAX_REJECTS: Final = 3  # times that a damaged chunk is fetched again


class WindowReader:
    """Reads one window, once. Positions are decoded bytes.

    Args:
        verifier: takes in every chunk that is used.
        kept: holds the chunks that later windows use again.
        source: drops its copies of damaged chunks.

    left: bytes of the window that no block has yet.
    chunk: the next one, of the current piece's xorb.
    """

    def __init__(
        self, window: Window, verifier: Verifier, kept: KeptChunks, source: CasSource
    ) -> None:
        plan = window.plan
        self.left = plan.file_range.size
        self.chunk = 0
        self._verifier = verifier
        self._kept = kept
        self._source = source
        self._window = window
        self._leases = window.leases
        self._skip = plan.skip  # decoded bytes to drop
        self._position = plan.file_range.start - plan.skip
        self._pieces = iter(plan.pieces)
        self._piece: Piece | None = None
        self._lease: Lease | None = None  # of the piece; None: its chunks have been kept
        self._piece_left = 0  # decoded bytes of it to come
        self._num_rejects = 0  # of the next chunk
        self._start_piece()

    @property
    def is_done(self) -> bool:
        """Whether the window has been read to its end."""
        return self._piece is None

    def fill(self, block: Block, size: int) -> Lease | None:
        """Add chunks to a block until it has size bytes, or the window ends.

        The chunks behind the last byte are read with the block that holds it.

        Returns: None, or the lease on a fetch whose `chunk` has not arrived.

        Raises:
            IntegrityError: the data is not what was promised.
            FormatError: a chunk stays damaged.
        """
        self._window.position = self._position
        while self._piece is not None:
            lease, end = self._lease, self._piece.chunks.end
            while self.chunk < end:
                if lease is not None and not lease.fetch.has(self.chunk):
                    return lease
                if not self._add_next(block, self._piece):
                    return lease
                if block.size >= size and self.left:
                    return None
            self._start_piece()
        if self.left:
            raise IntegrityError(f"a window is {self.left} bytes short")
        return None

    def _start_piece(self) -> None:
        """Go on to the next piece, if there is one."""
        piece = self._piece = next(self._pieces, None)
        if piece is None:
            self._lease = None
            return
        self._lease = None if piece.step is None else self._leases[piece.step]
        self.chunk = piece.chunks.start
        self._piece_left = piece.decoded_size
        self._verifier.note_chunks(piece.xorb_hash, piece.chunks)

    def _add_next(self, block: Block, piece: Piece) -> bool:
        """Use the next chunk, which has arrived; return False if it is damaged."""
        lease, chunk, position = self._lease, self.chunk, self._position
        if lease is None:
            data, chunk_hash = self._take_kept(piece.xorb_hash, chunk, position)
            size = len(data)
        else:
            try:
                data, chunk_hash, size = self._load(lease, chunk, position)
            except (FormatError, IntegrityError) as exc:
                self._reject(lease, exc)
                return False
            self._num_rejects = 0
        self.chunk += 1
        self._position += size
        self._piece_left -= size
        if self._piece_left < 0 or (self._piece_left and self.chunk == piece.chunks.end):
            raise IntegrityError(
                f"a term of {piece.decoded_size - self._piece_left} decoded bytes, "
                f"expected {piece.decoded_size}"
            )
        if not self.left or (self._skip and self._skip >= size):
            self._skip -= min(self._skip, size)
            if lease is not None:
                lease.release(chunk)
            return True
        if self._verifier.is_whole and self._skip:
            raise IntegrityError(f"a window starts {self._skip} bytes into a chunk")
        self._note(piece.xorb_hash, chunk, position, data, chunk_hash)
        is_lent = isinstance(data, memoryview)
        if self._skip or size > self.left:
            data = memoryview(data)[self._skip : self._skip + self.left]
            self._skip, size = 0, len(data)
        self.left -= size
        block.add(data, size, lease, chunk, is_lent=is_lent)
        return True

    def _load(self, lease: Lease, chunk: int, position: int) -> tuple[Buffer, bytes, int]:
        """Return an arrived chunk, its hash and its decoded size. For a chunk outside the requested
        bytes, only the size is returned where the header can be trusted.

        Raises:
            FormatError, IntegrityError: it is damaged.
        """
        fetch = lease.fetch
        # Whoever holds chunks against a list gets them unseen: then the header needs the payload.
        if (self._skip or not self.left) and not fetch.is_proven:
            size = fetch.get_header(chunk).decoded_size
            if not self._skip or self._skip >= size:
                return b"", b"", size
        data = fetch.decode(chunk)
        chunk_hash = fetch.get_hash(chunk, data)
        if self._verifier.contradicts(position, len(data), chunk_hash):
            raise IntegrityError(f"chunk {chunk} is not the file's")
        return data, chunk_hash, len(data)

    def _reject(self, lease: Lease, error: FormatError | IntegrityError) -> None:
        """Fetch the next chunk again, up to MAX_REJECTS times.

        Raises:
            FormatError, IntegrityError: the given error, after MAX_REJECTS tries.
        """
        if self._num_rejects == MAX_REJECTS:
            raise error
        self._num_rejects += 1
        self._source.forget(lease.fetch.xorb_hash, ChunkRange(self.chunk, self.chunk + 1))
        lease.fetch.reject(self.chunk, error)

    def _take_kept(self, xorb_hash: bytes, chunk: int, position: int) -> tuple[Buffer, bytes]:
        """Return a kept chunk, decoded, and the hash that was computed when it arrived.

        Raises:
            IntegrityError: the file has another chunk at this position.
        """
        record, chunk_hash = self._kept.get((xorb_hash, chunk))
        if self._verifier.contradicts(position, record.header.decoded_size, chunk_hash):
            raise IntegrityError(f"chunk {chunk} is not the file's at byte {position}")
        return record.decode(), chunk_hash

    def _note(
        self, xorb_hash: bytes, chunk: int, position: int, data: Buffer, chunk_hash: bytes
    ) -> None:
        """Pass a chunk to the verifier, and keep it if the file uses it again later."""
        size, lease = len(data), self._lease
        self._verifier.add(position, size, chunk_hash)
        if lease is not None:
            self._verifier.add_origin(lease.fetch.get_origin(chunk), chunk)
        self._kept.cursor = (position + size, chunk + 1)
        reuse = self._kept.reuse
        if reuse.is_empty:
            return
        key = (xorb_hash, chunk)
        reuse.record_size(key, size)
        if not reuse.stays(key, position):
            self._kept.drop(key)
        elif lease is not None and not self._kept.has(key):
            record = lease.fetch.copy_record(chunk) or make_raw_record(data)
            self._kept.put(key, KeptChunk(record, chunk_hash))
