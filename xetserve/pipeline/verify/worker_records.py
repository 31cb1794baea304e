"""The records that workers send each other about files that are not proven.

Chunks that a worker has seen: consecutive in the file, from one xorb:

    file hash       32 bytes
    xorb hash       32 bytes
    chunks          u32, u32: a range of the xorb that contains them, half-open
    seen at         u64, ns of CLOCK_MONOTONIC: when the first one was seen
    position        u64: of the first one, decoded bytes in the file
    n, chunks       u32
    decoded sizes   u32 each
    chunk hashes    32 bytes each

A mark, which says what happened to a file:

    file hash       32 bytes
    at              u64, ns of CLOCK_MONOTONIC
    kind            u32, see MarkKind

Numbers are in native byte order, since the records never leave the machine. Pure: bytes in, values
out.
"""

import struct
from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from xetserve.errors import FormatError
from xetserve.xet.hashes import HASH_SIZE
from xetserve.xet.reconstruction import ChunkRange

MAX_SEEN: Final = 1024  # chunks in one record
_SEEN: Final = struct.Struct(f"={HASH_SIZE}s{HASH_SIZE}sIIQQI")
_MARK: Final = struct.Struct(f"={HASH_SIZE}sQI")
MARK_SIZE: Final = _MARK.size  # bytes


class SeenChunks(NamedTuple):
    """Consecutive chunks of a file from one xorb.

    chunks: a range of the xorb that contains them.
    seen_at: ns of CLOCK_MONOTONIC, when the first one was seen.
    position: of the first one, decoded bytes in the file.
    sizes: decoded bytes of each.
    hashes: of all, concatenated.
    """

    file_hash: bytes
    xorb_hash: bytes
    chunks: ChunkRange
    seen_at: int
    position: int
    sizes: "array[int]"
    hashes: bytes | bytearray

    def each(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield position, size and hash of every chunk."""
        position, at = self.position, 0
        for size in self.sizes:
            yield position, size, bytes(self.hashes[at : at + HASH_SIZE])
            position += size
            at += HASH_SIZE


def pack_seen(seen: SeenChunks) -> bytes:
    """Return the record of some chunks."""
    sizes = seen.sizes
    head = _SEEN.pack(*seen[:2], *seen.chunks, seen.seen_at, seen.position, len(sizes))
    return b"".join((head, sizes.tobytes(), seen.hashes))


def parse_seen(data: bytes | memoryview) -> SeenChunks:
    """Parse a record that pack_seen has made.

    Raises:
        FormatError: its size is wrong.
    """
    if len(data) < _SEEN.size:
        raise FormatError(f"a record of {len(data)} bytes, expected at least {_SEEN.size}")
    file_hash, xorb_hash, first, end, seen_at, position, count = _SEEN.unpack_from(data)
    middle = _SEEN.size + 4 * count
    if len(data) != middle + HASH_SIZE * count:
        raise FormatError(f"a record of {count} chunks in {len(data)} bytes")
    sizes: array[int] = array("I")
    sizes.frombytes(data[_SEEN.size : middle])
    hashes = bytes(data[middle:])
    return SeenChunks(
        file_hash, xorb_hash, ChunkRange(first, end), seen_at, position, sizes, hashes
    )


class MarkKind(IntEnum):
    """What happened to a file."""

    CUT = 1  # an answer was cut, since the file was damaged
    FORGOTTEN = 2  # all chunks seen until then were forgotten, since some are wrong
    LOST = 3  # chunks were dropped to save memory; none is known to be wrong
    PROVING = 4  # a worker reads the file to prove it
    RIGHT = 5  # a whole read was right, though no ledger has all of its chunks
    CLIENT_CUT = 6  # an answer to one client was cut, since the file was damaged
    CLIENT_RIGHT = 7  # after that, the client got all of the file


class Mark(NamedTuple):
    """What happened to a file; at: ns of CLOCK_MONOTONIC.

    file_hash: a digest of file and client, if it happened to a client.
    """

    file_hash: bytes
    at: int
    kind: MarkKind


def pack_mark(mark: Mark) -> bytes:
    """Return the record of a mark."""
    return _MARK.pack(*mark)


def parse_mark(data: bytes | memoryview) -> Mark:
    """Parse a record that pack_mark has made.

    Raises:
        FormatError: its size is wrong, or its kind unknown.
    """
    if len(data) != MARK_SIZE:
        raise FormatError(f"a mark of {len(data)} bytes, expected {MARK_SIZE}")
    file_hash, at, kind = _MARK.unpack(data)
    try:
        return Mark(file_hash, at, MarkKind(kind))
    except ValueError:
        raise FormatError(f"a mark of kind {kind}") from None


class _SeenDraft:
    """SeenChunks that may still grow."""

    __slots__ = ("hashes", "position", "seen_at", "sizes")

    def __init__(self, position: int, seen_at: int) -> None:
        self.position = position
        self.seen_at = seen_at
        self.sizes: array[int] = array("I")
        self.hashes = bytearray()


class SeenCollector:
    """Collects the chunks that one response has seen, until they are sent to the other workers.

    The chunks come in order, at one place of the file or at several.
    """

    def __init__(self, file_hash: bytes) -> None:
        self._file_hash = file_hash
        self._xorb_hash = bytes(HASH_SIZE)
        self._chunks = ChunkRange(0, 0)
        self._open: dict[int, _SeenDraft] = {}  # by the position of their end
        self._closed: list[SeenChunks] = []

    def note_source(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Set the xorb, and the range of it, that the next chunks come from."""
        if xorb_hash == self._xorb_hash:
            first, end = self._chunks
            self._chunks = ChunkRange(min(first, chunks.start), max(end, chunks.end))
            return
        self._close_all()
        self._xorb_hash, self._chunks = xorb_hash, chunks

    def add(self, position: int, size: int, chunk_hash: bytes, now: int) -> None:
        """Add a chunk; now: ns of CLOCK_MONOTONIC."""
        end = position + size
        run = self._open.pop(position, None)
        if run is not None and len(run.sizes) == MAX_SEEN:
            self._close(run)
            run = None
        if run is None:
            run = _SeenDraft(position, now)
        if end in self._open:  # the same chunk was added twice
            self._close(self._open[end])
        run.sizes.append(size)
        run.hashes += chunk_hash
        self._open[end] = run

    def _close(self, run: "_SeenDraft") -> None:
        xorb, chunks = self._xorb_hash, self._chunks
        self._closed.append(
            SeenChunks(
                self._file_hash, xorb, chunks, run.seen_at, run.position, run.sizes, run.hashes
            )
        )

    def _close_all(self) -> None:
        for run in self._open.values():
            self._close(run)
        self._open.clear()

    def take(self) -> list[SeenChunks]:
        """Return the collected chunks, and start again without any."""
        self._close_all()
        taken, self._closed = self._closed, []
        return taken
