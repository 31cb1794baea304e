"""Files that go back over the same chunks: which of them to keep, packed, until they come again.

A window sees only its own terms. A survey of what lies further ahead, up to HORIZON, tells which
chunks come again and when; the decisions are made at once for all of it, by dropping what is needed
last when there is too much (Belady). They are facts for planner and reader alike: a chunk that
stays is there when it comes again, so windows whose chunks were all kept need nothing from
upstream. Pure: positions are decoded bytes in the file.
"""

from bisect import bisect_left, bisect_right
from heapq import heappop, heappush
from typing import Final

from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction

SURVEY_SIZE: Final = 256 * 1024 * 1024  # decoded bytes that one question is about
HORIZON: Final = 4 * SURVEY_SIZE  # decoded bytes to look ahead
MAX_KNOWN_CHUNKS: Final = 32_768  # of all terms together; where chunks are tiny, HORIZON is nearer
MIN_RUN: Final = 64 * 1024  # packed bytes; to spare fewer is not worth a window of its own

ChunkKey = tuple[bytes, int]  # xorb hash, chunk index


class KnownTerm:
    """A term whose place in the file is known: decoded positions [start, end).

    packed_size: bytes, estimated: what its share of the fetch range has.
    is_kept: whether all its chunks will be here when its turn comes.
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


class _Life:
    """The terms of one chunk, and after which of them it stays until the next."""

    __slots__ = ("decoded_size", "size", "starts", "stays")

    def __init__(self, size: int) -> None:
        self.size = size  # packed bytes, estimated
        self.decoded_size = 0  # bytes, once it has been read
        self.starts: list[int] = []  # of the terms, in order
        self.stays: list[bool] = []

    def stays_after(self, position: int) -> bool:
        """Return whether the chunk stays after the term in which a position lies."""
        number = bisect_right(self.starts, position) - 1
        return number >= 0 and self.stays[number]


class ChunkReuse:
    """What is known of a file's terms from a position on. Nothing at first, and then nothing stays.

    known_end: up to here the terms are known; None: none are.
    peak: packed bytes, estimated, that will be kept at most.
    """

    def __init__(self) -> None:
        self.known_end: int | None = None
        self.peak = 0
        self._terms: list[KnownTerm] = []
        self._starts: list[int] = []  # of the terms
        self._num_chunks = 0
        self._lives: dict[ChunkKey, _Life] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no chunk is known to come again."""
        return not self._lives

    @property
    def is_full(self) -> bool:
        """Whether so many chunks are known that it does not pay to ask for more."""
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
        """Learn terms, and decide what stays.

        Args:
            answer: for a range from start, the known end.
            read: up to here the file has been read, and the chunk there: it can still be told to
                stay.
            planned: up to here windows are planned, and count on what they were told would stay.
            capacity: packed bytes that may be kept.
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
        self._count_lives(planned)
        if self._lives:
            self._decide(read[0], planned, capacity)

    def forget(self, position: int) -> None:
        """Forget the terms that end before a position, once it is read up to there."""
        count = bisect_right(self._starts, position) - 1
        if count > 0:
            self._num_chunks -= sum(
                term.chunks.end - term.chunks.start for term in self._terms[:count]
            )
            del self._terms[:count]
            del self._starts[:count]

    def split(self, position: int, chunk: int) -> None:
        """Make two terms of the one that a position is in, which is where one of its chunks
        starts.
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
            life = self._lives.get((term.xorb_hash, number))
            if life is not None:
                use = bisect_left(life.starts, term.start)
                if use < len(life.starts) and life.starts[use] == term.start:
                    life.starts[use] = position
        term.end = position
        term.chunks = ChunkRange(first, chunk)
        term.packed_size -= packed
        for half in (term, rest):
            half.is_kept = self.is_kept(half.xorb_hash, half.chunks, half.start, half.end)

    def note_size(self, key: ChunkKey, size: int) -> None:
        """Learn the decoded size of a chunk, by which terms can be split at it."""
        life = self._lives.get(key)
        if life is not None:
            life.decoded_size = size

    def _refine(self, at: int) -> None:
        """Split a term of which only the first or only the last chunks are kept, if it is known
        where.
        """
        term = self._terms[at]
        if term.is_kept or not self._lives:
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
        """Return the decoded size of chunks that come again; 0 if one of them was never read."""
        sizes = [
            self._lives[xorb_hash, chunk].decoded_size for chunk in range(chunks.start, chunks.end)
        ]
        return sum(sizes) if all(sizes) else 0

    def _count_lives(self, planned: int) -> None:
        """Find the chunks with several terms; what was decided for terms before planned is taken
        over.
        """
        earlier, self._lives = self._lives, {}
        waiting = self._find_waiting(earlier)
        by_xorb: dict[bytes, list[KnownTerm]] = {}
        for term in self._terms:
            by_xorb.setdefault(term.xorb_hash, []).append(term)
        for xorb_hash, terms in by_xorb.items():
            lives = waiting.get(xorb_hash, {})
            if not lives and not _overlap(terms):
                continue  # most xorbs, of most files
            for term in terms:
                size = term.packed_size // (term.chunks.end - term.chunks.start)
                for chunk in range(term.chunks.start, term.chunks.end):
                    life = lives.get(chunk)
                    if life is None:
                        life = lives[chunk] = _Life(size)
                    life.starts.append(term.start)
            for chunk, life in lives.items():
                if len(life.starts) > 1:
                    key = (xorb_hash, chunk)
                    before = earlier.get(key)
                    life.decoded_size = before.decoded_size if before is not None else 0
                    life.stays = [
                        start < planned and before is not None and before.stays_after(start)
                        for start in life.starts
                    ]
                    self._lives[key] = life

    def _find_waiting(self, lives: dict[ChunkKey, _Life]) -> dict[bytes, dict[int, _Life]]:
        """Give, by xorb, the chunks that stay after a term that is forgotten, with that term
        alone.
        """
        first = self._starts[0] if self._starts else 0
        waiting: dict[bytes, dict[int, _Life]] = {}
        for (xorb_hash, chunk), life in lives.items():
            number = bisect_left(life.starts, first) - 1
            if number >= 0 and life.stays[number]:
                left = waiting.setdefault(xorb_hash, {})[chunk] = _Life(life.size)
                left.starts.append(life.starts[number])
        return waiting

    def _decide(self, read: int, planned: int, capacity: int) -> None:
        """Go through the terms that are not read yet, keeping what comes again soonest."""
        kept: dict[ChunkKey, int] = {}  # which use it waits for, by number
        held = 0
        for key, life in self._lives.items():
            number = bisect_left(life.starts, read)
            if 0 < number < len(life.starts) and life.stays[number - 1]:
                kept[key] = number
                held += life.size
        self.peak = held
        fixed = set(kept)
        latest: list[
            tuple[int, ChunkKey]
        ] = []  # heap of (-next start, key), stale entries among them
        for term in self._terms[bisect_left(self._starts, read) :]:
            for chunk in range(term.chunks.start, term.chunks.end):
                key = (term.xorb_hash, chunk)
                life_ = self._lives.get(key)
                if life_ is None:
                    continue
                number = bisect_left(life_.starts, term.start)
                if kept.pop(key, None) is not None:
                    held -= life_.size
                    fixed.discard(key)
                if number + 1 == len(life_.starts):
                    continue
                if life_.stays[number]:
                    fixed.add(key)  # a window counts on it
                life_.stays[number] = True
                kept[key] = number + 1
                held += life_.size
                heappush(latest, (-life_.starts[number + 1], key))
                while held > capacity and latest:
                    start, dropped = heappop(latest)
                    other = self._lives[dropped]
                    if dropped in fixed or dropped not in kept:
                        continue
                    if other.starts[kept[dropped]] != -start:
                        continue  # it was kept, used, and kept again since
                    other.stays[kept.pop(dropped) - 1] = False
                    held -= other.size
                self.peak = max(self.peak, held)
        for term in self._terms[bisect_left(self._starts, planned) :]:
            term.is_kept = self.is_kept(term.xorb_hash, term.chunks, term.start, term.end)

    def is_kept(self, xorb_hash: bytes, chunks: ChunkRange, position: int, end: int) -> bool:
        """Return whether all of these chunks were to stay until the term from position to end."""
        if self.known_end is None or position >= self.known_end:
            return False
        # The term may be a part of one here, or several, or go on behind what is known.
        at = bisect_right(self._starts, position) - 1
        first = self._starts[at] if at >= 0 and position < self._terms[at].end else position
        for chunk in range(chunks.start, chunks.end):
            life = self._lives.get((xorb_hash, chunk))
            if life is None:
                return False
            number = bisect_left(life.starts, first)
            if number == len(life.starts) or life.starts[number] >= end:
                return False
            if number == 0 or not life.stays[number - 1]:
                return False
        return True

    def stays(self, key: ChunkKey, position: int) -> bool:
        """Return whether a chunk is to stay after its use in the term at a position."""
        if self.known_end is None or position >= self.known_end:
            return False
        life = self._lives.get(key)
        return life is not None and life.stays_after(position)

    def find_run(self, position: int, limit: int) -> list[KnownTerm]:
        """Return the kept terms that follow each other from a position, where the first one has to
        start.

        Nothing if it does not pay. They end at limit, or with the term that passes it.
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
        """Return where a window that starts at asked should end: where kept terms begin, or its
        end.
        """
        if not self._lives:
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
