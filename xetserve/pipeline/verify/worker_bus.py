"""What the workers of a server tell each other of files: a place in shared memory for each, which
it alone writes.

A place has three rings (ring_log.py):

    marks   files that were cut, and files of which all was forgotten
    notes   chunks of files that are not proven (worker_records.py)
    lists   the chunks of proven files (ledger_file.py)

Nobody waits for anybody, and a worker that dies leaves what it has told. The one that takes its
place hears all that the rings still hold, its predecessor's too. It takes memory as it is used: at
most PLACE_SIZE a worker.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError
from xetserve.pipeline.verify.ledger_file import (
    ChunkList,
    pack_ledger,
    read_file_hash,
    unpack_ledger,
)
from xetserve.pipeline.verify.ring_log import RingReader, RingWriter, ring_size
from xetserve.pipeline.verify.worker_records import (
    MARK_SIZE,
    Mark,
    SeenChunks,
    pack_mark,
    pack_seen,
    parse_mark,
    parse_seen,
)

logger = logging.getLogger(__name__)

MARKS_SIZE: Final = ring_size(1000 * (16 + MARK_SIZE + 4))
SEEN_SIZE: Final = ring_size(4 << 20)  # some 100,000 chunks: seconds of what a worker can send
LISTS_SIZE: Final = ring_size(8 << 20)  # some 200,000 chunks; the longest list that is kept fits
PLACE_SIZE: Final = MARKS_SIZE + SEEN_SIZE + LISTS_SIZE  # bytes of a worker's place
MAX_LISTS: Final = 8192  # that are found again


class WorkerBus:
    """What one worker tells and hears.

    Args:
        places: PLACE_SIZE bytes for each worker, zeros in the beginning.
        own: which of them is ours, counted from 0.
    """

    def __init__(self, places: Sequence[memoryview], own: int) -> None:
        marks, seen, lists = zip(*map(_divide, places), strict=True)
        self._marks = _Rings(marks, own)
        self._seen = _Rings(seen, own)
        self._own_lists = RingWriter(lists[own])
        self._list_readers = [RingReader(memory) for memory in lists]
        self._lists: LruDict[bytes, tuple[RingReader, int]] = LruDict(max_num=MAX_LISTS)

    @property
    def num_missed(self) -> int:
        """How often marks or notes had gone before we heard them."""
        return self._marks.num_missed + self._seen.num_missed

    def send_mark(self, mark: Mark) -> None:
        """Say what became of a file."""
        self._marks.own.append(pack_mark(mark))

    def send_chunks(self, runs: Iterable[SeenChunks]) -> None:
        """Say what was seen of files."""
        for seen in runs:
            self._seen.own.append(pack_seen(seen))

    def receive_marks(self) -> Iterator[Mark]:
        """Yield what others have said and we have not heard; the first time also what our
        predecessor has.
        """
        for data in self._marks.receive():
            try:
                yield parse_mark(data)
            except FormatError as exc:
                logger.error("shared ledgers: %s", exc)

    def receive_chunks(self) -> Iterator[SeenChunks]:
        """The same of chunks that they have seen."""
        for data in self._seen.receive():
            try:
                yield parse_seen(data)
            except FormatError as exc:
                logger.error("shared ledgers: %s", exc)

    def send_list(self, file_hash: bytes, chunks: ChunkList) -> None:
        """Let all have the list of a proven file; one that is too long is left out."""
        self._own_lists.append(pack_ledger(file_hash, chunks))

    def has_list(self, file_hash: bytes) -> bool:
        """Return whether the list of a proven file is to be had."""
        return self._find(file_hash) is not None

    def find_list(self, file_hash: bytes) -> ChunkList | None:
        """Return the list of a proven file; None: nobody has told it of late."""
        data = self._find(file_hash)
        if data is None:
            return None
        try:
            return unpack_ledger(bytes(data), file_hash)
        except FormatError as exc:
            logger.error("shared ledgers: %s", exc)
            return None

    def _find(self, file_hash: bytes) -> memoryview | None:
        for reader in self._list_readers:
            for record in reader.read():
                self._lists.put(read_file_hash(record.data), (reader, record.position))
        place = self._lists.peek(file_hash)  # the newest lists stay, however often one is asked for
        if place is None:
            return None
        reader, position = place
        found = reader.find(position)
        if found is None:
            self._lists.pop(file_hash)
            return None
        return found.data


class _Rings:
    """Rings of one kind, of all workers: ours to write, the others' to read."""

    def __init__(self, memories: Sequence[memoryview], own: int) -> None:
        self.own = RingWriter(memories[own])
        self._others = [RingReader(memory) for at, memory in enumerate(memories) if at != own]
        self._all = self._readers = [RingReader(memories[own]), *self._others]

    def receive(self) -> Iterator[memoryview]:
        readers, self._readers = self._readers, self._others
        for reader in readers:
            for record in reader.read():
                yield record.data

    @property
    def num_missed(self) -> int:
        return sum(reader.num_lost for reader in self._all)


def _divide(place: memoryview) -> tuple[memoryview, memoryview, memoryview]:
    middle = MARKS_SIZE + SEEN_SIZE
    return place[:MARKS_SIZE], place[MARKS_SIZE:middle], place[middle:PLACE_SIZE]
