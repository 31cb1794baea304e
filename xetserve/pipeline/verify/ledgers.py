"""The ledgers of a process, kept in step with those of the other workers (worker_bus.py).

A worker sends the chunks of an answer to the others before the bytes leave, and receives theirs
before it verifies. So the last worker that sends a part of a file knows all parts. If they are not
the file, it cuts its answer and marks the file as cut for all workers.

When a chunk turns out to be wrong, all workers forget the chunks of the file, including those that
were seen before and arrive later.
"""

import os
import time
from collections.abc import Sequence
from typing import Final

from blake3 import blake3

from xetserve.base.lru_dict import LruDict
from xetserve.pipeline.verify.ledger import Ledger
from xetserve.pipeline.verify.worker_bus import WorkerBus
from xetserve.pipeline.verify.worker_records import Mark, MarkKind, SeenChunks

MAX_MEMORY: Final = 16 * 1024 * 1024  # bytes; 400,000 chunks, about 26 GB of files

CUT_SECONDS: Final = 3600.0  # within this time, a client may resume a download that was cut
SUSPECT_SECONDS: Final = 60.0  # within this time, clients retry parts of a download
PROVING_SECONDS: Final = 30.0  # a worker that has sent no mark for so long proves no more
MAX_CUTS: Final = 1000  # files


class _Times:
    """The last time of an event for each of MAX_CUTS files, ns of CLOCK_MONOTONIC.

    all_at: the last time at which it may have happened to any file; -1: never.
    """

    def __init__(self) -> None:
        self._times: LruDict[bytes, int] = LruDict()
        self.all_at = -1

    def note(self, file_hash: bytes, at: int) -> None:
        self._times.put(file_hash, max(at, self.get(file_hash)))
        while len(self._times) > MAX_CUTS and (first := self._times.peek_first()) is not None:
            self._times.pop(first[0])
            self.all_at = max(self.all_at, first[1])

    def get(self, file_hash: bytes) -> int:
        """Return the time; -1 if it is not known to have happened."""
        when = self._times.peek(file_hash)
        return -1 if when is None else when

    def is_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether it may have happened to a file since a time, in seconds."""
        when = max(self.get(file_hash), self.all_at)
        return when >= 0 and when >= int(since * 1e9)


class Ledgers:
    """The ledgers of the files that were read last, in bounded memory.

    It also records which files were cut because they were damaged: a client may have the beginning
    of such a file, with a wrong byte in it.

    Args:
        max_memory: bytes of all ledgers together.
        worker_bus: the connection to the other workers; None if there are none.
    """

    def __init__(self, max_memory: int = MAX_MEMORY, worker_bus: WorkerBus | None = None) -> None:
        self._worker_bus = worker_bus
        self._max_memory = max_memory
        # The cost of each is its memory when it was accounted for the last time.
        self._begun: LruDict[bytes, Ledger] = LruDict()
        self._proven: LruDict[bytes, Ledger] = LruDict()
        self._cuts = _Times()
        self._forgotten = _Times()
        self._lost = _Times()
        self._proving = _Times()  # by other workers
        self._right = _Times()
        # By a digest of file and client:
        self._client_cuts = _Times()
        self._client_right = _Times()
        self._watched: set[bytes] = set()
        self._num_missed = 0  # see WorkerBus
        self.receive()

    @property
    def is_shared(self) -> bool:
        """Whether there are other workers."""
        return self._worker_bus is not None

    def get(self, file_hash: bytes) -> Ledger:
        """Return the ledger of a file; create it if there is none."""
        ledger = self.find(file_hash)
        if ledger is None:
            ledger = Ledger(file_hash, self._on_clear)
            self._put(ledger)
        return ledger

    def find(self, file_hash: bytes) -> Ledger | None:
        """Return the ledger of a file; None if there is none."""
        ledger = self._begun.get(file_hash)
        return self._proven.get(file_hash) if ledger is None else ledger

    def find_hashes(self, file_hash: bytes, position: int, size: int) -> bytes | None:
        """Return the chunk hashes of a part of a file, if its ledger is in memory and proven; see
        Ledger.find_hashes.
        """
        ledger = self.find(file_hash)
        return None if ledger is None else ledger.find_hashes(position, size)

    def note_cut(self, file_hash: bytes, now: float) -> None:
        """Record that an answer with a file was cut; now: seconds of the monotonic clock."""
        self._mark(file_hash, int(now * 1e9), MarkKind.CUT)

    def was_cut(self, file_hash: bytes, now: float) -> bool:
        """Return whether a file was cut within CUT_SECONDS."""
        self._receive_marks()
        when = self._cuts.get(file_hash)
        return when >= 0 and now - when / 1e9 < CUT_SECONDS

    def was_cut_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether a file was cut since a time, in seconds of the monotonic clock."""
        self._receive_marks()
        return self._cuts.is_since(file_hash, since)

    def was_lost_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether chunks of a file may have been dropped since a time, to save memory.

        Records of other workers that this one has missed may be of any file.
        """
        self._receive_marks()
        return self._lost.is_since(file_hash, since)

    def is_suspect(self, file_hash: bytes, now: float) -> bool:
        """Return whether a client may want a part of a file to complete a damaged download.

        So it is after a cut (see was_cut) until the file is proven or was read as a whole, and for
        SUSPECT_SECONDS at least.
        """
        is_recent = self.get_suspect_left(file_hash, now) > 0
        return self.was_cut(file_hash, now) and (is_recent or self.needs_proof(file_hash, now))

    def needs_proof(self, file_hash: bytes, now: float) -> bool:
        """Return whether a file was cut, and neither proven nor found to be right since."""
        if not self.was_cut(file_hash, now):
            return False
        if self._right.get(file_hash) > self._cuts.get(file_hash):
            return False
        ledger = self.get(file_hash)
        self.look_up(ledger)
        return not ledger.is_proven

    def note_right(self, file_hash: bytes, now: float) -> None:
        """Record that a read of the whole file was right, if the file was cut before.

        That is of use for a file whose ledger cannot hold all chunks: its parts are answered again,
        without a proof, like those of any such file.
        """
        if self.was_cut(file_hash, now):
            self._mark(file_hash, int(now * 1e9), MarkKind.RIGHT)

    def note_client_cut(self, file_hash: bytes, client: str, now: float) -> None:
        """Record that a client was sent bytes of a file, some of which may be wrong."""
        self._mark(_digest(file_hash, client), int(now * 1e9), MarkKind.CLIENT_CUT)

    def note_client_right(self, file_hash: bytes, client: str, now: float) -> None:
        """Record that a client gets the whole file, and it is right."""
        if self.was_client_cut(file_hash, client, now):
            self._mark(_digest(file_hash, client), int(now * 1e9), MarkKind.CLIENT_RIGHT)

    def was_client_cut(self, file_hash: bytes, client: str, now: float) -> bool:
        """Return whether a client may hold wrong bytes of a file, which parts would complete.

        So it is for CUT_SECONDS after an answer to it was cut, or until it gets the whole file.
        """
        self._receive_marks()
        name = _digest(file_hash, client)
        when = self._client_cuts.get(name)
        is_recent = when >= 0 and now - when / 1e9 < CUT_SECONDS
        return is_recent and self._client_right.get(name) < when

    def get_suspect_left(self, file_hash: bytes, now: float) -> float:
        """Return for how many seconds parts of a file that was cut are suspect in any case."""
        return self._get_left(file_hash, now, SUSPECT_SECONDS)

    def get_cut_left(self, file_hash: bytes, now: float) -> float:
        """Return for how many seconds a file that was cut counts as cut."""
        return self._get_left(file_hash, now, CUT_SECONDS)

    def _get_left(self, file_hash: bytes, now: float, seconds: float) -> float:
        return max(0.0, self._cuts.get(file_hash) / 1e9 + seconds - now)

    def note_proving(self, file_hash: bytes, now: float) -> None:
        """Tell the other workers that this one is proving a file; to be repeated within
        PROVING_SECONDS.
        """
        if self._worker_bus is not None:
            self._worker_bus.send_mark(Mark(file_hash, int(now * 1e9), MarkKind.PROVING))

    def is_being_proven(self, file_hash: bytes, now: float) -> bool:
        """Return whether another worker is proving a file."""
        self._receive_marks()
        return self._proving.is_since(file_hash, now - PROVING_SECONDS)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all ledgers, estimated."""
        return self._begun.cost + self._proven.cost

    def trim(self, file_hash: bytes) -> None:
        """Update the memory that a file's ledger takes, and drop others beyond the limit.

        Ledgers of proven files are dropped first, those used longest ago before others: the disk or
        another read can restore them. Without the ledger of a file that is not proven, a client
        could complete a wrong file with a later part.
        """
        ledger = self.find(file_hash)
        if ledger is not None:
            self._put(ledger)
            if ledger.has_lost:
                ledger.has_lost = False
                self._mark(file_hash, time.monotonic_ns(), MarkKind.LOST)
            if ledger.is_full:
                self._begun.pop(file_hash)  # the next reader starts with an empty one
        while self.nbytes > self._max_memory:
            for ledgers in (self._proven, self._begun):
                first = ledgers.peek_first()
                if first is not None and first[0] != file_hash:
                    break
            else:
                return
            ledgers.pop(first[0])
            if first[1].has_chunks:
                self._mark(first[0], time.monotonic_ns(), MarkKind.LOST)

    def _put(self, ledger: Ledger) -> None:
        self._begun.pop(ledger.file_hash)
        self._proven.pop(ledger.file_hash)
        ledgers = self._proven if ledger.is_proven else self._begun
        ledgers.put(ledger.file_hash, ledger, ledger.nbytes)

    def watch(self, ledger: Ledger) -> None:
        """Watch for another worker to prove a file, so that cache entries of it are marked here."""
        if self._worker_bus is not None and ledger.has_origins:
            self._watched.add(ledger.file_hash)

    def poll(self) -> None:
        """Receive, and copy proven lists into the watched ledgers; to be called regularly."""
        self.receive()
        for file_hash in list(self._watched):
            ledger = self._begun.peek(file_hash)
            if (
                ledger is not None
                and self._worker_bus is not None
                and self._worker_bus.has_list(file_hash)
            ):
                self.look_up(ledger)
            if ledger is None or ledger.is_proven or not ledger.has_origins:
                self._watched.discard(file_hash)

    # The other workers.

    def send(self, seen: Sequence[SeenChunks]) -> None:
        """Send chunks to the other workers, before their bytes leave."""
        if self._worker_bus is not None:
            self._worker_bus.send_chunks(seen)

    def receive(self) -> None:
        """Add the chunks that other workers have sent.

        To be called regularly, or else chunks are overwritten before they are read.
        """
        if self._worker_bus is None:
            return
        self._receive_marks()
        for seen in self._worker_bus.receive_chunks():
            if seen.seen_at <= self._forgotten.get(seen.file_hash):
                continue
            ledger = self.get(seen.file_hash)
            ledger.note_seen(seen)
            if ledger.is_proven:
                self._correct(ledger, seen)
            self.trim(seen.file_hash)
        self._note_missed()

    def _note_missed(self) -> None:
        """Record that records of other workers were missed, if some were."""
        if self._worker_bus is not None and self._worker_bus.num_missed > self._num_missed:
            self._num_missed = self._worker_bus.num_missed
            self._lost.all_at = time.monotonic_ns()

    def _correct(self, ledger: Ledger, seen: SeenChunks) -> None:
        """Send the list of a proven file to a worker that does not know it is proven.

        If that worker has sent a wrong chunk to a client, the file is also marked as cut.
        """
        if ledger.refutes(seen):
            self._mark(ledger.file_hash, seen.seen_at, MarkKind.CUT)
        ledger.is_sent = (
            ledger.is_sent
            and self._worker_bus is not None
            and self._worker_bus.has_list(ledger.file_hash)
        )
        self.send_proven(ledger)

    def look_up(self, ledger: Ledger) -> None:
        """Add to a ledger all that other workers know of its file."""
        if self._worker_bus is None:
            return
        # sched_yield is a full memory barrier (the kernel's schedule() has one). So of two workers
        # that both send and then receive, at least one sees the records of both.
        os.sched_yield()
        self.receive()
        if (
            not ledger.is_proven
            and (chunks := self._worker_bus.find_list(ledger.file_hash)) is not None
        ):
            ledger.adopt(chunks)
            ledger.is_sent = True

    def send_proven(self, ledger: Ledger) -> None:
        """Send the list of a proven file to the other workers, unless they have it."""
        if self._worker_bus is None or ledger.is_sent or (chunks := ledger.get_chunks()) is None:
            return
        ledger.is_sent = True
        self._worker_bus.send_list(ledger.file_hash, chunks)

    def _on_clear(self, file_hash: bytes) -> None:
        self._mark(file_hash, time.monotonic_ns(), MarkKind.FORGOTTEN)

    def _mark(self, file_hash: bytes, at: int, kind: MarkKind) -> None:
        mark = Mark(file_hash, at, kind)
        self._apply(mark)
        if self._worker_bus is not None:
            self._worker_bus.send_mark(mark)

    def _apply(self, mark: Mark) -> None:
        other = {
            MarkKind.LOST: self._lost,
            MarkKind.PROVING: self._proving,
            MarkKind.RIGHT: self._right,
            MarkKind.CLIENT_CUT: self._client_cuts,
            MarkKind.CLIENT_RIGHT: self._client_right,
        }.get(mark.kind)
        if other is not None:
            other.note(mark.file_hash, mark.at)
            return
        # A file with a wrong chunk counts as cut: a client that has a part of it must not complete
        # it.
        self._cuts.note(mark.file_hash, mark.at)
        if mark.kind is MarkKind.FORGOTTEN:
            self._forgotten.note(mark.file_hash, mark.at)

    def _receive_marks(self) -> None:
        if self._worker_bus is None:
            return
        for mark in self._worker_bus.receive_marks():
            self._apply(mark)
            ledger = self._begun.peek(mark.file_hash)
            if mark.kind is not MarkKind.FORGOTTEN or ledger is None or ledger.is_proven:
                continue
            ledger.forget()
        self._note_missed()


def _digest(file_hash: bytes, client: str) -> bytes:
    """Return a name for what happened to a client with a file, as long as a file hash."""
    return blake3(file_hash + client.encode()).digest()
