"""Remove members from the small entries of a listing, and leave them in the large ones.

A listing is a JSON array of objects as the Hub sends it: [{"type": "file", "size": 5, ...}, ...].
Each entry is held until it is complete; then json parses it, and its "size" decides. Texts of
another shape lose the members everywhere, and so does a listing from an entry on that is longer
than MAX_ENTRY or that json refuses.

A real listing of 4 MiB (13,000 entries) takes 56 ms, and nothing but one entry is held. What a
filter must not change, and why the whole document is not parsed: see json_filter.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from xetserve.app.hub.json_filter import HASH, MemberFilter

MAX_ENTRY: Final = 64 * 1024  # bytes that are held

_LEAD: Final = re.compile(r"[ \t\r\n]*[\[,][ \t\r\n]*")
_BEHIND: Final = re.compile(r"[ \t\r\n]*[,\]]")  # without it a number may go on
_HASH: Final = re.compile(HASH.decode())
_DECODER: Final = json.JSONDecoder()


class EntryFilter:
    """Removes members from entries of at most a size.

    Args:
        names: of the members, as in MemberFilter.
        limit: bytes; the members stay in entries whose "size" is larger, unless "xetHash" is no
            hash: Xet clients would take an empty or redacted one for a hash.
    """

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self._members = MemberFilter(names)
        self._limit = limit
        self._is_listing = True
        self._held = bytearray()
        self._tried = 0  # bytes of an entry that was not complete

    def feed(self, data: bytes) -> bytes:
        """Add a piece of the text, and return the bytes that can be sent."""
        if not self._is_listing:
            return self._members.feed(data)
        self._held += data
        # An entry is parsed again only when it has doubled: linear work, however small the pieces.
        if len(self._held) < min(2 * self._tried, MAX_ENTRY):
            return b""
        ready = self._take_entries()
        self._tried = len(self._held)
        return ready if self._tried < MAX_ENTRY else ready + self._stop_looking()

    def finish(self) -> bytes:
        """Return the remaining bytes, after the last piece."""
        return self._take_entries() + self._stop_looking() + self._members.finish()

    def _take_entries(self) -> bytes:
        """Return the complete entries of the held bytes, filtered."""
        held = bytes(self._held)
        text = held.decode("latin-1")  # a character is a byte, and JSON's own are ASCII
        ready = []
        small_from = end = 0
        while lead := _LEAD.match(text, end):
            start = lead.end()
            try:
                entry, behind = _DECODER.raw_decode(text, start)
            except (ValueError, RecursionError):
                break
            if not _BEHIND.match(text, behind):
                break
            end = behind
            if self._is_large(entry):
                ready += [self._remove(held[small_from:start]), held[start:end]]
                small_from = end
        ready.append(self._remove(held[small_from:end]))
        del self._held[:end]
        return b"".join(ready)

    def _is_large(self, entry: Any) -> bool:
        size = entry.get("size") if isinstance(entry, dict) else None
        if not isinstance(size, int) or size <= self._limit:
            return False
        return "xetHash" not in entry or bool(_HASH.fullmatch(str(entry["xetHash"])))

    def _remove(self, text: bytes) -> bytes:
        return self._members.feed(text) + self._members.finish()

    def _stop_looking(self) -> bytes:
        """Filter the rest as MemberFilter does: the next bytes are no entry, or too long a one."""
        self._is_listing = False
        held, self._held = bytes(self._held), bytearray()
        return self._members.feed(held)
