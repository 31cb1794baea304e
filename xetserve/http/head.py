"""A request's head, taken out of the bytes as they arrive: strictly, line by line (RFC 9112, 2 to
5).

A line is judged as soon as it is whole, so that nobody waits for the rest of a head that cannot
become one. What is refused, and with which status, does not depend on how the bytes were cut into
segments. No message quotes the request: it may hold a token.
"""

import re
from dataclasses import dataclass
from typing import Final

from xetserve.errors import RequestError

MAX_EMPTY_LINES: Final = 8  # before a request line; RFC 9112, 2.2 asks for one
MAX_METHOD_SIZE: Final = 32  # characters
_LINE_OVERHEAD: Final = MAX_METHOD_SIZE + len("  HTTP/1.1\r\n")  # a request line without its target

_TOKEN: Final = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
_METHOD: Final = re.compile(_TOKEN)
_REQUEST_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])" % _TOKEN)
# No control characters but tabs (RFC 9110, 5.5): not in values either, where they end up in logs.
# Blanks behind the colon are not given back ("*+"): trying each of them as the value's end takes
# seconds.
_FIELD_LINE: Final = re.compile(
    rb"(%b):[ \t]*+((?:[^\x00-\x20\x7f]+(?:[ \t]+[^\x00-\x20\x7f]+)*)?)[ \t]*" % _TOKEN
)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """How large a request may be, besides its body. Sizes in bytes.

    max_url_size: of the request target; 414 beyond.
    max_head_size: of request line and fields, line ends included; 431 beyond.
    max_fields: lines of fields in a head, and in the trailers; 431 beyond.
    max_trailer_size: of the fields behind a chunked body; 431 beyond.
    """

    max_url_size: int = 8 * 1024
    max_head_size: int = 32 * 1024
    max_fields: int = 100
    max_trailer_size: int = 8 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """A head whose lines are well-formed, each by itself.

    target: as sent. version: "1.0" or "1.1". fields: in order, names in lower case.
    raw: its bytes, up to the end of the empty line.
    """

    method: str
    target: str
    version: str
    fields: list[tuple[str, str]]
    raw: bytes


class HeadReader:
    """Takes one head out of a buffer that grows."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._num_empty = 0  # lines skipped so far
        self._start = 0  # of the line that is looked at, in the buffer
        self._searched = 0  # so far there is no line end behind _start
        self._target = ""
        self._version = ""
        self._fields: list[tuple[str, str]] = []
        self.method = ""  # known when the request line is, even if the rest is refused

    def take(self, inbox: bytearray) -> Head | None:
        """Take the head out of inbox; None: it is not complete.

        Raises:
            RequestError: it is malformed or too large, whatever follows.
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
        """Drop empty lines before the request line; False: nothing else has come."""
        while inbox[:2] == b"\r\n":
            self._num_empty += 1
            if self._num_empty > MAX_EMPTY_LINES:
                raise RequestError(400, "too many empty lines before the request line")
            del inbox[:2]
        if not inbox or inbox == b"\r":
            return False
        if not _METHOD.match(inbox, 0, 1):  # TLS, for one: its client would wait for more
            raise RequestError(400, "a request must start with a method")
        return True

    def _check_size(self, inbox: bytearray, reached: int) -> None:
        """Compare how far the current line reaches, as far as it is known, with the limits."""
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
            raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        if len(target) > self._limits.max_url_size:
            raise RequestError(
                414, f"the request target is longer than {self._limits.max_url_size} bytes"
            )
        self._target = target.decode("ascii")
        # A later minor version is to be taken for the latest that we know (RFC 9110, 2.5).
        self._version = "1.0" if minor == b"0" else "1.1"

    def _read_field_line(self, line: bytearray) -> None:
        if len(self._fields) == self._limits.max_fields:
            raise RequestError(431, f"more than {self._limits.max_fields} header fields")
        self._fields.append(parse_field_line(line))


def parse_field_line(line: bytes | bytearray) -> tuple[str, str]:
    """Give name, in lower case, and value of a field line without its line end.

    Raises:
        RequestError: 400.
    """
    match = _FIELD_LINE.fullmatch(line)
    if match is None:
        if line[:1] in (b" ", b"\t"):
            raise RequestError(400, "folded field lines are not read (RFC 9112, 5.2)")
        raise RequestError(400, "malformed header field")
    name, value = match.groups()
    return name.decode("ascii").lower(), value.decode("latin-1")


def _check_method(line: bytearray) -> None:
    match = _METHOD.match(line)
    if match is not None and match.end() > MAX_METHOD_SIZE:
        raise RequestError(501, "there is no method with so long a name")
