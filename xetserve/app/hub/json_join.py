"""Join several JSON arrays into one as they pass, in bounded memory.

    [1,2]   []   [3]   becomes   [1,2,3]

The texts are not parsed; only blanks and brackets at both ends of each are examined. So no list has
to be held as a whole, and the bytes of a page are passed on while it is received.
"""

from typing import Final

from xetserve.errors import FormatError

MAX_HELD: Final = 4096  # bytes of blanks and closing brackets at an end; real pages have a few

_BLANK: Final = b" \t\r\n"


class ArrayJoiner:
    """Joins arrays: feed() the pieces of each, end_page() after each, finish() after the last."""

    def __init__(self) -> None:
        self._is_open = False  # the opening bracket of this array was read
        self._has_members = False  # this array has members
        self._is_empty = True  # no array so far had members
        self._held = b""  # blanks and brackets that may be the end of this array
        self._lead = b"["

    def feed(self, data: bytes) -> bytes:
        """Add a piece of an array, and return the bytes that can be sent.

        Raises:
            FormatError: the text is not an array.
        """
        data = self._held + data
        if not self._is_open:
            data = data.lstrip(_BLANK)
            if not data:
                self._held = b""
                return b""
            if not data.startswith(b"["):
                raise FormatError("a page of a list is no JSON array")
            self._is_open = True
            data = data[1:]
        if not self._has_members:
            data = data.lstrip(_BLANK)
        kept = data.rstrip(_BLANK + b"]")
        self._held = data[len(kept) :]
        if len(self._held) > MAX_HELD:
            raise FormatError("a page of a list does not end")
        return self._pass(kept)

    def end_page(self) -> bytes:
        """End an array, and return the bytes that can be sent.

        Raises:
            FormatError: the text is not an array.
        """
        held = self._held.rstrip(_BLANK)
        if not self._is_open or not held.endswith(b"]"):
            raise FormatError("a page of a list is no JSON array")
        rest = self._pass(held[:-1].rstrip(_BLANK))
        self._is_open = self._has_members = False
        self._held = b""
        return rest

    def finish(self) -> bytes:
        """Return the end of the joined array."""
        lead, self._lead = self._lead, b""
        return lead + b"]"

    def _pass(self, data: bytes) -> bytes:
        """Return data with the bracket or comma that has to precede it."""
        if not data:
            return b""
        lead, self._lead = self._lead, b""
        if not self._has_members and not self._is_empty:
            lead += b","
        self._has_members, self._is_empty = True, False
        return lead + data
