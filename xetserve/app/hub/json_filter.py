"""Takes members out of a JSON text as it passes, in bounded memory.

The text is not parsed. A quote behind "{", "," or a blank is no escaped one, so it opens or closes
a string; with a name and another quote at once behind it, it can only open it; and a string with a
colon behind it is a member's name. So what looks like a member is one, in every text that is JSON
at all.
"""

import re
from collections.abc import Sequence
from typing import Final

MAX_MATCH: Final = 4096  # bytes; no match is longer, so that so many have to be held back

_BLANK: Final = rb"[ \t\r\n]{0,64}"
_VALUE: Final = rb'(?:"[^"\\]{0,256}"|[-+.0-9A-Za-z]{1,32}(?=[ \t\r\n,}\]]))'


class MemberFilter:
    """Takes out the members with some names, at any depth.

    Values may be strings without escapes, numbers, true, false and null, of sensible lengths; a
    member with another value is left as it is.

    Args:
        names: at most 32 ASCII characters each.
    """

    def __init__(self, names: Sequence[str]) -> None:
        name = b"|".join(re.escape(name.encode("ascii")) for name in names)
        member = rb'"(?:%b)"%b:%b%b' % (name, _BLANK, _BLANK, _VALUE)
        rest = rb"(?:%b,%b%b){0,3}" % (_BLANK, _BLANK, member)
        # First in its object, a member takes the comma behind it along; otherwise the one before
        # it.
        self._pattern = re.compile(
            rb"(\{%b)%b%b(?:%b,)?|,%b%b" % (_BLANK, member, rest, _BLANK, _BLANK, member)
        )
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Take in a piece of the text; gives what is ready to go on."""
        self._held += data
        # However small the pieces, no byte is looked at more than twice.
        if len(self._held) < 2 * MAX_MATCH:
            return b""
        return self._take(len(self._held) - MAX_MATCH)

    def finish(self) -> bytes:
        """Return the rest, once all has been taken in."""
        return self._take(len(self._held))

    def _take(self, limit: int) -> bytes:
        """Return what lies before limit, and the match that goes beyond it."""
        if limit <= 0:
            return b""
        parts: list[bytes | bytearray] = []
        position = 0
        for match in self._pattern.finditer(self._held):
            if match.start() >= limit:
                break
            parts += [self._held[position : match.start()], match[1] or b""]
            position = match.end()
        end = max(position, limit)
        parts.append(self._held[position:end])
        # A new one: the last match may still hold the old one's memory.
        self._held = self._held[end:]
        return b"".join(parts)
