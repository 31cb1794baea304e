"""Decide which chunks of a file to keep, packed, because a later term uses them again.

A window knows only its own terms. The planner therefore asks the CAS for terms further ahead, up to
HORIZON. ChunkReuse walks these terms in order and keeps each chunk that is used again. When the
chunks exceed the capacity, it drops the one whose next use is furthest away (Belady's algorithm).

Example, with chunks of 64 KiB and a capacity of two chunks:

    terms of the file   A0 A1 A2    B0 B1    A1 A2    B0    A0
    start, in chunks    0           3        5        7     8
    kept after it       A1 A2       A1 A2    -        -     -

A0, A1, A2 and B0 are used twice. A0 is dropped at the first term and B0 at the second, since A1 and
A2 are used sooner. The first window ends at 5, where a run of kept terms begins; the window from 5
to 7 is made of kept chunks and needs nothing from upstream; the last one fetches B0 and A0 again.
Seven chunks are fetched instead of nine. An LRU of two chunks would hold B0 B1 at 5, and fetch all
nine.

The planner and the reader both follow these decisions, so a chunk that a planned window counts on
is there when the window is read.

An LRU of packed chunks within the same budget would save 285 lines, but on the bench's fragmented
file it fetched 1.09, 1.42 and 1.87 times the distinct chunks with 64, 32 and 16 MiB to keep chunks
in (this: 1.06, 1.06 and 1.30), took 1.4 times the CPU time or more, and held 120 MiB at its peak
instead of 77.

Pure: positions are decoded bytes in the file.
"""

from bisect import bisect_left, bisect_right
from heapq import heappop, heappush
from typing import Final

from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction

SURVEY_SIZE: Final = 512 * 1024 * 1024  # decoded bytes that one survey asks the CAS for
HORIZON: Final = 2 * SURVEY_SIZE  # decoded bytes to look ahead
MAX_KNOWN_CHUNKS: Final = 32_768  # of all terms together; with tiny chunks it comes before HORIZON
MIN_RUN: Final = 64 * 1024  # packed bytes; a shorter run of kept terms gets no window of its own

ChunkKey = tuple[bytes, int]  # xorb hash, chunk index


class KnownTerm:
    """A term and its place in the file: decoded positions [start, end).

    packed_size: bytes, estimated as its share of the fetch range.
    is_kept: whether all its chunks will have been kept when it is read.
    """

    __slots__ = ("chunks", "end", "is_kept", "packed_size", "start", "xorb_hash")

    def __init__(
        self, start: int, end: int, xorb_hash: bytes, chunks: ChunkRange, packed_size: int
    ) -> None:
        self.start = start
        self.end = end
        self.xorb_hash = xorb_hash
        self.chunks = chunks
        self.packed_size = packed_size
        self.is_kept = False


class _ChunkUses:
    """The terms that use one chunk, and after which of them the chunk is kept until the next."""

    __slots__ = ("decoded_size", "size", "starts", "stays")

    def __init__(self, size: int) -> None:
        self.size = size  # packed bytes, estimated
        self.decoded_size = 0  # bytes, once it has been read
        self.starts: list[int] = []  # of the terms, in order
        self.stays: list[bool] = []  # for each term, whether the chunk is kept after it

    def stays_after(self, position: int) -> bool:
        """Return whether the chunk is kept after the term in which a position lies."""
        number = bisect_right(self.starts, position) - 1
        return number >= 0 and self.stays[number]


class ChunkReuse:
    """The known terms of a file, and which of their chunks to keep. No terms are known at first.

    known_end: the position up to which terms are known; None if none are.
    peak: the most packed bytes, estimated, that will be kept at one time.
    """

    def __init__(self) -> None:
        self.known_end: int | None = None
        self.peak = 0
        self._terms: list[KnownTerm] = []
        self._starts: list[int] = []  # of the terms
        self._num_chunks = 0
        self._uses: dict[ChunkKey, _ChunkUses] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no known chunk is used again."""
        return not self._uses

    @property
    def is_full(self) -> bool:
        """Whether so many chunks are known that asking for more terms does not pay."""
        return self._num_chunks >= MAX_KNOWN_CHUNKS * 3 // 4

    def add(
        self,
        answer: Reconstruction,
        start: int,
        *,
        read: tuple[int, int],
        planned: int,
        capacity: int,
    ) -> None:
        """Add terms, and decide which chunks to keep.

        Args:
            answer: the reconstruction of a range from start, which is known_end.
            read: the position up to which the file has been read, and the index of the chunk that
                starts there. From this chunk on, any chunk can still be kept.
            planned: the position up to which windows are planned. They count on the decisions made
                before, so these stay as they are.
            capacity: packed bytes that may be kept at one time.
        """
        position = start - answer.offset_into_first_range
        for term in answer.terms:
            if self._num_chunks >= MAX_KNOWN_CHUNKS:
                break
            info = answer.find_fetch_info(term)
            count = term.chunks.end - term.chunks.start
            packed = info.byte_range.size * count // (info.chunks.end - info.chunks.start)
            end = position + term.decoded_size
            self._terms.append(KnownTerm(position, end, term.xorb_hash, term.chunks, packed))
            self._num_chunks += count
            position = end
        self.known_end = position
        self._starts = [term.start for term in self._terms]
        self.split(*read)
        self._collect_uses(planned)
        if self._uses:
            self._decide(read[0], planned, capacity)

    def forget(self, position: int) -> None:
        """Remove the terms that end before a position, up to which the file has been read."""
        count = bisect_right(self._starts, position) - 1
        if count > 0:
            self._num_chunks -= sum(
                term.chunks.end - term.chunks.start for term in self._terms[:count]
            )
            del self._terms[:count]
            del self._starts[:count]

    def split(self, position: int, chunk: int) -> None:
        """Split the term that contains a position.

        Args:
            position: where a chunk starts.
            chunk: the index of this chunk in its xorb.
        """
        at = bisect_right(self._starts, position) - 1
        if at < 0:
            return
        term = self._terms[at]
        first, end = term.chunks
        if not (term.start < position < term.end and first < chunk < end):
            return
        packed = term.packed_size * (end - chunk) // (end - first)
        rest = KnownTerm(position, term.end, term.xorb_hash, ChunkRange(chunk, end), packed)
        self._terms.insert(at + 1, rest)
        self._starts.insert(at + 1, position)
        for number in range(chunk, end):
            uses = self._uses.get((term.xorb_hash, number))
            if uses is not None:
                use = bisect_left(uses.starts, term.start)
                if use < len(uses.starts) and uses.starts[use] == term.start:
                    uses.starts[use] = position
        term.end = position
        term.chunks = ChunkRange(first, chunk)
        term.packed_size -= packed
        for half in (term, rest):
            half.is_kept = self.is_kept(half.xorb_hash, half.chunks, half.start, half.end)

    def record_size(self, key: ChunkKey, size: int) -> None:
        """Record the decoded size of a chunk; terms can be split only at chunks of known size."""
        uses = self._uses.get(key)
        if uses is not None:
            uses.decoded_size = size

    def _refine(self, at: int) -> None:
        """Split a term of which only the first or only the last chunks are kept, if the sizes of
        these chunks are known.
        """
        term = self._terms[at]
        if term.is_kept or not self._uses:
            return
        first, end = term.chunks
        kept = [
            self.is_kept(term.xorb_hash, ChunkRange(chunk, chunk + 1), term.start, term.end)
            for chunk in range(first, end)
        ]
        if all(kept):
            term.is_kept = True
        elif kept[0]:
            chunk = first + kept.index(False)
            size = self._size_of(term.xorb_hash, ChunkRange(first, chunk))
            if size:
                self.split(term.start + size, chunk)
        elif kept[-1]:
            chunk = end - kept[::-1].index(False)
            size = self._size_of(term.xorb_hash, ChunkRange(chunk, end))
            if size:
                self.split(term.end - size, chunk)

    def _size_of(self, xorb_hash: bytes, chunks: ChunkRange) -> int:
        """Return the decoded size of kept chunks; 0 if one of them has not been read yet."""
        sizes = [
            self._uses[xorb_hash, chunk].decoded_size for chunk in range(chunks.start, chunks.end)
        ]
        return sum(sizes) if all(sizes) else 0

    def _collect_uses(self, planned: int) -> None:
        """Collect the chunks that are used several times.

        Decisions about terms that start before planned are copied from the last time.
        """
        earlier, self._uses = self._uses, {}
        waiting = self._find_waiting(earlier)
        by_xorb: dict[bytes, list[KnownTerm]] = {}
        for term in self._terms:
            by_xorb.setdefault(term.xorb_hash, []).append(term)
        for xorb_hash, terms in by_xorb.items():
            by_chunk = waiting.get(xorb_hash, {})
            if not by_chunk and not _overlap(terms):
                continue  # the common case
            for term in terms:
                size = term.packed_size // (term.chunks.end - term.chunks.start)
                for chunk in range(term.chunks.start, term.chunks.end):
                    uses = by_chunk.get(chunk)
                    if uses is None:
                        uses = by_chunk[chunk] = _ChunkUses(size)
                    uses.starts.append(term.start)
            for chunk, uses in by_chunk.items():
                if len(uses.starts) > 1:
                    key = (xorb_hash, chunk)
                    before = earlier.get(key)
                    uses.decoded_size = before.decoded_size if before is not None else 0
                    uses.stays = [
                        start < planned and before is not None and before.stays_after(start)
                        for start in uses.starts
                    ]
                    self._uses[key] = uses

    def _find_waiting(
        self, earlier: dict[ChunkKey, _ChunkUses]
    ) -> dict[bytes, dict[int, _ChunkUses]]:
        """Return, by xorb, the chunks that are kept now because of a term that was removed.

        Each comes with this one use.
        """
        first = self._starts[0] if self._starts else 0
        waiting: dict[bytes, dict[int, _ChunkUses]] = {}
        for (xorb_hash, chunk), uses in earlier.items():
            number = bisect_left(uses.starts, first) - 1
            if number >= 0 and uses.stays[number]:
                left = waiting.setdefault(xorb_hash, {})[chunk] = _ChunkUses(uses.size)
                left.starts.append(uses.starts[number])
        return waiting

    def _decide(self, read: int, planned: int, capacity: int) -> None:
        """Walk the terms that are not read yet, and keep the chunks that are used again soonest."""
        kept: dict[ChunkKey, int] = {}  # the number of the use that the chunk is kept for
        held = 0
        for key, uses in self._uses.items():
            number = bisect_left(uses.starts, read)
            if 0 < number < len(uses.starts) and uses.stays[number - 1]:
                kept[key] = number
                held += uses.size
        self.peak = held
        fixed = set(kept)
        # A heap of (-start of the next use, key). Some entries are out of date.
        latest: list[tuple[int, ChunkKey]] = []
        for term in self._terms[bisect_left(self._starts, read) :]:
            for chunk in range(term.chunks.start, term.chunks.end):
                key = (term.xorb_hash, chunk)
                chunk_uses = self._uses.get(key)
                if chunk_uses is None:
                    continue
                number = bisect_left(chunk_uses.starts, term.start)
                if kept.pop(key, None) is not None:
                    held -= chunk_uses.size
                    fixed.discard(key)
                if number + 1 == len(chunk_uses.starts):
                    continue
                if chunk_uses.stays[number]:
                    fixed.add(key)  # a planned window counts on it
                chunk_uses.stays[number] = True
                kept[key] = number + 1
                held += chunk_uses.size
                heappush(latest, (-chunk_uses.starts[number + 1], key))
                while held > capacity and latest:
                    start, dropped = heappop(latest)
                    other = self._uses[dropped]
                    if dropped in fixed or dropped not in kept:
                        continue
                    if other.starts[kept[dropped]] != -start:
                        continue  # out of date: the chunk has been used and kept again since
                    other.stays[kept.pop(dropped) - 1] = False
                    held -= other.size
                self.peak = max(self.peak, held)
        for term in self._terms[bisect_left(self._starts, planned) :]:
            term.is_kept = self.is_kept(term.xorb_hash, term.chunks, term.start, term.end)

    def is_kept(self, xorb_hash: bytes, chunks: ChunkRange, position: int, end: int) -> bool:
        """Return whether all these chunks are kept for the term from position to end."""
        if self.known_end is None or position >= self.known_end:
            return False
        # The caller's term may be a part of a known term, span several, or end after known_end.
        at = bisect_right(self._starts, position) - 1
        first = self._starts[at] if at >= 0 and position < self._terms[at].end else position
        for chunk in range(chunks.start, chunks.end):
            uses = self._uses.get((xorb_hash, chunk))
            if uses is None:
                return False
            number = bisect_left(uses.starts, first)
            if number == len(uses.starts) or uses.starts[number] >= end:
                return False
            if number == 0 or not uses.stays[number - 1]:
                return False
        return True

    def stays(self, key: ChunkKey, position: int) -> bool:
        """Return whether to keep a chunk after its use in the term at a position."""
        if self.known_end is None or position >= self.known_end:
            return False
        uses = self._uses.get(key)
        return uses is not None and uses.stays_after(position)

    def find_run(self, position: int, limit: int) -> list[KnownTerm]:
        """Return the consecutive kept terms from a position, where the first one has to start.

        The run ends at limit, or with the term that passes it. It is empty if it has fewer packed
        bytes than MIN_RUN.
        """
        at = bisect_left(self._starts, position)
        if at == len(self._starts) or self._starts[at] != position:
            return []
        run: list[KnownTerm] = []
        size = 0
        while at < len(self._terms):
            self._refine(at)
            term = self._terms[at]
            if not term.is_kept or (term.start >= limit and size >= MIN_RUN):
                break
            run.append(term)
            size += term.packed_size
            at += 1
        return run if size >= MIN_RUN else []

    def find_cut(self, asked: ByteRange) -> int:
        """Return where the window of a range should end.

        That is where a run of kept terms begins, or else the end of the range. A fetch range that
        the CAS made for terms on both sides would have to be fetched as a whole.
        """
        if not self._uses:
            return asked.end
        at = max(0, bisect_right(self._starts, asked.start) - 1)
        run_start, size = 0, 0
        while at < len(self._terms):
            self._refine(at)
            term = self._terms[at]
            at += 1
            if not size and term.start >= asked.end:
                break
            if not term.is_kept or term.start <= asked.start:
                size = 0
                continue
            if not size:
                run_start = term.start
            size += term.packed_size
            if size >= MIN_RUN:
                return run_start
        return asked.end


def _overlap(terms: list[KnownTerm]) -> bool:
    """Return whether any two terms of one xorb have a chunk in common."""
    if len(terms) < 2:
        return False
    ranges = sorted(term.chunks for term in terms)
    end = ranges[0].end
    for chunks in ranges[1:]:
        if chunks.start < end:
            return True
        end = chunks.end
    return False
