"""Takes members out of the small entries of a JSON array of objects, and leaves them in the large ones.

Entries are those of the Hub's listings: {"type", "path", "size", ...}. Each is held until it is complete, which the
first look at its quotes and brackets tells; then its size decides. Texts of another shape, and entries larger than
MAX_ENTRY, lose the members wherever they are.
"""

import json
import re
from collections.abc import Sequence
from typing import Final

from xetserve.http.jsonfilter import MemberFilter

MAX_ENTRY: Final = 64 * 1024  # bytes that are held
_STRIDE: Final = 4096  # bytes to come before a string that has not ended is looked at again

# A string, or a bracket; the quote of a string that has not ended yet stays alone.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
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
        self._held = b""
        self._scanned = 0  # bytes of it
        self._enough = 0  # bytes to be held for the next look
        self._depth = 0  # brackets that are open
        self._start = 0  # of the entry that is open

    def feed(self, data: bytes) -> bytes:
        """Take in a piece of the text; gives what is ready to go on."""
        if self._all is not None:
            return self._all.feed(data)
        self._held += data
        if not self._depth and not self._held.lstrip(_BLANKS).startswith(b"["):
            if self._held.strip(_BLANKS):
                return self._give_up()
            return b""
        return self._scan() if len(self._held) >= self._enough else b""

    def finish(self) -> bytes:
        """Give the rest, once all has been taken in."""
        rest = b""
        if self._all is None and self._depth:
            rest = self._scan()
        if self._all is None:
            rest += self._give_up()
        assert self._all is not None
        return rest + self._all.finish()

    def _scan(self) -> bytes:
        done = []
        kept_from = 0
        for token in _TOKEN.finditer(self._held, self._scanned):
            char = token[0]
            if char == b'"':
                break
            if char in b"[{":
                self._depth += 1
                if self._depth == 2:
                    self._start = token.start()
            elif char in b"]}":
                self._depth -= 1
                if self._depth == 1:
                    done += [self._held[kept_from : self._start]]
                    done += [self._filter(self._held[self._start : token.end()])]
                    kept_from = token.end()
                if self._depth < 1:  # the array has ended; what follows is not JSON
                    self._held = self._held[kept_from:]
                    return b"".join(done) + self._give_up()
            self._scanned = token.end()
        if self._depth == 1 and self._scanned > kept_from:
            done.append(self._held[kept_from : self._scanned])
            kept_from = self._scanned
        self._held = self._held[kept_from:]
        self._scanned -= kept_from
        self._start -= kept_from
        self._enough = len(self._held) + _STRIDE
        if len(self._held) > MAX_ENTRY:
            done.append(self._give_up())
        return b"".join(done)

    def _filter(self, entry: bytes) -> bytes:
        try:
            size = json.loads(entry)["size"]
            if isinstance(size, int) and size > self._limit:
                return entry
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        members = MemberFilter(self._names)
        return members.feed(entry) + members.finish()

    def _give_up(self) -> bytes:
        self._all = MemberFilter(self._names)
        held, self._held = self._held, b""
        return self._all.feed(held)
