"""Where a body ends, and that its framing is the one that everybody reads (RFC 9112, 6 and 7).

What is taken here goes to h11, which decodes it. Chunk headers and trailers are held to the grammar and
to a size; h11 would take bare line feeds, and extensions of any length.
"""

import re
from typing import Final, Protocol

from xetserve.errors import RequestError
from xetserve.http.heads import RequestLimits, parse_field_line

MAX_CHUNK_LINE_SIZE: Final = 256  # bytes of a chunk's size and extensions
MAX_EXTENSIONS_SIZE: Final = 16 * 1024  # bytes of all the extensions of a body

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_CHUNK_LINE: Final = re.compile(
    rb"0*([0-9A-Fa-f]{1,15})((?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*)"
    % (_TOKEN, _TOKEN, _QUOTED)
)


# What servers are known to send: blanks behind the size, extensions of all kinds.
_LENIENT_CHUNK_LINE: Final = re.compile(
    rb"0*([0-9A-Fa-f]{1,15})((?:;[^\x00-\x08\x0a-\x1f\x7f]*)?)[ \t]*"
)


class Framing(Protocol):
    """Takes one body out of a buffer that grows."""

    def take(self, inbox: bytearray) -> bytes:
        """Take what can be said to belong to the body; b"": more is needed, or it is complete.

        Raises:
            RequestError: malformed, or too large for what is not data.
        """
        ...


class LengthFraming:
    """A body of a known number of bytes."""

    def __init__(self, length: int) -> None:
        self._left = length

    def take(self, inbox: bytearray) -> bytes:
        data = bytes(inbox[: self._left])
        del inbox[: len(data)]
        self._left -= len(data)
        return data


class ChunkedFraming:
    """Chunks, then trailers.

    Args:
        is_lenient: for responses, which we do not have to agree on with anybody: a chunk's size and extensions may be
            odd, and the extensions of a body be any number.
    """

    def __init__(self, limits: RequestLimits, *, is_lenient: bool = False) -> None:
        self._limits = limits
        self._is_lenient = is_lenient
        self._left = 0  # of a chunk's data and the line end behind it
        self._extensions_size = 0
        self._trailer_size = 0
        self._num_trailers = 0
        self._in_trailers = False
        self._is_complete = False

    def take(self, inbox: bytearray) -> bytes:
        if self._left:
            data = bytes(inbox[: self._left])
            del inbox[: len(data)]
            self._left -= len(data)
            return data
        if self._is_complete:
            return b""
        end = inbox.find(b"\n") + 1
        if self._in_trailers:
            self._check_trailer_size(end or len(inbox))
        elif (end or len(inbox)) > MAX_CHUNK_LINE_SIZE:
            raise RequestError(400, "a chunk's extensions are too long")
        if not end:
            return b""
        line = bytes(inbox[:end])
        if not line.endswith(b"\r\n"):
            raise RequestError(400, "a line must end with CR LF (RFC 9112, 2.2)")
        if self._in_trailers:
            self._read_trailer(line)
        else:
            self._read_chunk_line(line)
        del inbox[:end]
        return line

    def _read_chunk_line(self, line: bytes) -> None:
        match = (_LENIENT_CHUNK_LINE if self._is_lenient else _CHUNK_LINE).fullmatch(line[:-2])
        if match is None:
            raise RequestError(400, "malformed chunk header")
        self._extensions_size += len(match[2])
        if self._extensions_size > MAX_EXTENSIONS_SIZE and not self._is_lenient:
            raise RequestError(400, "the chunks' extensions are too long")
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._in_trailers = True

    def _check_trailer_size(self, size: int) -> None:
        if self._trailer_size + size > self._limits.max_trailer_size + 2:
            raise RequestError(
                431, f"the trailers are larger than {self._limits.max_trailer_size} bytes"
            )

    def _read_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self._is_complete = True
            return
        if self._num_trailers == self._limits.max_fields:
            raise RequestError(431, f"more than {self._limits.max_fields} trailers")
        parse_field_line(line[:-2])
        self._num_trailers += 1
        self._trailer_size += len(line)
