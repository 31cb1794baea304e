"""The ledgers of a process, and what it knows from the other workers.

Several workers are one server: what a client has got from one counts when another judges. So each
tells the others what it has seen before the bytes leave, and hears what they have told before it
judges. Whoever tells last, of all that have sent parts of a file, then knows all of them: if they
are not the file, that one's answer is cut, and everybody knows that it was.

What is forgotten because some of it was wrong is forgotten by all, together with what others have
told before that and is not heard yet.
"""

import os
import time
from collections.abc import Sequence
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.pipeline.verify.ledger import Ledger
from xetserve.pipeline.verify.worker_bus import WorkerBus
from xetserve.pipeline.verify.worker_records import Mark, MarkKind, SeenChunks

MAX_MEMORY: Final = 16 * 1024 * 1024  # bytes; 400,000 chunks, of about 26 GB

CUT_SECONDS: Final = 3600.0  # within which somebody may try to go on with what they have
SUSPECT_SECONDS: Final = 60.0  # within which those who were at it try, part by part
MAX_CUTS: Final = 1000  # files


class _Times:
    """When something happened last to each of some files, ns of CLOCK_MONOTONIC; those to which it
    did long ago are forgotten.

    all_at: when it may have happened to any file whatsoever; -1: never.
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
        """Return the time; -1: it did not happen."""
        when = self._times.peek(file_hash)
        return -1 if when is None else when

    def is_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether it may have happened to a file after a time, in seconds."""
        when = max(self.get(file_hash), self.all_at)
        return when >= 0 and when >= int(since * 1e9)


class Ledgers:
    """The ledgers of the files that were read of late, within a bound of memory.

    And which files were cut of late because they were wrong: somebody has the beginning, and some
    of it may be wrong.

    Args:
        worker_bus: from the other workers, and to them; None: there are none.
    """

    def __init__(self, max_memory: int = MAX_MEMORY, worker_bus: WorkerBus | None = None) -> None:
        self._worker_bus = worker_bus
        self._max_memory = max_memory
        # Each with the memory that it took when it was looked at last.
        self._begun: LruDict[bytes, Ledger] = LruDict()
        self._proven: LruDict[bytes, Ledger] = LruDict()
        self._cuts = _Times()
        self._forgotten = _Times()
        self._lost = _Times()
        self._watched: set[bytes] = set()
        self._num_missed = 0  # of what others have told, see WorkerBus
        self.receive()

    @property
    def is_shared(self) -> bool:
        """Whether there are other workers."""
        return self._worker_bus is not None

    def get(self, file_hash: bytes) -> Ledger:
        """Return the ledger of a file, a new one if it has none."""
        ledger = self.find(file_hash)
        if ledger is None:
            ledger = Ledger(file_hash, self._on_clear)
            self._put(ledger)
        return ledger

    def find(self, file_hash: bytes) -> Ledger | None:
        """Return the ledger of a file, if it has one."""
        ledger = self._begun.get(file_hash)
        return self._proven.get(file_hash) if ledger is None else ledger

    def find_hashes(self, file_hash: bytes, position: int, size: int) -> bytes | None:
        """Return the chunk hashes of a part of a file, if it is proven and its ledger at hand; see
        Ledger.
        """
        ledger = self.find(file_hash)
        return None if ledger is None else ledger.find_hashes(position, size)

    def note_cut(self, file_hash: bytes, now: float) -> None:
        """Remember that a file was cut; now: seconds, of a steady clock."""
        self._mark(file_hash, int(now * 1e9), MarkKind.CUT)

    def was_cut(self, file_hash: bytes, now: float) -> bool:
        """Return whether a file was cut within CUT_SECONDS."""
        self._receive_marks()
        when = self._cuts.get(file_hash)
        return when >= 0 and now - when / 1e9 < CUT_SECONDS

    def was_cut_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether a file was cut after a time, of the clock that note_cut was told."""
        self._receive_marks()
        return self._cuts.is_since(file_hash, since)

    def was_lost_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether what was known of a file had to go, for want of memory, after such a time.

        So it is if others have told more than is kept for us: nobody knows of which files.
        """
        self._receive_marks()
        return self._lost.is_since(file_hash, since)

    def is_suspect(self, file_hash: bytes, now: float) -> bool:
        """Return whether a part of a file may be wanted to complete what is wrong.

        That is so if it was cut, as was_cut tells, and has not been proven since; at first even
        then.
        """
        if not self.was_cut(file_hash, now):
            return False
        if now - self._cuts.get(file_hash) / 1e9 < SUSPECT_SECONDS:
            return True
        ledger = self.get(file_hash)
        self.look_up(ledger)
        return not ledger.is_proven

    @property
    def nbytes(self) -> int:
        """Memory that they take, about."""
        return self._begun.cost + self._proven.cost

    def trim(self, file_hash: bytes) -> None:
        """Account for what a file's ledger has become; others go if all are too large together,
        those used longest ago first.

        Those of proven files go before all: they are to be had again, from the disk or from a read.
        Without the other ones nobody would find out that a part which is given out later completes
        a wrong file.
        """
        ledger = self.find(file_hash)
        if ledger is not None:
            self._put(ledger)
            if ledger.has_lost:
                ledger.has_lost = False
                self._mark(file_hash, time.monotonic_ns(), MarkKind.LOST)
            if ledger.is_full:
                self._begun.pop(file_hash)  # who begins anew may be luckier
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
        """Have a ledger hear when its file is proven by another worker, for what is stored here of
        it.
        """
        if self._worker_bus is not None and ledger.has_origins:
            self._watched.add(ledger.file_hash)

    def poll(self) -> None:
        """Hear, and let the ledgers that are watched have what was proven; to be called now and
        then.
        """
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

    # What workers tell each other.

    def send(self, seen: Sequence[SeenChunks]) -> None:
        """Tell the others of chunks that were noted here, before the bytes leave."""
        if self._worker_bus is not None:
            self._worker_bus.send_chunks(seen)

    def receive(self) -> None:
        """Take in what others have told. To be called now and then, or what they tell is lost."""
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
        """Take in that others have told more than we have heard: what it was is lost."""
        if self._worker_bus is not None and self._worker_bus.num_missed > self._num_missed:
            self._num_missed = self._worker_bus.num_missed
            self._lost.all_at = time.monotonic_ns()

    def _correct(self, ledger: Ledger, seen: SeenChunks) -> None:
        """Have the other know the list of a proven file, and all of them if it has given a wrong
        chunk away.
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
        """Let a ledger have all that is known of its file anywhere."""
        if self._worker_bus is None:
            return
        # What was told before this is with the others before we look (schedule() has a full memory
        # barrier): of two that tell and then look, one sees both.
        os.sched_yield()
        self.receive()
        if (
            not ledger.is_proven
            and (chunks := self._worker_bus.find_list(ledger.file_hash)) is not None
        ):
            ledger.adopt(chunks)
            ledger.is_sent = True

    def send_proven(self, ledger: Ledger) -> None:
        """Let the others have the list of a proven file."""
        if self._worker_bus is None or ledger.is_sent or (chunks := ledger.get_chunks()) is None:
            return
        ledger.is_sent = True
        self._worker_bus.send_list(ledger.file_hash, chunks)

    def _on_clear(self, file_hash: bytes) -> None:
        self._mark(file_hash, time.monotonic_ns(), MarkKind.FORGOTTEN)

    def _mark(self, file_hash: bytes, at: int, kind: MarkKind) -> None:
        mark = Mark(file_hash, at, kind)
        self._take_in(mark)
        if self._worker_bus is not None:
            self._worker_bus.send_mark(mark)

    def _take_in(self, mark: Mark) -> None:
        if mark.kind is MarkKind.LOST:
            self._lost.note(mark.file_hash, mark.at)
            return
        # What is forgotten because it was wrong counts as cut: whoever has got some of it must not
        # come to an end.
        self._cuts.note(mark.file_hash, mark.at)
        if mark.kind is MarkKind.FORGOTTEN:
            self._forgotten.note(mark.file_hash, mark.at)

    def _receive_marks(self) -> None:
        if self._worker_bus is None:
            return
        for mark in self._worker_bus.receive_marks():
            self._take_in(mark)
            ledger = self._begun.peek(mark.file_hash)
            if mark.kind is not MarkKind.FORGOTTEN or ledger is None or ledger.is_proven:
                continue
            ledger.forget()
        self._note_missed()
