"""Content codings of small documents: gzip and zstd, with the output bounded."""

import zlib
from typing import Final

import zstandard

from xetserve.errors import FormatError

ACCEPT_ENCODING: Final = "zstd, gzip"


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
            decoder = zlib.decompressobj(wbits=31)
            result = decoder.decompress(data, limit + 1)
            if len(result) <= limit and not decoder.eof:
                raise FormatError("gzip content without an end")
        elif name == "zstd":
            reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
            result = _read_up_to(reader, limit + 1)
        else:
            raise FormatError("unknown Content-Encoding")
    except (zlib.error, zstandard.ZstdError):
        raise FormatError(f"damaged {name} content") from None
    if len(result) > limit:
        raise FormatError(f"content of more than {limit} bytes")
    return result


def _read_up_to(reader: zstandard.ZstdDecompressionReader, limit: int) -> bytes:
    parts = []
    while limit > 0 and (part := reader.read(limit)):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
