"""Content codings: encode and decode gzip and zstd, with a bound on the decoded size."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import zstandard

from xetserve.errors import FormatError

CODINGS: Final = ("zstd", "gzip")  # in order of preference
ACCEPT_ENCODING: Final = ", ".join(CODINGS)
MAX_ZSTD_WINDOW: Final = 8 * 1024 * 1024  # bytes; RFC 9659, 3
# Packed bytes decoded in one step. A decompression bomb makes at most 8 MiB of these before the
# limit is checked.
PIECE_SIZE: Final = 256
MAX_DECODED: Final = 64 * 1024  # bytes in one piece of a StreamDecoder
# gzip members or zstd frames in one content. Servers send one, parallel compressors some hundred.
# An empty one has 9 or 20 bytes, and decoding it costs as much as kilobytes of data.
MAX_MEMBERS: Final = 1000
_STREAM_PIECE_SIZE: Final = 4096  # packed bytes that a StreamDecoder decodes in one step


def encode_content(coding: str, data: bytes) -> bytes:
    """Encode data with one of the CODINGS."""
    if coding == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def decode_content(coding: str | None, data: bytes, limit: int) -> bytes:
    """Decode a Content-Encoding as a whole; see decode_pieces."""
    return b"".join(decode_pieces(coding, data, limit))


def decode_pieces(coding: str | None, data: bytes, limit: int) -> Iterator[bytes]:
    """Decode a Content-Encoding; yield one piece, which may be empty, per PIECE_SIZE packed bytes.

    Args:
        coding: the field's value; for None and "identity" data is yielded unchanged.
        limit: the most bytes that the decoded content may have.

    Raises:
        FormatError: the coding is unknown, data is damaged or has more than MAX_MEMBERS, or the
            decoded content exceeds limit.
    """
    name = (coding or "identity").strip().lower()
    if name == "identity":
        pieces: Iterable[bytes] = (data,)
    elif name in ("gzip", "x-gzip"):
        pieces = _decode_members(lambda: zlib.decompressobj(wbits=31), data)
    elif name == "zstd":
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        pieces = _decode_members(decompressor.decompressobj, data)
    else:
        raise FormatError("unknown Content-Encoding")
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            if size > limit:
                raise FormatError(f"content of more than {limit} bytes")
            yield piece
    except (zlib.error, zstandard.ZstdError):
        raise FormatError(f"damaged {name} content") from None


def _decode_members(make_decoder: Callable[[], _Decoder], data: bytes) -> Iterator[bytes]:
    """Yield the decoded pieces of all gzip members or zstd frames in data."""
    decoder = make_decoder()
    num_members = 1
    position = 0
    while True:
        if decoder.eof:
            position -= len(decoder.unused_data)
            if position == len(data):
                return
            num_members = _count_member(num_members)
            decoder = make_decoder()
        piece = data[position : position + PIECE_SIZE]
        if not piece:
            raise FormatError("content without an end")
        position += len(piece)
        yield decoder.decompress(piece)


def _count_member(num_members: int) -> int:
    if num_members == MAX_MEMBERS:
        raise FormatError(f"content of more than {MAX_MEMBERS} members")
    return num_members + 1


class StreamDecoder:
    """An incremental decoder of a Content-Encoding, gzip or identity.

    Raises:
        FormatError: the coding is another one.
    """

    def __init__(self, coding: str | None) -> None:
        name = (coding or "identity").strip().lower()
        if name not in ("identity", "gzip", "x-gzip"):
            raise FormatError("unknown Content-Encoding")
        self._inflater = None if name == "identity" else zlib.decompressobj(wbits=31)
        self._num_members = 1

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next bytes; yield pieces of at most MAX_DECODED bytes.

        Raises:
            FormatError: the content is damaged or has more than MAX_MEMBERS.
        """
        if self._inflater is None:
            yield data
            return
        for start in range(0, len(data), _STREAM_PIECE_SIZE):
            yield from self._inflate(data[start : start + _STREAM_PIECE_SIZE])

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        inflater = self._inflater
        assert inflater is not None
        while True:
            if inflater.eof and data:  # another member
                self._num_members = _count_member(self._num_members)
                inflater = self._inflater = zlib.decompressobj(wbits=31)
            try:
                piece = inflater.decompress(data, MAX_DECODED)
            except zlib.error:
                raise FormatError("damaged gzip content") from None
            if piece:
                yield piece
            data = inflater.unused_data or inflater.unconsumed_tail
            if not data and len(piece) < MAX_DECODED:
                return

    def finish(self) -> None:
        """Check that the content is complete; call this after the last bytes.

        Raises:
            FormatError: the content is cut off.
        """
        if self._inflater is not None and not self._inflater.eof:
            raise FormatError("content without an end")
