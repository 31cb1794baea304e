"""Content codings: gzip and zstd. What is decoded is bounded, as a whole or in pieces."""

import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import zstandard

from xetserve.errors import FormatError

CODINGS: Final = ("zstd", "gzip")  # in order of preference
ACCEPT_ENCODING: Final = ", ".join(CODINGS)
MAX_ZSTD_WINDOW: Final = 8 * 1024 * 1024  # bytes; RFC 9659, 3
# Bytes decoded in one go, so that a bomb is found out early: at most 8 MiB can come of them.
PIECE_SIZE: Final = 256
MAX_DECODED: Final = 64 * 1024  # bytes that a StreamDecoder gives at a time


def encode_content(coding: str, data: bytes) -> bytes:
    """Apply one of the CODINGS."""
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
    """Undo a Content-Encoding.

    Args:
        coding: the field's value; None and "identity" leave data as it is.
        limit: bytes that the result may have.

    Raises:
        FormatError: unknown coding, damaged data, or a result above limit.
    """
    name = (coding or "identity").strip().lower()
    try:
        if name == "identity":
            result = data
        elif name in ("gzip", "x-gzip"):
            result = _decode_members(lambda: zlib.decompressobj(wbits=31), data, limit)
        elif name == "zstd":
            decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
            result = _decode_members(decompressor.decompressobj, data, limit)
        else:
            raise FormatError("unknown Content-Encoding")
    except (zlib.error, zstandard.ZstdError):
        raise FormatError(f"damaged {name} content") from None
    if len(result) > limit:
        raise FormatError(f"content of more than {limit} bytes")
    return result


def _decode_members(make_decoder: Callable[[], _Decoder], data: bytes, limit: int) -> bytes:
    """Decode the gzip members or zstd frames one after the other, or until there is more than limit."""
    result = bytearray()
    decoder = make_decoder()
    position = 0
    while len(result) <= limit:
        if decoder.eof:
            position -= len(decoder.unused_data)
            if position == len(data):
                break
            decoder = make_decoder()
        piece = data[position : position + PIECE_SIZE]
        if not piece:
            raise FormatError("content without an end")
        result += decoder.decompress(piece)
        position += len(piece)
    return bytes(result)


class StreamDecoder:
    """Undoes a Content-Encoding as the content comes: gzip, or none.

    Raises:
        FormatError: another coding.
    """

    def __init__(self, coding: str | None) -> None:
        name = (coding or "identity").strip().lower()
        if name not in ("identity", "gzip", "x-gzip"):
            raise FormatError("unknown Content-Encoding")
        self._inflater = None if name == "identity" else zlib.decompressobj(wbits=31)

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Iterate over what some more bytes stand for, in pieces of at most MAX_DECODED bytes.

        Raises:
            FormatError: they are damaged.
        """
        if self._inflater is None:
            yield data
            return
        while True:
            if self._inflater.eof and data:  # another member
                self._inflater = zlib.decompressobj(wbits=31)
            try:
                piece = self._inflater.decompress(data, MAX_DECODED)
            except zlib.error:
                raise FormatError("damaged gzip content") from None
            if piece:
                yield piece
            data = self._inflater.unused_data or self._inflater.unconsumed_tail
            if not data and len(piece) < MAX_DECODED:
                return

    def finish(self) -> None:
        """Say that no more comes.

        Raises:
            FormatError: more should have.
        """
        if self._inflater is not None and not self._inflater.eof:
            raise FormatError("content without an end")
