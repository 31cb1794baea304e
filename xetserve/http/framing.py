"""Body framing (RFC 9112, 6 and 7): find the end of a body, and reject ambiguous framing.

These classes decode the data of a body. They check chunk headers and trailers against the grammar
and size limits: h11 alone accepts bare line feeds and extensions of any length, and makes an event
of each chunk.
"""

import re
from typing import Final, Protocol

from xetserve.errors import RequestError
from xetserve.http.head import RequestLimits, parse_field_line

MAX_CHUNK_LINE_SIZE: Final = 256  # bytes in a chunk's header line: its size and extensions
MAX_EXTENSIONS_SIZE: Final = 16 * 1024  # bytes in all chunk extensions of a body
CHUNKS_PER_TURN: Final = 64  # chunks that one call takes; each costs some microseconds
MAX_SMALL_CHUNKS: Final = 16 * 1024  # chunks of any size in a request's body
MIN_CHUNK_SIZE: Final = 16  # bytes; the mean size that chunks beyond MAX_SMALL_CHUNKS require
_LINE_END: Final = b"\r\n"

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_CHUNK_LINE: Final = re.compile(
    rb"0{0,5}([0-9A-Fa-f]{1,15})((?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*)"
    % (_TOKEN, _TOKEN, _QUOTED)
)


# Some servers send blanks behind the size, and extensions that break the grammar.
_LENIENT_CHUNK_LINE: Final = re.compile(
    rb"0{0,5}([0-9A-Fa-f]{1,15})((?:;[^\x00-\x08\x0a-\x1f\x7f]*+)?)[ \t]*"
)


class Framing(Protocol):
    """A decoder that takes one body from the receive buffer as it fills."""

    @property
    def length(self) -> int | None:
        """Return the bytes of data that are still to come; None: unknown, the body is chunked."""
        ...

    @property
    def is_complete(self) -> bool:
        """Return whether the body was taken to its end."""
        ...

    def take(self, inbox: bytearray) -> bytes:
        """Remove and return data of the body; b"" if more input is needed or the body is complete.

        Raises:
            RequestError: the framing is malformed or exceeds its size limits.
        """
        ...

    def frame(self, data: bytes) -> bytes:
        """Return data in a minimal framing that h11 can parse; b"" as data frames the end."""
        ...


class LengthFraming:
    """A body of a known number of bytes."""

    def __init__(self, length: int) -> None:
        self._left = length

    @property
    def length(self) -> int | None:
        return self._left

    @property
    def is_complete(self) -> bool:
        return not self._left

    def take(self, inbox: bytearray) -> bytes:
        data = bytes(inbox[: self._left])
        del inbox[: len(data)]
        self._left -= len(data)
        return data

    def frame(self, data: bytes) -> bytes:
        return data


class ChunkedFraming:
    """A chunked body: chunks, then trailers. One take returns the data of several chunks.

    Args:
        is_lenient: accept chunk headers that break the grammar, and any number of chunks and
            extensions. Use it for responses: no other server parses them, so request smuggling is
            not possible.
    """

    length = None

    def __init__(self, limits: RequestLimits, *, is_lenient: bool = False) -> None:
        self._limits = limits
        self._is_lenient = is_lenient
        self._left = 0  # bytes left of the current chunk, with the line end behind it
        self._size = 0  # bytes of data in all chunks that have begun
        self._num_chunks = 0
        self._extensions_size = 0
        self._trailer_size = 0
        self._num_trailers = 0
        self._in_trailers = False
        self.is_complete = False

    def take(self, inbox: bytearray) -> bytes:
        data = bytearray()
        last = self._num_chunks + CHUNKS_PER_TURN
        try:
            while not self.is_complete:
                if self._left:
                    if not self._take_data(inbox, data):
                        break
                elif self._num_chunks >= last or not self._take_line(inbox):
                    break
        except RequestError:
            if not data:
                raise  # with data, the next call raises: the data before the error is valid
        return bytes(data)

    def frame(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data)

    def _take_data(self, inbox: bytearray, data: bytearray) -> bool:
        """Move input of the current chunk to data; return whether the chunk is complete."""
        size = self._left - 2
        if size > 0:
            part = inbox[:size]
            data += part
            del inbox[: len(part)]
            self._left -= len(part)
            if len(part) < size:
                return False
        end = inbox[: self._left]
        if not _LINE_END[-self._left :].startswith(end):
            raise RequestError(400, "a chunk's data must end with CR LF (RFC 9112, 7.1)")
        del inbox[: len(end)]
        self._left -= len(end)
        return not self._left

    def _take_line(self, inbox: bytearray) -> bool:
        """Take a chunk header or a trailer line; return False if more input is needed."""
        end = inbox.find(b"\n") + 1
        if self._in_trailers:
            self._check_trailer_size(end or len(inbox))
        elif (end or len(inbox)) > MAX_CHUNK_LINE_SIZE:
            raise RequestError(400, "a chunk's extensions are too long")
        if not end:
            return False
        line = bytes(inbox[:end])
        if not line.endswith(_LINE_END):
            raise RequestError(400, "a line must end with CR LF (RFC 9112, 2.2)")
        if self._in_trailers:
            self._read_trailer(line)
        else:
            self._read_chunk_line(line)
        del inbox[:end]
        return True

    def _read_chunk_line(self, line: bytes) -> None:
        match = (_LENIENT_CHUNK_LINE if self._is_lenient else _CHUNK_LINE).fullmatch(line[:-2])
        if match is None:
            raise RequestError(400, "malformed chunk header")
        self._extensions_size += len(match[2])
        if self._extensions_size > MAX_EXTENSIONS_SIZE and not self._is_lenient:
            raise RequestError(400, "the chunks' extensions are too long")
        size = int(match[1], 16)
        if size:
            self._check_number()
            self._left = size + 2
            self._size += size
            self._num_chunks += 1
        else:
            self._in_trailers = True

    def _check_number(self) -> None:
        """Check that the framing is not more work than the data."""
        most = MAX_SMALL_CHUNKS + self._size // MIN_CHUNK_SIZE
        if self._num_chunks >= most and not self._is_lenient:
            raise RequestError(400, "the body's chunks are too small: send larger ones")

    def _check_trailer_size(self, size: int) -> None:
        if self._trailer_size + size > self._limits.max_trailer_size + 2:
            raise RequestError(
                431, f"the trailers are larger than {self._limits.max_trailer_size} bytes"
            )

    def _read_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.is_complete = True
            return
        if self._num_trailers == self._limits.max_fields:
            raise RequestError(431, f"more than {self._limits.max_fields} trailers")
        parse_field_line(line[:-2])
        self._num_trailers += 1
        self._trailer_size += len(line)
