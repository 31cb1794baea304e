"""Merging reconstructions: build the answer for one range of a file from answers for other ranges.

The terms of an answer start at a chunk boundary at or before the start of its range, and end at a
chunk boundary. Two neighbouring answers may overlap by some chunks. If both use the same xorb
there, the overlap is cut off the second one. Chunk sizes are unknown, so a term can be cut only
where a term of another answer ends, and the requested start may lie many chunks into the first
term.

Pure: no clock, no I/O.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from xetserve.xet.reconstruction import (
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
)

MAX_TRIES: Final = 16


class Part(NamedTuple):
    """An answer, and the decoded position of the file where its requested range starts."""

    start: int
    answer: Reconstruction

    @property
    def end(self) -> int:
        """Return the decoded position where the last term ends."""
        return self.start + self.answer.decoded_size

    @property
    def first(self) -> int:
        """Return the decoded position where the first term starts."""
        return self.start - self.answer.offset_into_first_range


def join_parts(parts: Sequence[Part], asked: ByteRange) -> Reconstruction | None:
    """Return a reconstruction of the range asked.

    Returns None if the parts do not cover the range or do not fit together. Small parts are tried
    before large ones: their terms are shorter, so fewer bytes outside the range are fetched.

    Args:
        asked: must not reach past the end of the file.
    """
    by_size = sorted(parts, key=lambda part: part.end - part.first)
    # A small part may end where no other part continues: then try again without it.
    tries = (_join(by_size[at:], asked) for at in range(min(len(by_size), MAX_TRIES)))
    return next((found for found in tries if found is not None), None)


def _join(by_size: Sequence[Part], asked: ByteRange) -> Reconstruction | None:
    terms: list[Term] = []
    infos: dict[bytes, dict[FetchInfo, None]] = {}
    position = asked.start
    offset = 0
    while position < asked.end:
        for part in by_size:
            if not part.first <= position < part.end:
                continue
            found = _take(part, position, asked.end, terms[-1] if terms else None)
            if found is not None:
                break
        else:
            return None
        if not terms:
            offset = position - found.start
        for term in found.terms:
            terms.append(term)
            infos.setdefault(term.xorb_hash, {})[part.answer.find_fetch_info(term)] = None
        position = found.start + sum(term.decoded_size for term in found.terms)
    ordered = {
        xorb_hash: tuple(sorted(found, key=lambda info: info.chunks))
        for xorb_hash, found in infos.items()
    }
    return Reconstruction(offset, tuple(terms), ordered)


class _Taken(NamedTuple):
    """At least one term, and the decoded position where the first one starts."""

    start: int
    terms: list[Term]


def _take(part: Part, position: int, end: int, last: Term | None) -> _Taken | None:
    """Return the terms of a part from position to the term that reaches end; None: they do not fit.

    Args:
        last: the term that ends at position; None: there is none, the first term may start before.
    """
    terms: list[Term] = []
    start = part.first
    at = part.first
    for term in part.answer.terms:
        term_start, at = at, at + term.decoded_size
        if at <= position:
            continue
        if not terms:
            start = term_start
            if last is not None and term_start < position:
                cut = _cut(term, last, at - position)
                if cut is None:
                    return None
                term, start = cut, position
        terms.append(term)
        if at >= end:
            break
    return _Taken(start, terms) if terms else None


def _cut(term: Term, last: Term, left: int) -> Term | None:
    """Return the rest of a term behind a term that ends inside it; None: it cannot be cut there.

    Args:
        left: decoded bytes of the rest.
    """
    chunk = last.chunks.end
    if term.xorb_hash != last.xorb_hash or not term.chunks.start < chunk < term.chunks.end:
        return None
    return Term(term.xorb_hash, ChunkRange(chunk, term.chunks.end), left)
