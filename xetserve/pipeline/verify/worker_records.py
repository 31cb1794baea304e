"""What workers tell each other of files that are not proven: chunks that were seen, and what became
of them.

A note is a run of chunks that follow each other in a file and came from one xorb:

    file hash       32 bytes
    xorb hash       32 bytes
    chunks          u32, u32: of the xorb, from the first to behind the last
    noted           u64, ns of CLOCK_MONOTONIC: when the first was seen
    position        u64, of the first, decoded bytes in the file
    n, chunks       u32
    decoded sizes   u32 each
    chunk hashes    32 bytes each

A mark says that a file was cut, or that besides all that was seen of it before is forgotten, or
that it was for want of memory, and nothing is known to be wrong:

    file hash       32 bytes
    at              u64, ns of CLOCK_MONOTONIC
    kind            u32

Numbers are the machine's own: nothing of this outlives it. Pure: bytes in, values out.
"""

import struct
from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

from xetserve.errors import FormatError
from xetserve.xet.hashes import HASH_SIZE
from xetserve.xet.reconstruction import ChunkRange

MAX_SEEN: Final = 1024  # chunks in one note
_SEEN: Final = struct.Struct(f"={HASH_SIZE}s{HASH_SIZE}sIIQQI")
_MARK: Final = struct.Struct(f"={HASH_SIZE}sQI")
MARK_SIZE: Final = _MARK.size  # bytes


class SeenChunks(NamedTuple):
    """Chunks of a file; noted in ns, position in bytes."""

    file_hash: bytes
    xorb_hash: bytes
    chunks: ChunkRange
    seen_at: int
    position: int
    sizes: "array[int]"
    hashes: bytes | bytearray

    def each(self) -> Iterator[tuple[int, int, bytes]]:
        """Give position, size and hash of every chunk."""
        position, at = self.position, 0
        for size in self.sizes:
            yield position, size, bytes(self.hashes[at : at + HASH_SIZE])
            position += size
            at += HASH_SIZE


def pack_seen(seen: SeenChunks) -> bytes:
    """Write a note."""
    sizes = seen.sizes
    head = _SEEN.pack(*seen[:2], *seen.chunks, seen.seen_at, seen.position, len(sizes))
    return b"".join((head, sizes.tobytes(), seen.hashes))


def parse_seen(data: bytes | memoryview) -> SeenChunks:
    """Read what pack_seen wrote.

    Raises:
        FormatError: it is something else.
    """
    if len(data) < _SEEN.size:
        raise FormatError(f"a note of {len(data)} bytes")
    file_hash, xorb_hash, first, end, seen_at, position, count = _SEEN.unpack_from(data)
    middle = _SEEN.size + 4 * count
    if len(data) != middle + HASH_SIZE * count:
        raise FormatError(f"a note of {count} chunks in {len(data)} bytes")
    sizes: array[int] = array("I")
    sizes.frombytes(data[_SEEN.size : middle])
    hashes = bytes(data[middle:])
    return SeenChunks(
        file_hash, xorb_hash, ChunkRange(first, end), seen_at, position, sizes, hashes
    )


class MarkKind(IntEnum):
    """What a mark says."""

    CUT = 1
    FORGOTTEN = 2
    LOST = 3


class Mark(NamedTuple):
    """What became of a file; at in ns."""

    file_hash: bytes
    at: int
    kind: MarkKind


def pack_mark(mark: Mark) -> bytes:
    """Write a mark."""
    return _MARK.pack(*mark)


def parse_mark(data: bytes | memoryview) -> Mark:
    """Read what pack_mark wrote.

    Raises:
        FormatError: it is something else.
    """
    if len(data) != MARK_SIZE:
        raise FormatError(f"a mark of {len(data)} bytes")
    file_hash, at, kind = _MARK.unpack(data)
    try:
        return Mark(file_hash, at, MarkKind(kind))
    except ValueError:
        raise FormatError(f"a mark of kind {kind}") from None


class _SeenDraft:
    """Chunks that follow each other in the file: a Note that may still grow."""

    __slots__ = ("hashes", "position", "seen_at", "sizes")

    def __init__(self, position: int, seen_at: int) -> None:
        self.position = position
        self.seen_at = seen_at
        self.sizes: array[int] = array("I")
        self.hashes = bytearray()


class SeenCollector:
    """Chunks that one answer has seen and not told yet. They come in order, at one place of the
    file or at several.
    """

    def __init__(self, file_hash: bytes) -> None:
        self._file_hash = file_hash
        self._xorb_hash = bytes(HASH_SIZE)
        self._chunks = ChunkRange(0, 0)
        self._open: dict[int, _SeenDraft] = {}  # by where they end
        self._closed: list[SeenChunks] = []

    def note_source(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Take in where the next chunks come from."""
        if xorb_hash == self._xorb_hash:
            first, end = self._chunks
            self._chunks = ChunkRange(min(first, chunks.start), max(end, chunks.end))
            return
        self._close_all()
        self._xorb_hash, self._chunks = xorb_hash, chunks

    def add(self, position: int, size: int, chunk_hash: bytes, now: int) -> None:
        """Take in a chunk; now in ns."""
        end = position + size
        run = self._open.pop(position, None)
        if run is not None and len(run.sizes) == MAX_SEEN:
            self._close(run)
            run = None
        if run is None:
            run = _SeenDraft(position, now)
        if end in self._open:  # the same chunk twice
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
        """Return what is there, and begin anew."""
        self._close_all()
        taken, self._closed = self._closed, []
        return taken
