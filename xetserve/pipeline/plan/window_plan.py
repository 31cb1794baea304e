"""From a reconstruction to what is fetched, and in which order its chunks make the file.

Terms may repeat, overlap and go back; fetch ranges may be wider than any term. A window fetches
each distinct range once and knows how often every chunk in it is needed. Pure: no clock, no
sockets.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from xetserve.errors import IntegrityError
from xetserve.pipeline.plan.chunk_reuse import KnownTerm
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, MAX_XORB_SIZE

MAX_FETCH_SIZE: Final = 2 * MAX_XORB_SIZE  # bytes; generous, since it only guards memory
# Of one window, which is planned in one turn of the loop and ends before more: the next one goes on
# with the same answer. Clients deduplicate in runs of 512 KiB on average, so few windows have more.
MAX_STEPS: Final = 500  # fetch ranges
MAX_PIECES: Final = 4000  # terms
MAX_WINDOW_CHUNKS: Final = 65_536  # chunks, of all terms and fetch ranges


class Piece(NamedTuple):
    """One term: a run of chunks, its decoded size in bytes, and the number of the step that fetches
    it.

    step None: its chunks have been kept from earlier windows.
    """

    xorb_hash: bytes
    chunks: ChunkRange
    decoded_size: int
    step: int | None


class Step(NamedTuple):
    """One fetch range, and how many pieces need each of its chunks."""

    xorb_hash: bytes
    info: FetchInfo
    uses: tuple[int, ...]  # uses[i] is for chunk info.chunks.start + i


class WindowPlan(NamedTuple):
    """How a range of the file is made.

    file_range: decoded positions that this window gives; whole terms, unless the caller's range
        ends earlier.
    asked: the range that the CAS was asked for; asking again for the same gives the same fetch
        ranges.
    skip: decoded bytes to drop before file_range.start.
    num_terms: of the answer, up to the end of the window.
    """

    file_range: ByteRange
    asked: ByteRange
    skip: int
    steps: tuple[Step, ...]
    pieces: tuple[Piece, ...]
    num_terms: int = 0

    @property
    def packed_ratio(self) -> float:
        """Packed bytes for one decoded byte, taking the chunks of a fetch range for equally
        large.
        """
        packed = sum(
            step.info.byte_range.size * sum(step.uses) / len(step.uses) for step in self.steps
        )
        return packed / max(1, sum(piece.decoded_size for piece in self.pieces))


IsKept = Callable[[bytes, ChunkRange, int, int], bool]


def make_plan(
    answer: Reconstruction,
    asked: ByteRange,
    limit: int | None,
    start: int | None = None,
    is_kept: IsKept = lambda xorb_hash, chunks, start, end: False,
) -> WindowPlan:
    """Plan a window.

    The window takes the terms whole, past the asked end, so that the next one starts where a chunk
    does. Terms behind that are left out, which a CAS may answer that looks at where a range starts
    only, and so are more than a window may have.

    Args:
        answer: for the range `asked`.
        limit: decoded position that the window must not pass; None: the end of the file is not
            known.
        start: where the window is to start, if the window before has reached past the asked start.
            Past the end of the answer it gives an empty window.
        is_kept: tells whether all of a term's chunks will be here already, given where it starts
            and ends.

    Raises:
        IntegrityError: the terms do not reach the end that was asked for, there are thousands
            without bytes, or a fetch range cannot be part of a xorb.
    """
    end = asked.start + answer.decoded_size
    if limit is not None and end < min(asked.end, limit):
        raise IntegrityError(f"the terms end at byte {end}, expected {min(asked.end, limit)}")
    start = asked.start if start is None else start
    skip = answer.offset_into_first_range + start - asked.start
    numbers: dict[tuple[bytes, FetchInfo], int] = {}
    uses: list[list[int]] = []
    pieces: list[Piece] = []
    num_terms = num_chunks = 0
    position = asked.start - answer.offset_into_first_range
    for term in answer.terms:
        if position >= asked.end:
            break
        if (
            len(uses) >= MAX_STEPS or len(pieces) >= MAX_PIECES or num_chunks >= MAX_WINDOW_CHUNKS
        ) and pieces:
            if position <= start:
                raise IntegrityError(f"{len(pieces)} terms without bytes")
            break
        num_terms += 1
        term_start, position = position, position + term.decoded_size
        if not pieces and skip and skip >= term.decoded_size:
            skip -= term.decoded_size  # wholly in the window before
            continue
        # A chunk that is skipped has had its use in the window before, and may be gone.
        num_chunks += term.chunks.end - term.chunks.start
        if (pieces or not skip) and is_kept(term.xorb_hash, term.chunks, term_start, position):
            pieces.append(Piece(term.xorb_hash, term.chunks, term.decoded_size, None))
            continue
        info = answer.find_fetch_info(term)
        number = numbers.setdefault((term.xorb_hash, info), len(numbers))
        if number == len(uses):
            check_fetch_range(info)
            uses.append([0] * (info.chunks.end - info.chunks.start))
            num_chunks += len(uses[-1])
        for chunk in range(term.chunks.start, term.chunks.end):
            uses[number][chunk - info.chunks.start] += 1
        pieces.append(Piece(term.xorb_hash, term.chunks, term.decoded_size, number))
    steps = tuple(
        Step(xorb_hash, info, tuple(counts))
        for ((xorb_hash, info), _), counts in zip(numbers.items(), uses, strict=True)
    )
    end = position if limit is None else min(position, limit)
    return WindowPlan(ByteRange(start, end), asked, skip, steps, tuple(pieces), num_terms)


def make_kept_plan(terms: Sequence[KnownTerm], limit: int | None) -> WindowPlan:
    """Plan a window of terms that follow each other and are all kept, up to a decoded position."""
    end = terms[-1].end if limit is None else min(terms[-1].end, limit)
    whole = ByteRange(terms[0].start, end)
    pieces = (Piece(term.xorb_hash, term.chunks, term.end - term.start, None) for term in terms)
    return WindowPlan(whole, whole, 0, (), tuple(pieces))


def check_fetch_range(info: FetchInfo) -> None:
    """Refuse a range whose chunks could not even be counted in bounded memory.

    Raises:
        IntegrityError: it is no part of a xorb.
    """
    size, count = info.byte_range.size, info.chunks.end - info.chunks.start
    if size > MAX_FETCH_SIZE:
        raise IntegrityError(f"a fetch range of {size} bytes, larger than a xorb")
    if count * CHUNK_HEADER_SIZE > size:
        raise IntegrityError(f"{count} chunks in {size} bytes")
