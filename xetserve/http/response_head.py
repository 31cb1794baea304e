"""Response heads: split them off the received bytes line by line, in linear time (RFC 9112, 4, 5).

h11 parses the heads afterwards. It cannot do so alone: its patterns backtrack over blanks, so one
long line would block the event loop for minutes, and its messages quote the line, which may hold a
signed URL.
"""

import re
from typing import Final

from xetserve.errors import BrokenStream, RequestError
from xetserve.http.head import parse_field_line

MAX_RESPONSE_FIELDS: Final = 256  # field lines in a head, and in the trailers

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[0-9] [0-9]{3}(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")


class ResponseHeadReader:
    """A reader that takes the heads of one response, interim ones included, from the buffer.

    Args:
        max_size: the most bytes that all heads together may have.
    """

    def __init__(self, max_size: int) -> None:
        self._left = max_size
        self._start = 0  # offset of the current line in the buffer
        self._searched = 0  # no line end lies between _start and this offset
        self._num_fields = 0

    def take(self, inbox: bytearray) -> bytes | None:
        """Remove the next head, with its empty line, from inbox; None: the head is not complete.

        Lines may end with LF alone (RFC 9112, 2.2). Folded lines are refused, as RFC 9112, 5.2
        allows for a gateway.

        Raises:
            BrokenStream: the head is malformed or too large; more input cannot change that.
        """
        while True:
            end = inbox.find(b"\n", self._searched)
            if (end + 1 or len(inbox)) > self._left:
                raise BrokenStream("not HTTP: the head is too large")
            if end < 0:
                self._searched = len(inbox)
                return None
            line = inbox[self._start : end].removesuffix(b"\r")
            is_first = not self._start
            self._start = self._searched = end + 1
            if is_first:
                if _STATUS_LINE.fullmatch(line) is None:
                    raise BrokenStream("not HTTP: malformed status line")
            elif line:
                self._check_field_line(line)
            else:
                break
        raw = bytes(inbox[: self._start])
        del inbox[: self._start]
        self._left -= len(raw)
        self._start = self._searched = self._num_fields = 0
        return raw

    def _check_field_line(self, line: bytearray) -> None:
        self._num_fields += 1
        if self._num_fields > MAX_RESPONSE_FIELDS:
            raise BrokenStream(f"not HTTP: more than {MAX_RESPONSE_FIELDS} header fields")
        try:
            parse_field_line(line)
        except RequestError as exc:
            raise BrokenStream(f"not HTTP: {exc}") from None
