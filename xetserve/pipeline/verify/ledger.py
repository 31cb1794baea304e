"""The chunks of a file that clients have read, in order to verify parts of it.

A part of a file proves nothing by itself, since reconstructions carry no chunk hashes. But the
server computes the hash of every chunk it sends, whichever client it is for. Once the hashes of all
chunks are known, their root has to be the file hash. From then on the ledger is proven, and every
later chunk is compared with it.

Example: a file of 60 bytes with the chunks a [0, 10), b [10, 30), c [30, 35), d [35, 60).

    a client reads      runs of known chunks
    30 to 60            [30, 60) c d
    0 to 10             [0, 10) a, [30, 60) c d
    10 to 30            [0, 60) a b c d               the runs join: all chunks are known

    root of a b c d = file hash   proven: from now on, a wrong chunk at 30 is found when it is read
    root of a b c d differs       one chunk is wrong: all are forgotten, and the last answer is cut

If a client reads another chunk at 30 before the file is proven, one of the two is wrong, too: all
are forgotten.

A file may have more chunks than fit into MAX_FILE_MEMORY. Then the first ones are folded into the
root and forgotten. A client that reads such a file from its beginning, roughly in order, gets a
proof nevertheless, but the ledger is not proven afterwards.

Pure: positions are decoded bytes in the file.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Final

from xetserve.pipeline.provenance import ProvenanceLog
from xetserve.pipeline.verify.ledger_file import ChunkList
from xetserve.pipeline.verify.worker_records import SeenChunks
from xetserve.xet.hashes import HASH_SIZE, MerkleTree
from xetserve.xet.reconstruction import ChunkRange

CHUNK_COST: Final = HASH_SIZE + 8  # bytes of memory for a known chunk
XORB_COST: Final = 250  # bytes of memory for a xorb that chunks came from
MAX_FILE_MEMORY: Final = 8 * 1024 * 1024  # bytes; 200,000 chunks, of about 13 GB
FOLDED_AWAY: Final = 4096  # chunks that are folded and forgotten at a time, at most


class _ChunkRun:
    """Chunks that follow each other."""

    __slots__ = ("_next", "end", "hashes", "start", "starts")

    def __init__(self, start: int) -> None:
        self._next = 0  # the index that the next call of has() expects, when chunks come in order
        self.start = start
        self.end = start
        self.starts: array[int] = array("Q")  # of the chunks
        self.hashes = bytearray()

    def append(self, size: int, chunk_hash: bytes) -> None:
        self.starts.append(self.end)
        self.hashes += chunk_hash
        self.end += size

    def extend(self, other: "_ChunkRun") -> None:
        self.starts += other.starts
        self.hashes += other.hashes
        self.end = other.end

    def is_part_of(self, chunks: ChunkList) -> bool:
        """Return whether all these chunks are in a list, at the same positions."""
        first = bisect_left(chunks.starts, self.start)
        last = first + len(self.starts)
        end = chunks.starts[last] if last < len(chunks.starts) else chunks.end
        return (
            self.end == end
            and self.starts == chunks.starts[first:last]
            and self.hashes == chunks.hashes[first * HASH_SIZE : last * HASH_SIZE]
        )

    def has(self, position: int, size: int, chunk_hash: bytes) -> bool:
        """Return whether the run has this chunk at this position."""
        starts, at = self.starts, self._next
        if at >= len(starts) or starts[at] != position:
            at = bisect_left(starts, position)
            if at == len(starts) or starts[at] != position:
                return False
        self._next = at + 1
        end = starts[at + 1] if at + 1 < len(starts) else self.end
        return end - position == size and self.hashes.startswith(chunk_hash, at * HASH_SIZE)


class Ledger:
    """The known chunks of one file.

    Args:
        on_clear: called with the file hash when a chunk has turned out to be wrong and all chunks
            were forgotten.

    is_proven: whether the chunks fold to the file hash; then they do not change any more.
    is_kept: whether the ledger is stored on disk, or about to be.
    is_sent: whether the other workers have the proven ledger.
    has_lost: whether chunks were dropped, or not compared with known ones, and Ledgers has not
        recorded this yet. An answer that depends on all chunks being compared must then not end
        normally.
    generation: how often all chunks were forgotten.
    epoch: changes whenever chunks are dropped, unless all are proven then.
    sources: for each xorb, a range that contains the chunks which came from it.
    """

    def __init__(
        self, file_hash: bytes, on_clear: Callable[[bytes], object] = lambda file_hash: None
    ) -> None:
        self.file_hash = file_hash
        self._on_clear = on_clear
        self.is_proven = False
        self.is_kept = False
        self.is_sent = False
        self.has_lost = False
        self.generation = 0
        self.epoch = 0
        self._origins = ProvenanceLog()  # of the chunks of this epoch
        self.sources: dict[bytes, ChunkRange] = {}
        self._runs: list[_ChunkRun] = []  # by position, with gaps between them
        self._num_chunks = 0
        self._is_full = False
        self._tree = MerkleTree()  # of the first chunks, if they start at 0
        self._num_folded = 0  # known chunks that are in the tree
        self._base = 0  # chunks before this position are in the tree, and forgotten

    def __repr__(self) -> str:
        state = "proven" if self.is_proven else f"{len(self._runs)} runs"
        return f"<Ledger of {self._num_chunks} chunks, {state}>"

    @property
    def nbytes(self) -> int:
        """Bytes of memory, estimated."""
        return 1000 + self._num_chunks * CHUNK_COST + len(self.sources) * XORB_COST

    @property
    def has_chunks(self) -> bool:
        """Whether any chunk is known."""
        return bool(self._runs)

    @property
    def is_full(self) -> bool:
        """Whether the file had too many chunks, so that none is kept."""
        return self._is_full

    def matches(self, position: int, size: int, chunk_hash: bytes) -> bool:
        """Return whether the proven file has this chunk at this position."""
        return bool(self._runs) and self._runs[0].has(position, size, chunk_hash)

    def note(self, position: int, size: int, chunk_hash: bytes) -> None:
        """Add a chunk, unless the ledger is proven.

        If another chunk is known at this position, one of the two is wrong: all are forgotten.
        """
        if self.is_proven or self._is_full:
            return
        if position < self._base:
            self.has_lost = True
            if position:
                return
            self.epoch += 1
            self._restart()  # a client starts at the beginning: all its chunks must be compared
        at = len(self._runs) - 1
        if at >= 0 and position == self._runs[at].end and self.nbytes < MAX_FILE_MEMORY:
            self._runs[at].append(size, chunk_hash)
            self._num_chunks += 1
            return
        if at < 0 or position != self._runs[at].end:  # the common case is chunks in order
            at = bisect_right(self._runs, position, key=lambda run: run.start) - 1
        if at >= 0 and position < self._runs[at].end:
            if not self._runs[at].has(position, size, chunk_hash):
                self.clear()
            return
        if at < 0 or position > self._runs[at].end:
            at += 1
            self._runs.insert(at, _ChunkRun(position))
        run = self._runs[at]
        run.append(size, chunk_hash)
        self._num_chunks += 1
        if at + 1 < len(self._runs) and run.end >= self._runs[at + 1].start:
            if run.end > self._runs[at + 1].start:
                self.clear()
                return
            run.extend(self._runs.pop(at + 1))
        if self.nbytes > MAX_FILE_MEMORY:
            self._shrink()

    def note_seen(self, seen: SeenChunks) -> None:
        """Add chunks that another worker has seen."""
        if self.is_proven or self._is_full or not seen.sizes:
            return
        self.note_source(seen.xorb_hash, seen.chunks)
        if self._append(seen):
            return
        for position, size, chunk_hash in seen.each():
            self.note(position, size, chunk_hash)

    def _append(self, seen: SeenChunks) -> bool:
        """Add all these chunks at once if they overlap no known ones; return whether they did not.

        They may follow a run directly.
        """
        runs, start = self._runs, seen.position
        starts = array("Q", accumulate(seen.sizes, initial=start))
        end = starts.pop()
        at = len(runs) - 1
        if at >= 0 and start < runs[at].start:
            at = bisect_right(runs, start, key=lambda run: run.start) - 1
        if (
            start < self._base
            or (at >= 0 and start < runs[at].end)
            or (at + 1 < len(runs) and end >= runs[at + 1].start)
            or self.nbytes + len(starts) * CHUNK_COST >= MAX_FILE_MEMORY
        ):
            return False
        if at < 0 or start > runs[at].end:
            at += 1
            runs.insert(at, _ChunkRun(start))
        run = runs[at]
        run.starts += starts
        run.hashes += seen.hashes
        run.end = end
        self._num_chunks += len(starts)
        return True

    def refutes(self, seen: SeenChunks) -> bool:
        """Return whether the file is proven and does not have these chunks of another worker."""
        return self.is_proven and not all(self.matches(*chunk) for chunk in seen.each())

    def _shrink(self) -> None:
        """Forget some of the first chunks after folding them, or else all chunks."""
        self.epoch += 1
        self._origins.clear()
        self.fold(FOLDED_AWAY)
        count, self._num_folded = self._num_folded, 0
        if not count:
            self.forget()
            self.sources.clear()
            self._is_full = self.has_lost = True
            return
        run = self._runs[0]
        run.start = self._base = run.starts[count] if count < len(run.starts) else run.end
        del run.starts[:count]
        del run.hashes[: count * HASH_SIZE]
        self._num_chunks -= count

    def note_source(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Record where chunks come from, unless the ledger is proven."""
        if not self.is_proven and not self._is_full:
            extend_range(self.sources, xorb_hash, chunks)

    def clear(self) -> None:
        """Forget all chunks, since one is wrong, but not where they came from."""
        self.forget()
        self._on_clear(self.file_hash)

    def forget(self) -> None:
        """Forget all chunks, as clear does, without calling on_clear."""
        self.generation += 1
        self.epoch += 1
        self.is_proven = self.is_kept = self.is_sent = False
        self._restart()

    def _restart(self) -> None:
        self._origins.clear()
        self._runs.clear()
        self._num_chunks = 0
        self._tree = MerkleTree()
        self._num_folded = 0
        self._base = 0

    def get_chunks(self) -> ChunkList | None:
        """Return all chunks of a proven file; None if it is not proven."""
        if not self.is_proven or len(self._runs) != 1:
            return None
        run = self._runs[0]
        return ChunkList(run.starts, run.end, run.hashes)

    def adopt(self, chunks: ChunkList) -> None:
        """Copy all chunks of the file, proven elsewhere, unless the ledger is proven.

        The known chunks are compared with them first. If they differ, they were wrong, see clear.
        Folded chunks cannot be compared, and are forgotten.
        """
        if self.is_proven:
            return
        if self._base:
            self.forget()
        elif not all(run.is_part_of(chunks) for run in self._runs):
            self.clear()  # an answer that contained a wrong chunk must not end normally
        self._origins.prove()
        self._restart()
        self.sources.clear()
        run = _ChunkRun(0)
        run.starts, run.end, run.hashes = chunks.starts, chunks.end, bytearray(chunks.hashes)
        self._runs.append(run)
        self._num_chunks = len(run.starts)
        self.is_proven = self.is_kept = True

    def find_hashes(self, position: int, size: int) -> bytes | None:
        """Return the hashes of the chunks that make up a part of the file; None if no chunks do, or
        the ledger is not proven.
        """
        chunks = self.get_chunks()
        return None if chunks is None else chunks.find_hashes(position, size)

    def is_complete(self, size: int) -> bool:
        """Return whether all chunks of a file of this size are known."""
        return not self._base and self.can_be_proven(size)

    def can_be_proven(self, size: int) -> bool:
        """Return whether all chunks of a file of this size are known or folded."""
        runs = self._runs
        return len(runs) == 1 and runs[0].start == self._base and runs[0].end == size

    def fold(self, count: int) -> bool:
        """Fold up to count more of the first chunks; return whether there are more to fold."""
        if self.is_proven or not self._runs or self._runs[0].start != self._base:
            return False
        run = self._runs[0]
        end = min(len(run.starts), self._num_folded + count)
        for at in range(self._num_folded, end):
            chunk_end = run.starts[at + 1] if at + 1 < len(run.starts) else run.end
            chunk_hash = bytes(run.hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE])
            self._tree.add(chunk_hash, chunk_end - run.starts[at])
        self._num_folded = end
        return end < len(run.starts)

    def prove(self) -> bool:
        """Compare the root of all chunks, which are folded, with the file hash.

        Returns False if it differs, and then all chunks are forgotten. If the first chunks were
        forgotten after folding, so are the others, and the ledger is not proven.
        """
        if self.is_proven:
            return True
        if self._tree.file_hash() != self.file_hash:
            self.clear()
            return False
        self.sources.clear()
        if self._base:
            self.epoch += 1
            self._restart()
        else:
            self.set_proven()
        return True

    def set_proven(self) -> None:
        """Mark the ledger as proven; all chunks of the file are known."""
        self.is_proven = True
        self._origins.prove()

    @property
    def has_origins(self) -> bool:
        """Whether a proof of the file would also prove cache entries."""
        return bool(self._origins)

    def take_origins(self, origins: ProvenanceLog, epoch: int) -> None:
        """Add the cache entries that chunks of an epoch came from, to mark them with the proof.

        If chunks of this epoch were dropped or not compared, their origins are not proven.
        """
        if epoch != self.epoch or self._is_full or self._base:
            origins.clear()
        elif self.is_proven:
            origins.prove()
        else:
            self._origins.take(origins)


def extend_range(ranges: dict[bytes, ChunkRange], xorb_hash: bytes, chunks: ChunkRange) -> None:
    """Extend the range of a xorb so that it contains some chunks."""
    seen = ranges.get(xorb_hash)
    if seen is not None:
        chunks = ChunkRange(min(seen.start, chunks.start), max(seen.end, chunks.end))
    ranges[xorb_hash] = chunks
