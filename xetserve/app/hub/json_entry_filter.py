"""Takes members out of the small entries of a JSON array of objects, and leaves them in the large
ones.

Entries are those of the Hub's listings: {"type", "path", "size", ...}. Each is held until it is
complete, which its quotes and brackets show; then its size decides. Texts of another shape, and
entries larger than MAX_ENTRY, lose the members wherever they are. However small the pieces, each
byte is looked at once.
"""

import json
import re
from collections.abc import Sequence
from typing import Final

from xetserve.app.hub.json_filter import MemberFilter

MAX_ENTRY: Final = 64 * 1024  # bytes that are held

# What is looked for outside of strings, and within one. The search goes on where the last one
# stopped.
_OUTSIDE: Final = re.compile(rb'["\[\]{}]')
_WITHIN: Final = re.compile(rb'["\\]')
_BLANKS: Final = b" \t\r\n"


class EntryFilter:
    """Takes members out of entries of at most a size.

    Args:
        names: as MemberFilter has them.
        limit: the members stay in entries whose "size" is larger.
    """

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self._names = names
        self._limit = limit
        self._all: MemberFilter | None = None  # once the text turns out not to be such an array
        self._held = bytearray()
        self._scanned = 0  # bytes of it
        self._in_string = False  # where the scanned bytes end
        self._depth = 0  # brackets that are open
        self._start = 0  # of the entry that is open

    def feed(self, data: bytes) -> bytes:
        """Take in a piece of the text; gives what is ready to go on."""
        if self._all is not None:
            return self._all.feed(data)
        self._held += data
        if not self._depth:
            rest = self._held.lstrip(_BLANKS)
            if rest and not rest.startswith(b"["):
                return self._give_up()
            if not rest:
                self._held.clear()
                return data
        return self._scan()

    def finish(self) -> bytes:
        """Return the rest, once all has been taken in."""
        rest = self._give_up() if self._all is None else b""
        assert self._all is not None
        return rest + self._all.finish()

    def _scan(self) -> bytes:
        held = self._held
        done = []
        kept_from = 0
        while mark := (_WITHIN if self._in_string else _OUTSIDE).search(held, self._scanned):
            char, end = mark[0], mark.end()
            if char == b"\\":
                if end == len(held):  # what it stands before has not come
                    break
                end += 1
            elif char == b'"':
                self._in_string = not self._in_string
            elif char in b"[{":
                self._depth += 1
                if self._depth == 2:
                    self._start = mark.start()
            else:
                self._depth -= 1
                if self._depth == 1:
                    done += [held[kept_from : self._start], self._filter(held[self._start : end])]
                    kept_from = end
                if self._depth < 1:  # the array has ended; what follows is not JSON
                    del held[:kept_from]
                    return b"".join(done) + self._give_up()
            self._scanned = end
        else:
            self._scanned = len(held)
        if self._depth == 1:
            done.append(held[kept_from : self._scanned])
            kept_from = self._scanned
        del held[:kept_from]
        self._scanned -= kept_from
        self._start -= kept_from
        if len(held) > MAX_ENTRY:
            done.append(self._give_up())
        return b"".join(done)

    def _filter(self, entry: bytearray) -> bytes | bytearray:
        try:
            size = json.loads(entry)["size"]
            if isinstance(size, int) and size > self._limit:
                return entry
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        members = MemberFilter(self._names)
        return members.feed(bytes(entry)) + members.finish()

    def _give_up(self) -> bytes:
        self._all = MemberFilter(self._names)
        held, self._held = bytes(self._held), bytearray()
        return self._all.feed(held)
