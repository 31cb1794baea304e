"""One reconstruction out of several: for any range of a file, from answers about other ranges of
it.

An answer about a range starts at some chunk before its start and ends with a chunk. Where one ends,
the next may begin a few chunks earlier: those are cut off, if both have the same xorb there. Chunk
sizes are not known, so a term can be cut only where another one has ended, and the asked start may
lie many chunks into the first term.

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
    """What is known of a range that starts at a decoded position of the file."""

    start: int
    answer: Reconstruction

    @property
    def end(self) -> int:
        """The decoded position where its last term ends."""
        return self.start + self.answer.decoded_size

    @property
    def first(self) -> int:
        """The decoded position where its first term starts."""
        return self.start - self.answer.offset_into_first_range


def join_parts(parts: Sequence[Part], asked: ByteRange) -> Reconstruction | None:
    """Return how a range is built; None: the parts do not cover it, or do not fit together.

    Small parts come before large ones: they are cut finer, and closer to what was fetched for them.

    Args:
        asked: not past the end of the file.
    """
    by_size = sorted(parts, key=lambda part: part.end - part.first)
    # A small one may lead to where no other goes on.
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
    """Terms, at least one, and the position where the first of them starts."""

    start: int
    terms: list[Term]


def _take(part: Part, position: int, end: int, last: Term | None) -> _Taken | None:
    """Take the terms of a part from a position on, up to the one that reaches the end.

    Args:
        last: the term that ends at the position; None: any start will do.
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
    """Return what is left of a term behind another one that ends in its middle."""
    chunk = last.chunks.end
    if term.xorb_hash != last.xorb_hash or not term.chunks.start < chunk < term.chunks.end:
        return None
    return Term(term.xorb_hash, ChunkRange(chunk, term.chunks.end), left)
