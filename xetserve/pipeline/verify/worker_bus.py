"""Share what workers know of files, so that several workers verify a file as one process would.

What it protects: no client gets a complete but wrong file, whichever workers send its parts. A part
proves nothing by itself, since reconstructions carry no chunk hashes. Only all chunks of the file
together fold to the file hash, and the ledger of one worker has only the chunks that this worker
has sent.

The scenario that breaks without it: a server with two workers, and a client (aria2, hf-xet) that
downloads a file of 16 MiB over two connections, which go to different workers. Upstream, one byte
of the first half is flipped.

    worker 1 sends bytes 0 to 8 MiB     one byte is wrong
    worker 2 sends bytes 8 to 16 MiB    all are right

    without the bus   each worker knows the chunks of one half, so neither can compute the file
                      hash: both answers end normally, and the client has a wrong file
    with the bus      worker 1 sends its chunk hashes to the bus before their bytes leave; worker 2
                      reads them before its own answer ends, computes another file hash than
                      promised, and cuts its answer: the download fails; for a while, all workers
                      refuse requests for parts of this file

The bus also lets all workers check each chunk of a file that one of them has proven.
tests/e2e/test_shared_ledger.py and tests/pipeline/verify/test_shared_proof.py fail without the bus.

How: each worker has a place in shared memory that only it writes, with four rings (ring_log.py):

    cuts    files whose answers were cut, and files whose chunks were forgotten
    marks   files whose chunks were dropped, and files that are being proven: they may be many, and
            must not overwrite cuts, which matter for an hour to a worker that starts meanwhile
    seen    chunks of files that are not proven (worker_records.py)
    lists   the chunks of proven files (ledger_file.py)

There are no locks. The records of a worker that dies stay readable. The worker that replaces it
reads all records that the rings still hold, including those of its predecessor. The system
allocates the memory as it is used: at most PLACE_SIZE a worker.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, pairwise
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
    MarkKind,
    SeenChunks,
    pack_mark,
    pack_seen,
    parse_mark,
    parse_seen,
)

logger = logging.getLogger(__name__)

MARKS_SIZE: Final = ring_size(1000 * (16 + MARK_SIZE + 4))
SEEN_SIZE: Final = ring_size(4 << 20)  # about 100,000 chunks: some seconds at full speed
LISTS_SIZE: Final = ring_size(8 << 20)  # about 200,000 chunks; the longest ledger fits
# Change it with the form of the rings or records: generations of a server share the memory.
LAYOUT: Final = 1
_FREQUENT: Final = (MarkKind.LOST, MarkKind.PROVING)
PLACE_SIZE: Final = 2 * MARKS_SIZE + SEEN_SIZE + LISTS_SIZE  # bytes of a worker's place
MAX_LISTS: Final = 8192  # lists whose positions are known


class WorkerBus:
    """The connection of one worker to the bus.

    Args:
        places: PLACE_SIZE bytes for each worker, initially zeros. Further places may be added at
            the end; they are read, too.
        own: the index of this worker's place.
    """

    def __init__(self, places: Sequence[memoryview], own: int) -> None:
        cuts, marks, seen, lists = _divide(places[own])
        self._places = places
        self._own = own
        self._num_places = 0  # that are read
        self._cuts = _Rings(cuts)
        self._marks = _Rings(marks)
        self._seen = _Rings(seen)
        self._own_lists = RingWriter(lists)
        self._list_readers: list[RingReader] = []
        self._lists: LruDict[bytes, tuple[RingReader, int]] = LruDict(max_num=MAX_LISTS)

    @property
    def num_missed(self) -> int:
        """How often marks or chunks were overwritten before this worker has read them."""
        return sum(rings.num_missed for rings in (self._cuts, self._marks, self._seen))

    def send_mark(self, mark: Mark) -> None:
        """Send a mark to the other workers."""
        rings = self._marks if mark.kind in _FREQUENT else self._cuts
        rings.own.append(pack_mark(mark))

    def send_chunks(self, runs: Iterable[SeenChunks]) -> None:
        """Send chunks of files to the other workers."""
        for seen in runs:
            self._seen.own.append(pack_seen(seen))

    def receive_marks(self) -> Iterator[Mark]:
        """Yield the new marks of other workers; the first time also those of the predecessor."""
        self._find_places()
        for data in chain(self._cuts.receive(), self._marks.receive()):
            try:
                yield parse_mark(data)
            except FormatError as exc:
                logger.error("shared ledgers: %s", exc)

    def receive_chunks(self) -> Iterator[SeenChunks]:
        """Yield the new chunks of other workers; the first time also those of the predecessor."""
        self._find_places()
        for data in self._seen.receive():
            try:
                yield parse_seen(data)
            except FormatError as exc:
                logger.error("shared ledgers: %s", exc)

    def send_list(self, file_hash: bytes, chunks: ChunkList) -> None:
        """Send the chunk list of a proven file, unless it is larger than the ring."""
        self._own_lists.append(pack_ledger(file_hash, chunks))

    def has_list(self, file_hash: bytes) -> bool:
        """Return whether the bus has the chunk list of a proven file."""
        return self._find(file_hash) is not None

    def find_list(self, file_hash: bytes) -> ChunkList | None:
        """Return the chunk list of a proven file; None if the bus does not have it."""
        data = self._find(file_hash)
        if data is None:
            return None
        try:
            return unpack_ledger(bytes(data), file_hash)
        except FormatError as exc:
            logger.error("shared ledgers: %s", exc)
            return None

    def _find_places(self) -> None:
        for at in range(self._num_places, len(self._places)):
            cuts, marks, seen, lists = _divide(self._places[at])
            if at != self._own:
                self._cuts.add(cuts)
                self._marks.add(marks)
                self._seen.add(seen)
            self._list_readers.append(RingReader(lists))
            self._num_places = at + 1

    def _find(self, file_hash: bytes) -> memoryview | None:
        self._find_places()
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
    """The rings of one kind: this worker writes its own and reads those of the others."""

    def __init__(self, own: memoryview) -> None:
        self.own = RingWriter(own)
        self._of_former = RingReader(own)
        self._has_read_own = False
        self._others: list[RingReader] = []

    def add(self, memory: memoryview) -> None:
        self._others.append(RingReader(memory))

    def receive(self) -> Iterator[memoryview]:
        readers = self._others if self._has_read_own else [self._of_former, *self._others]
        self._has_read_own = True
        for reader in readers:
            for record in reader.read():
                yield record.data

    @property
    def num_missed(self) -> int:
        return self._of_former.num_lost + sum(reader.num_lost for reader in self._others)


def _divide(place: memoryview) -> list[memoryview]:
    sizes = (MARKS_SIZE, MARKS_SIZE, SEEN_SIZE, LISTS_SIZE)
    return [place[start:end] for start, end in pairwise(accumulate(sizes, initial=0))]
