"""Plan one window: which ranges of xorbs to fetch, and in which order their chunks make the file.

Terms may repeat, overlap and go back; fetch ranges may be wider than any term. A window fetches
each distinct range once and counts how often every chunk in it is used.

Example. The CAS was asked for bytes 100 to 300 of a file, and answers:

    offset_into_first_range   20            so the first term starts at 80
    terms        X[0, 2)  90 bytes          at  80
                 Y[5, 6)  60                at 170
                 X[1, 3)  80                at 230
                 Z[0, 1)  50                at 310, behind the asked end: left out
    fetch info   X[0, 3), Y[5, 6), Z[0, 1)

    file_range   100 to 310                 the last term as a whole; the next window starts there
    skip         20                         decoded bytes of X 0, before byte 100
    steps        0: X[0, 3), uses 1 2 1     chunk X 1 is fetched once and used twice
                 1: Y[5, 6), uses 1
    pieces       X[0, 2) of step 0, Y[5, 6) of step 1, X[1, 3) of step 0

Pure: no clock, no sockets.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from xetserve.errors import IntegrityError
from xetserve.pipeline.plan.chunk_reuse import KnownTerm
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, MAX_XORB_SIZE

MAX_FETCH_SIZE: Final = 2 * MAX_XORB_SIZE  # bytes; generous, since it only protects memory
# Bounds of one window, which is planned in one turn of the event loop. A window that reaches one
# ends early, and the next one uses the same answer. That is rare: clients deduplicate runs of
# 512 KiB on average.
MAX_STEPS: Final = 500  # fetch ranges
MAX_PIECES: Final = 4000  # terms
MAX_WINDOW_CHUNKS: Final = 65_536  # chunks, of all terms and fetch ranges


class Piece(NamedTuple):
    """One term: a run of chunks and its decoded size in bytes.

    step: the index of the step that fetches the chunks; None if earlier windows have kept them.
    """

    xorb_hash: bytes
    chunks: ChunkRange
    decoded_size: int
    step: int | None


class Step(NamedTuple):
    """One fetch range, and how many pieces use each of its chunks."""

    xorb_hash: bytes
    info: FetchInfo
    uses: tuple[int, ...]  # uses[i] is for chunk info.chunks.start + i


class WindowPlan(NamedTuple):
    """How to make one range of the file.

    file_range: decoded positions; it ends with a whole term, unless the caller's range ends before.
    asked: the range that the CAS was asked for. Asking for it again returns the same fetch ranges.
    skip: decoded bytes to drop before file_range.start.
    num_terms: terms of the answer up to the end of the window.
    """

    file_range: ByteRange
    asked: ByteRange
    skip: int
    steps: tuple[Step, ...]
    pieces: tuple[Piece, ...]
    num_terms: int = 0

    @property
    def packed_ratio(self) -> float:
        """Packed bytes per decoded byte, as if all chunks of a fetch range had the same size."""
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

    The last term is taken as a whole, past the asked end, so that the next window starts at a
    chunk. Terms behind it are left out: some CAS servers ignore the end of a range. Terms beyond
    the bounds of a window are left out, too.

    Args:
        answer: the reconstruction of the range `asked`.
        limit: the decoded position that the window must not pass; None if the size of the file is
            not known.
        start: where the window starts, if the previous one has passed the asked start. Behind the
            end of the answer, the window is empty.
        is_kept: returns whether all chunks of a term will have been kept, given the decoded
            positions where it starts and ends.

    Raises:
        IntegrityError: the terms end before the asked end, thousands of them have no bytes, or a
            fetch range is larger than a xorb.
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
            skip -= term.decoded_size  # all of it is in the previous window
            continue
        # A chunk that is skipped was used by the previous window, and may have been dropped.
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
    """Plan a window of consecutive terms that are all kept, up to a decoded position."""
    end = terms[-1].end if limit is None else min(terms[-1].end, limit)
    whole = ByteRange(terms[0].start, end)
    pieces = (Piece(term.xorb_hash, term.chunks, term.end - term.start, None) for term in terms)
    return WindowPlan(whole, whole, 0, (), tuple(pieces))


def check_fetch_range(info: FetchInfo) -> None:
    """Check that a fetch range can be part of a xorb, before memory is allocated for its chunks.

    Raises:
        IntegrityError: it has too many bytes, or more chunks than fit into them.
    """
    size, count = info.byte_range.size, info.chunks.end - info.chunks.start
    if size > MAX_FETCH_SIZE:
        raise IntegrityError(
            f"a fetch range of {size} bytes, larger than a xorb: expected {MAX_FETCH_SIZE} at most"
        )
    if count * CHUNK_HEADER_SIZE > size:
        raise IntegrityError(f"a fetch range has {count} chunks in {size} bytes")
