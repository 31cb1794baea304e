"""Request heads: parse the request line and the fields strictly, line by line (RFC 9112, 2 to 5).

Each line is checked as soon as it is complete, so a malformed head is refused before the rest of it
arrives. The result and the error status do not depend on how TCP splits the bytes. No message
quotes the request, which may hold a token.
"""

import re
from dataclasses import dataclass
from typing import Final

from xetserve.errors import RequestError

MAX_EMPTY_LINES: Final = 8  # before a request line; RFC 9112, 2.2 requires one
MAX_METHOD_SIZE: Final = 32  # characters
_LINE_OVERHEAD: Final = MAX_METHOD_SIZE + len("  HTTP/1.1\r\n")  # a request line without its target

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_METHOD: Final = re.compile(_TOKEN)
_REQUEST_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
# Values must not hold control characters except tabs (RFC 9110, 5.5): values appear in logs. The
# blanks behind the colon match possessively ("*+"): backtracking over a long run takes seconds.
_FIELD_LINE: Final = re.compile(
    rb"(%b):[ \t]*+((?:[^\x00-\x20\x7f]+(?:[ \t]+[^\x00-\x20\x7f]+)*)?)[ \t]*" % _TOKEN
)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """The size limits of a request, without its body. Sizes are in bytes.

    max_url_size: of the request target; a longer one gets status 414.
    max_head_size: of the request line and fields, with line ends; a larger head gets 431.
    max_fields: field lines in the head, and in the trailers; more get 431.
    max_trailer_size: of the trailers behind a chunked body; larger ones get 431.
    """

    max_url_size: int = 8 * 1024
    max_head_size: int = 32 * 1024
    max_fields: int = 100
    max_trailer_size: int = 8 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """A request head in which each line is well-formed; request.py checks the head as a whole.

    target: as sent.
    version: "1.0" or "1.1".
    fields: in order, names in lower case.
    raw: the bytes of the head, including the empty line at its end.
    """

    method: str
    target: str
    version: str
    fields: list[tuple[str, str]]
    raw: bytes


class HeadReader:
    """A parser that takes one head from the receive buffer as it fills."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._num_empty = 0  # empty lines skipped so far
        self._start = 0  # offset of the current line in the buffer
        self._searched = 0  # no line end lies between _start and this offset
        self._target = ""
        self._version = ""
        self._fields: list[tuple[str, str]] = []
        self.method = ""  # set after the request line, even if the rest is refused

    def take(self, inbox: bytearray) -> Head | None:
        """Remove the head from inbox and return it; None: the head is not complete.

        Raises:
            RequestError: the head is malformed or too large; more input cannot change that.
        """
        if not self._start and not self._skip_empty_lines(inbox):
            return None
        while True:
            end = inbox.find(b"\n", self._searched)
            self._check_size(inbox, end + 1 or len(inbox))
            if end < 0:
                self._searched = len(inbox)
                return None
            line = inbox[self._start : end - 1]
            if inbox[end - 1] != 0x0D:
                raise RequestError(400, "a line must end with CR LF (RFC 9112, 2.2)")
            is_first = not self._start
            self._start = self._searched = end + 1
            if is_first:
                self._read_request_line(line)
            elif line:
                self._read_field_line(line)
            else:
                break
        raw = bytes(inbox[: self._start])
        del inbox[: self._start]
        return Head(self.method, self._target, self._version, self._fields, raw)

    def _skip_empty_lines(self, inbox: bytearray) -> bool:
        """Drop empty lines before the request line; return False if inbox has nothing else."""
        while inbox[:2] == b"\r\n":
            self._num_empty += 1
            if self._num_empty > MAX_EMPTY_LINES:
                raise RequestError(400, "too many empty lines before the request line")
            del inbox[:2]
        if not inbox or inbox == b"\r":
            return False
        if not _METHOD.match(inbox, 0, 1):  # a TLS client, for example, would wait for an answer
            raise RequestError(400, "a request must start with a method")
        return True

    def _check_size(self, inbox: bytearray, reached: int) -> None:
        """Check the size of the head so far: reached is the offset where its last line ends."""
        limits = self._limits
        max_line = limits.max_url_size + _LINE_OVERHEAD
        if not self._start and reached > max_line <= limits.max_head_size:
            _check_method(inbox)
            raise RequestError(
                414, f"the request target is longer than {limits.max_url_size} bytes"
            )
        if reached > limits.max_head_size:
            raise RequestError(431, f"the head is larger than {limits.max_head_size} bytes")

    def _read_request_line(self, line: bytearray) -> None:
        _check_method(line)
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise RequestError(400, "malformed request line")
        method, target, major, minor = match.groups()
        self.method = method.decode("ascii")
        if major != b"1":
            raise RequestError(505, "this server supports only HTTP/1.0 and HTTP/1.1")
        if len(target) > self._limits.max_url_size:
            raise RequestError(
                414, f"the request target is longer than {self._limits.max_url_size} bytes"
            )
        self._target = target.decode("ascii")
        # A higher minor version is handled as the highest that we support (RFC 9110, 2.5).
        self._version = "1.0" if minor == b"0" else "1.1"

    def _read_field_line(self, line: bytearray) -> None:
        if len(self._fields) == self._limits.max_fields:
            raise RequestError(431, f"more than {self._limits.max_fields} header fields")
        self._fields.append(parse_field_line(line))


def parse_field_line(line: bytes | bytearray) -> tuple[str, str]:
    """Parse a field line without its line end into name, in lower case, and value.

    Raises:
        RequestError: 400, the line is malformed or folded.
    """
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        if line[:1] in (b" ", b"\t"):
            raise RequestError(400, "folded field lines are not supported (RFC 9112, 5.2)")
        raise RequestError(400, "malformed header field")
    name, value = match.groups()
    return name.decode("ascii").lower(), value.decode("latin-1")


def _check_method(line: bytearray) -> None:
    match = _METHOD.match(line)
    if match is not None and match.end() > MAX_METHOD_SIZE:
        raise RequestError(501, f"the method name is longer than {MAX_METHOD_SIZE} characters")
