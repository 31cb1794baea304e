"""Remove members from a JSON text as it passes, in bounded memory: "xetHash", "xetEnabled".

    {"path": "a", "xetHash": "01ab…", "size": 1}   becomes   {"path": "a", "size": 1}

The text is not parsed. A quote behind "{", "," or a blank is not escaped, so it opens or closes a
string. If a name and another quote follow at once, it opens one. A string with a colon behind it is
the name of a member. So whatever looks like a member is one, in every text that is JSON.

Why not json.loads and json.dumps up to 4 MiB, and unfiltered answers above: huggingface_hub takes
the hash of a file from a listing, and asks for a token with it. With xet_mode = plain that is 404,
and the download fails. So no answer may pass unfiltered, and lists whose pages are joined have no
limit. Measured on a listing of 4 MiB and, behind "to", on 4 MiB of tiny objects or numbers:

                      this module                   json.loads and json.dumps
    CPU               38 to 60 ms                   55 to 780 ms
    the loop waits    about 10 ms at a time         all of it; up to 500 ms with a thread (the GIL)
    memory            12 KiB and a piece            11 to 80 MiB besides the text, for each request
    1e400 and 1.10    stay                          become Infinity (which is not JSON) and 1.1
    {"a":1,"a":2}     stays                         becomes {"a":2}
    5,000 digits      stay                          are refused
"""

import re
from collections.abc import Sequence
from typing import Final

MAX_MATCH: Final = 4096  # bytes; no match is longer, so that so many have to be held back

HASH: Final = rb"[0-9a-f]{64}"
_BLANK: Final = rb"[ \t\r\n]{0,64}"
_VALUE: Final = rb'(?:"[^"\\]{0,256}"|[-+.0-9A-Za-z]{1,32}(?=[ \t\r\n,}\]]))'


class MemberFilter:
    """Removes the members with some names, at any depth.

    Their values may be strings of up to 256 bytes without escapes, numbers, true, false and null. A
    member with another value stays.

    Args:
        names: at most 32 ASCII characters each.
        spares_hashes: leave members whose value is a hash in hex.
    """

    _filler = b""  # what a match leaves behind, besides its first group

    def __init__(self, names: Sequence[str], *, spares_hashes: bool = False) -> None:
        name = b"|".join(re.escape(name.encode("ascii")) for name in names)
        value = b'(?!"%b")%b' % (HASH, _VALUE) if spares_hashes else _VALUE
        member = rb'"(?:%b)"%b:%b%b' % (name, _BLANK, _BLANK, value)
        self._pattern = self._compile(name, member)
        self._held = bytearray()

    def _compile(self, name: bytes, member: bytes) -> re.Pattern[bytes]:
        rest = rb"(?:%b,%b%b){0,3}" % (_BLANK, _BLANK, member)
        # First in its object, a member takes the comma behind it along; otherwise the one before
        # it.
        return re.compile(
            rb"(\{%b)%b%b(?:%b,)?|,%b%b" % (_BLANK, member, rest, _BLANK, _BLANK, member)
        )

    def feed(self, data: bytes) -> bytes:
        """Add a piece of the text, and return the bytes that can be sent."""
        self._held += data
        # No byte is searched more than twice, however small the pieces are.
        if len(self._held) < 2 * MAX_MATCH:
            return b""
        return self._take(len(self._held) - MAX_MATCH)

    def finish(self) -> bytes:
        """Return the remaining bytes, after the last piece. Then another text may follow."""
        return self._take(len(self._held))

    def _take(self, limit: int) -> bytes:
        """Return the filtered bytes before limit, or up to the end of a match that crosses it."""
        if limit <= 0:
            return b""
        parts: list[bytes | bytearray] = []
        position = 0
        for match in self._pattern.finditer(self._held):
            if match.start() >= limit:
                break
            parts += [self._held[position : match.start()], match[1] or b"", self._filler]
            position = match.end()
        end = max(position, limit)
        parts.append(self._held[position:end])
        # A new buffer: the last match may still hold the memory of the old one.
        self._held = self._held[end:]
        return b"".join(parts)


class NullFilter(MemberFilter):
    """Makes the values of the members null, for clients that need the members."""

    _filler = b"null"

    def _compile(self, name: bytes, member: bytes) -> re.Pattern[bytes]:
        return re.compile(rb'([{,]%b"(?:%b)"%b:%b)%b' % (_BLANK, name, _BLANK, _BLANK, _VALUE))
