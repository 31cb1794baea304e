"""Shards: an uploader's metadata about files and xorbs.

A shard is a run of 48-byte little-endian records:

    header          tag 32, version u64 = 2, footer size u64
    for each file
      file header   file hash 32, flags u32, n u32, 8 unused
      n terms       xorb hash 32, flags u32, decoded bytes u32, first chunk u32, end chunk u32
      n proofs      range hash 32, 16 unused; if flag bit 31 is set
      metadata      sha256 32, 16 unused; if flag bit 30 is set
    bookend         32 x ff, 16 x 00
    for each xorb
      xorb header   xorb hash 32, flags u32, n u32, decoded bytes u32, packed bytes u32
      n chunks      chunk hash 32, decoded start u32, decoded bytes u32, flags u32, unused u32
    bookend

An uploaded shard ends here. A stored shard may have a footer with lookup tables behind this. The
footer size does not show whether there is one (hf-xet 1.2 writes 200 without a footer), so the
parser ignores all bytes behind the second bookend.

Source: hub-docs xet/shard.md; xet-core metadata_shard.
"""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError
from xetserve.xet.hashes import HASH_SIZE, ZERO_HASH, format_hash, parse_hash
from xetserve.xet.reconstruction import ChunkRange, Term

MAX_SHARD_SIZE: Final = 64 * 1024 * 1024
RECORD_SIZE: Final = 48
TAG: Final = b"HFRepoMetaData\0" + bytes.fromhex("5569 6745 6a7b 8157 83a5 bdd9 5ccd d14a a9")
VERSION: Final = 2

_HEADER: Final = struct.Struct("<32sQQ")
_RECORD: Final = struct.Struct("<32sIIII")
_BOOKEND: Final = b"\xff" * HASH_SIZE
_HAS_PROOFS: Final = 1 << 31
_HAS_METADATA: Final = 1 << 30


class ShardFile(NamedTuple):
    """One file and its terms in order.

    range_hashes: the verification hash of each term, see hash_range; None: the shard has none.
    sha256: SHA-256 of the content in plain hex; None: the shard has none.
    """

    file_hash: bytes
    terms: tuple[Term, ...]
    range_hashes: tuple[bytes, ...] | None
    sha256: str | None


class ShardChunk(NamedTuple):
    """One chunk of a xorb: its decoded start offset and decoded size, in bytes."""

    chunk_hash: bytes
    start: int
    size: int


class ShardXorb(NamedTuple):
    """One xorb. packed_size is 0 in uploads: use the size of the uploaded body."""

    xorb_hash: bytes
    chunks: tuple[ShardChunk, ...]
    decoded_size: int
    packed_size: int


class Shard(NamedTuple):
    """Files, and the xorbs that were uploaded for them."""

    files: tuple[ShardFile, ...]
    xorbs: tuple[ShardXorb, ...]


class _Records:
    """A reader of records; its position is always at the start of a record."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data)
        self._position = 0

    def next(self) -> tuple[bytes, int, int, int, int]:
        self.check_left(1)
        record: tuple[bytes, int, int, int, int] = _RECORD.unpack_from(self._view, self._position)
        self._position += RECORD_SIZE
        return record

    def check_left(self, count: int) -> None:
        """Check that count records are left, before a caller builds a list of that length.

        Raises:
            FormatError: fewer records are left.
        """
        left = (len(self._view) - self._position) // RECORD_SIZE
        if count > left:
            raise FormatError(f"shard of {len(self._view)} bytes: {count} records, {left} left")


def parse_shard(data: Buffer) -> Shard:
    """Parse an uploaded shard; ignore all bytes behind the second bookend.

    Raises:
        FormatError: the tag, the version or a file flag is unknown, records are missing, or a
            chunk range is empty.
    """
    if len(data) < RECORD_SIZE:
        raise FormatError(f"shard of {len(data)} bytes, expected at least {RECORD_SIZE}")
    tag, version, _ = _HEADER.unpack_from(data)
    if tag != TAG:
        raise FormatError("not a shard: unknown tag")
    if version != VERSION:
        raise FormatError(f"shard version {version}, expected {VERSION}")
    records = _Records(data)
    records.next()
    files = []
    while (head := records.next())[0] != _BOOKEND:
        files.append(_read_file(records, head))
    xorbs = []
    while (head := records.next())[0] != _BOOKEND:
        xorbs.append(_read_xorb(records, head))
    return Shard(tuple(files), tuple(xorbs))


def _read_file(records: _Records, head: tuple[bytes, int, int, int, int]) -> ShardFile:
    file_hash, flags, count, _, _ = head
    if flags & ~(_HAS_PROOFS | _HAS_METADATA):
        # A flag may announce further records, so nothing behind an unknown flag can be parsed.
        raise FormatError(f"file {format_hash(file_hash)}: unknown flags {flags:#x}")
    records.check_left(count * (2 if flags & _HAS_PROOFS else 1))
    terms = []
    for _ in range(count):
        xorb_hash, _, decoded_size, start, end = records.next()
        if start >= end:
            raise FormatError(f"file {format_hash(file_hash)}: chunk range {start}..{end} is empty")
        terms.append(Term(xorb_hash, ChunkRange(start, end), decoded_size))
    range_hashes = None
    if flags & _HAS_PROOFS:
        range_hashes = tuple(records.next()[0] for _ in range(count))
    sha256 = None
    if flags & _HAS_METADATA:
        raw = records.next()[0]
        # The 32 bytes are stored so that their Xet string form is the usual SHA-256 hex.
        sha256 = format_hash(raw) if raw != ZERO_HASH else None
    return ShardFile(file_hash, tuple(terms), range_hashes, sha256)


def _read_xorb(records: _Records, head: tuple[bytes, int, int, int, int]) -> ShardXorb:
    xorb_hash, _, count, decoded_size, packed_size = head
    records.check_left(count)
    chunks = []
    for _ in range(count):
        chunk_hash, start, size, _, _ = records.next()
        chunks.append(ShardChunk(chunk_hash, start, size))
    return ShardXorb(xorb_hash, tuple(chunks), decoded_size, packed_size)


def make_shard(files: Iterable[ShardFile], xorbs: Iterable[ShardXorb]) -> bytes:
    """Make a shard in the form of an upload, without a footer."""
    parts = [_HEADER.pack(TAG, VERSION, 0)]
    for file in files:
        flags = _HAS_PROOFS if file.range_hashes is not None else 0
        flags |= _HAS_METADATA if file.sha256 is not None else 0
        parts.append(_RECORD.pack(file.file_hash, flags, len(file.terms), 0, 0))
        parts += (
            _RECORD.pack(term.xorb_hash, 0, term.decoded_size, term.chunks.start, term.chunks.end)
            for term in file.terms
        )
        parts += (_RECORD.pack(proof, 0, 0, 0, 0) for proof in file.range_hashes or ())
        if file.sha256 is not None:
            parts.append(_RECORD.pack(parse_hash(file.sha256), 0, 0, 0, 0))
    parts.append(_RECORD.pack(_BOOKEND, 0, 0, 0, 0))
    for xorb in xorbs:
        parts.append(
            _RECORD.pack(xorb.xorb_hash, 0, len(xorb.chunks), xorb.decoded_size, xorb.packed_size)
        )
        parts += (
            _RECORD.pack(chunk.chunk_hash, chunk.start, chunk.size, 0, 0) for chunk in xorb.chunks
        )
    parts.append(_RECORD.pack(_BOOKEND, 0, 0, 0, 0))
    return b"".join(parts)
