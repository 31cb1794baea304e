"""The file format of a cache entry: packed chunk records of one range of one xorb, with checks.

    0       the records, exactly as the data host sent them
    then    end offset of each record, from the start of the file     u32 each
    then    CRC-32 of each record                                     u32 each
    last    trailer, TRAILER_SIZE bytes:
            xorb hash                                                 32 bytes
            chunk range: start, end                                   u32, u32
            where the records start in the xorb, their size in bytes  u64, u64
            BLAKE3 of the offsets, checks and trailer fields, cut     16 bytes
            MAGIC                                                     8 bytes

Numbers are little-endian. The size of a file is known before its first byte is written, so a
truncated file is found at once. Any other damage is found when a record is read, since its check is
compared before it is used. The digit of MAGIC is the version of the format; whatever else changes,
MAGIC stays at the end, see base/format_version.py.

An entry does not say which client, file or URL it came from. Pure: bytes in, values out.
"""

import re
import struct
import sys
from array import array
from enum import Enum
from typing import Final, NamedTuple
from zlib import crc32

from blake3 import blake3

from xetserve.base.format_version import check_version
from xetserve.errors import FormatError
from xetserve.xet.reconstruction import ByteRange, ChunkRange
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, parse_chunk_header

MAGIC: Final = b"xscache2"
CHECK_SIZE: Final = 4  # bytes of a record's check
INDEX_CHECK_SIZE: Final = 16  # bytes
_TRAILER: Final = struct.Struct(f"<32sIIQQ{INDEX_CHECK_SIZE}s{len(MAGIC)}s")
_FIELDS: Final = struct.Struct("<32sIIQQ")
TRAILER_SIZE: Final = _TRAILER.size
_NAME: Final = re.compile(r"(\d{1,9})-(\d{1,9})-[0-9a-f]{16}(?:\.(proven|imported))?\.xc", re.ASCII)


class Standing(Enum):
    """How far the records of an entry are verified. It is part of the file's name, so that a rename
    changes it atomically.

    UNPROVEN: the records came from a data host, and each decodes to its size.
    PROVEN: a file hash, or the xorb hash, proves the records.
    IMPORTED: the records came from an archive, and each decodes to its size.
    """

    UNPROVEN = ".xc"
    PROVEN = ".proven.xc"
    IMPORTED = ".imported.xc"

    @staticmethod
    def of(name: str) -> "Standing":
        """Return the standing in the name or path of an entry."""
        for standing in (Standing.PROVEN, Standing.IMPORTED):
            if name.endswith(standing.value):
                return standing
        return Standing.UNPROVEN

    def rename(self, path: str) -> str:
        """Return the name or path of an entry with this standing instead."""
        return path.removesuffix(Standing.of(path).value) + self.value


def is_unproven(name: str) -> bool:
    """Return whether a name or path is that of an entry which is not proven, imported or not."""
    return name.endswith(Standing.UNPROVEN.value) and Standing.of(name) is not Standing.PROVEN


class EntryKey(NamedTuple):
    """The content of an entry: chunks of a xorb, and their place in it.

    byte_range: packed positions in the xorb. It tells apart two copies of the xorb that pack the
        same chunks in different ways.
    """

    xorb_hash: bytes
    chunks: ChunkRange
    byte_range: ByteRange

    @property
    def num_chunks(self) -> int:
        """Chunks in the range."""
        return self.chunks.end - self.chunks.start

    @property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return self.byte_range.size + index_size(self.chunks)


def index_size(chunks: ChunkRange) -> int:
    """Return the bytes after the records in an entry with these chunks."""
    return (chunks.end - chunks.start) * (4 + CHECK_SIZE) + TRAILER_SIZE


def make_entry_name(
    chunks: ChunkRange, unique: bytes, standing: Standing = Standing.UNPROVEN
) -> str:
    """Return the file name of an entry; unique: 8 random bytes, which make locks unnecessary."""
    return f"{chunks.start}-{chunks.end}-{unique.hex()}{standing.value}"


def parse_entry_name(name: str) -> ChunkRange | None:
    """Parse the chunk range in a file name; None if it is not the name of an entry."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    chunks = ChunkRange(int(match[1]), int(match[2]))
    return chunks if chunks.start < chunks.end else None


def check_record(record: memoryview) -> bytes:
    """Return the CRC-32 of a packed record, header included.

    It finds errors of the disk. It does not stop an attacker who can write to the folder. Unlike
    BLAKE3 here, it releases the interpreter lock, so that threads check blocks beside the loop.
    """
    return _to_check(crc32(record))


def _to_check(value: int) -> bytes:
    return value.to_bytes(CHECK_SIZE, "little")


class EntryIndex(NamedTuple):
    """The index of an entry.

    ends: end offset of each record in the file.
    checks: the CRC-32 of each record, concatenated.
    """

    key: EntryKey
    ends: "array[int]"
    checks: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        return 500 + self.key.num_chunks * (4 + CHECK_SIZE)

    def offset_of(self, chunk: int) -> int:
        """Return the offset of a chunk's record; for the chunk after the last, the end of all."""
        at = chunk - self.key.chunks.start
        return self.ends[at - 1] if at else 0

    def position_of(self, chunk: int) -> int:
        """Return the packed position of a chunk's record in the xorb."""
        return self.key.byte_range.start + self.offset_of(chunk)

    def find_last(self, first: int, end: int, size: int) -> int:
        """Return the end of the longest run of chunks from first with at most size bytes; it has at
        least one chunk.
        """
        limit = self.offset_of(first) + size
        last = first + 1
        while last < end and self.offset_of(last + 1) <= limit:
            last += 1
        return last

    def is_intact(self, data: memoryview, first: int, last: int) -> bool:
        """Return whether data matches the checks of chunks [first, last)."""
        base = start = self.offset_of(first)
        if len(data) != self.offset_of(last) - base:
            return False
        at = first - self.key.chunks.start
        for end in self.ends[at : at + last - first]:
            check = self.checks[at * CHECK_SIZE : (at + 1) * CHECK_SIZE]
            if check_record(data[start - base : end - base]) != check:
                return False
            start = end
            at += 1
        return True

    def pack(self) -> bytes:
        """Return the bytes that follow the records in the file."""
        ends = array("I", self.ends)
        if sys.byteorder == "big":
            ends.byteswap()
        key = self.key
        fields = _FIELDS.pack(key.xorb_hash, *key.chunks, key.byte_range.start, key.byte_range.size)
        body = ends.tobytes() + self.checks + fields
        return body + blake3(body).digest(INDEX_CHECK_SIZE) + MAGIC


def parse_index(data: bytes, xorb_hash: bytes, chunks: ChunkRange, file_size: int) -> EntryIndex:
    """Parse the bytes that follow the records in the file of an entry.

    Args:
        data: the last index_size(chunks) bytes of the file.
        xorb_hash: from the entry's folder.
        chunks: from the entry's name.
        file_size: bytes of the whole file.

    Raises:
        OtherVersion: another version wrote the entry.
        FormatError: the index is damaged, or belongs to another entry.
    """
    check_version(data[-len(MAGIC) :], MAGIC)
    if len(data) != index_size(chunks):
        raise FormatError(f"an index of {len(data)} bytes, expected {index_size(chunks)}")
    trailer = _TRAILER.unpack_from(data, len(data) - TRAILER_SIZE)
    found_hash, start, end, position, size, check, magic = trailer
    body = data[: -INDEX_CHECK_SIZE - len(MAGIC)]
    if magic != MAGIC or blake3(body).digest(INDEX_CHECK_SIZE) != check:
        raise FormatError("the index is damaged")
    key = EntryKey(found_hash, ChunkRange(start, end), ByteRange(position, position + size))
    if (found_hash, key.chunks) != (xorb_hash, chunks) or key.file_size != file_size:
        raise FormatError("the index belongs to another entry, or the file is truncated")
    ends: array[int] = array("I")
    ends.frombytes(data[: 4 * key.num_chunks])
    if sys.byteorder == "big":
        ends.byteswap()
    checks = bytes(data[4 * key.num_chunks : (4 + CHECK_SIZE) * key.num_chunks])
    return EntryIndex(key, ends, checks)


class Indexer:
    """Builds the index of records that it is fed, in pieces of any size.

    The records must have exactly the chunks and bytes of the key.
    """

    def __init__(self, key: EntryKey) -> None:
        self._key = key
        self._ends: array[int] = array("I")
        self._checks = bytearray()
        self._position = 0  # of the next byte
        self._header = bytearray()  # of an incomplete record, as far as it was fed
        self._left = 0  # bytes of its payload to come
        self._check = 0  # of the incomplete record

    @property
    def is_complete(self) -> bool:
        """Whether all chunks were fed."""
        return len(self._ends) == self._key.num_chunks and (
            self._position == self._key.byte_range.size
        )

    def feed(self, data: memoryview) -> None:
        """Add the next bytes.

        Raises:
            FormatError: they are not the records of the key.
        """
        if self._position + len(data) > self._key.byte_range.size:
            raise FormatError(f"more than {self._key.byte_range.size} bytes")
        start = self._position  # of data
        at = 0
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                self._check = crc32(part, self._check)
                self._left -= len(part)
            elif self._header or len(data) - at < CHUNK_HEADER_SIZE:
                part = data[at : at + CHUNK_HEADER_SIZE - len(self._header)]
                self._header += part
                if len(self._header) == CHUNK_HEADER_SIZE:
                    self._left = parse_chunk_header(self._header).packed_size
                    self._check = crc32(self._header)
                    self._header.clear()
            else:
                size = parse_chunk_header(data, at).record_size
                part = data[at : at + size]
                self._check = crc32(part)
                self._left = size - len(part)
            at += len(part)
            if not self._left and not self._header:
                self._end_record(start + at)
        self._position = start + len(data)

    def _end_record(self, position: int) -> None:
        if len(self._ends) == self._key.num_chunks:
            raise FormatError(f"more than {self._key.num_chunks} chunks")
        self._ends.append(position)
        self._checks += _to_check(self._check)

    def cut(self) -> EntryKey | None:
        """Expect no more than the records that have come whole; return what the entry holds then,
        None if that is nothing.
        """
        if not self._ends:
            return None
        start, position = self._key.chunks.start, self._key.byte_range.start
        self._key = EntryKey(
            self._key.xorb_hash,
            ChunkRange(start, start + len(self._ends)),
            ByteRange(position, position + self._ends[-1]),
        )
        self._position = self._ends[-1]
        return self._key

    def make_index(self) -> EntryIndex:
        """Return the index; all chunks must have been fed."""
        return EntryIndex(self._key, self._ends, bytes(self._checks))
