"""Xorb chunks: parse the bytes of a xorb range into chunk records, and write records.

A data range holds whole chunk records back to back: header, payload, header, payload. There is
no padding, and the footer of a stored xorb never appears in it.

Source: draft-denis-xet, "Xorb Format"; xet-core xorb_object/xorb_chunk_format.rs.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError
from xetserve.xet.compression import Scheme, decode_payload, encode_payload

CHUNK_HEADER_SIZE: Final = 8
MAX_CHUNK_SIZE: Final = 131_072  # decoded bytes
MAX_PACKED_SIZE: Final = 262_144  # payload bytes; the limit of the official reader
MAX_RECORD_SIZE: Final = CHUNK_HEADER_SIZE + MAX_PACKED_SIZE
# Producers end a xorb at this many decoded bytes, so the chunk headers are not included.
MAX_XORB_SIZE: Final = 64 * 1024 * 1024
FOOTER_IDENT: Final = b"XETBLOB"

_HEADER: Final = struct.Struct("<Q")
_SCHEMES: Final = (Scheme.NONE, Scheme.LZ4, Scheme.BG4_LZ4)


class ChunkHeader(NamedTuple):
    """The header before a chunk payload. Sizes are in bytes."""

    packed_size: int
    scheme: Scheme
    decoded_size: int

    @property
    def record_size(self) -> int:
        """Return the size of header and payload together, in bytes."""
        return CHUNK_HEADER_SIZE + self.packed_size


class ChunkRecord(NamedTuple):
    """One packed chunk; the payload is a view of the buffer that it was parsed from."""

    header: ChunkHeader
    payload: memoryview

    def decode(self) -> Buffer:
        """Decode the chunk; see decode_payload for how long the result is valid.

        Raises:
            FormatError: the payload does not decode to the size in the header.
        """
        return decode_payload(self.header.scheme, self.payload, self.header.decoded_size)


def parse_chunk_header(data: Buffer, offset: int = 0) -> ChunkHeader:
    """Parse the header before a chunk payload.

    Layout, little-endian:

        0     version, always 0     u8
        1-3   packed size, bytes    u24
        4     compression           u8
        5-7   decoded size, bytes   u24

    The sizes are checked here, before a caller allocates buffers for them.

    Args:
        data: must hold at least CHUNK_HEADER_SIZE bytes from offset on.

    Raises:
        FormatError: unknown version or compression, or a size out of bounds.
    """
    (header,) = _HEADER.unpack_from(data, offset)
    version, packed_size = header & 0xFF, header >> 8 & 0xFFFFFF
    scheme, decoded_size = header >> 32 & 0xFF, header >> 40
    if version:
        raise FormatError(f"chunk version {version}, expected 0")
    if scheme >= len(_SCHEMES):
        raise FormatError(f"chunk compression {scheme}, expected 0, 1 or 2")
    if decoded_size > MAX_CHUNK_SIZE or packed_size > MAX_PACKED_SIZE:
        raise FormatError(
            f"chunk sizes {packed_size} and {decoded_size}, expected at most "
            f"{MAX_PACKED_SIZE} packed and {MAX_CHUNK_SIZE} decoded"
        )
    if scheme == 0 and packed_size != decoded_size:
        raise FormatError(f"raw chunk of {packed_size} bytes, expected {decoded_size}")
    return ChunkHeader(packed_size, _SCHEMES[scheme], decoded_size)


def iter_records(data: Buffer) -> Iterator[ChunkRecord]:
    """Yield the chunk records of a buffer that holds only whole records.

    Raises:
        FormatError: a header is invalid, or the last record is incomplete.
    """
    view = memoryview(data)
    offset = 0
    while offset < len(view):
        if len(view) - offset < CHUNK_HEADER_SIZE:
            raise FormatError(f"chunk header cut after {len(view) - offset} bytes")
        header = parse_chunk_header(view, offset)
        start = offset + CHUNK_HEADER_SIZE
        offset += header.record_size
        if offset > len(view):
            raise FormatError(f"chunk payload cut: {len(view) - start} of {header.packed_size}")
        yield ChunkRecord(header, view[start:offset])


class RecordReader:
    """A reader that finds chunk records in data that arrives piece by piece, without copying.

    The caller receives into its own buffer and calls scan after each piece. A scan stops at an
    incomplete record, and the next scan continues there.
    """

    __slots__ = ("_position", "num_records")

    def __init__(self) -> None:
        self._position = 0  # where in the current buffer the next record starts
        self.num_records = 0

    @property
    def position(self) -> int:
        """Return the offset in the current buffer of the first incomplete record."""
        return self._position

    def scan(self, buffer: memoryview, filled: int) -> Iterator[ChunkRecord]:
        """Yield the new records that are complete within buffer[:filled].

        Raises:
            FormatError: a header is invalid.
        """
        while filled - self._position >= CHUNK_HEADER_SIZE:
            header = parse_chunk_header(buffer, self._position)
            start = self._position + CHUNK_HEADER_SIZE
            end = start + header.packed_size
            if end > filled:
                return
            record = ChunkRecord(header, buffer[start:end])
            self._position = end
            self.num_records += 1
            yield record

    def move_to(self, position: int) -> None:
        """Continue in another buffer, where the incomplete record starts at position."""
        self._position = position


def pack_chunk(data: Buffer, scheme: Scheme) -> bytes:
    """Make a chunk record; raw if scheme does not shrink it, as the official writer does."""
    payload = encode_payload(scheme, data)
    if len(payload) >= len(data):
        scheme, payload = Scheme.NONE, bytes(data)
    return make_chunk_header(ChunkHeader(len(payload), scheme, len(data))) + payload


def make_raw_record(data: Buffer) -> ChunkRecord:
    """Make the record of a raw chunk; its payload is a copy of data."""
    return ChunkRecord(ChunkHeader(len(data), Scheme.NONE, len(data)), memoryview(bytes(data)))


def make_chunk_header(header: ChunkHeader) -> bytes:
    """Return the bytes of a chunk header; see parse_chunk_header for the layout."""
    return b"".join(
        (
            b"\0",
            header.packed_size.to_bytes(3, "little"),
            bytes((header.scheme,)),
            header.decoded_size.to_bytes(3, "little"),
        )
    )
