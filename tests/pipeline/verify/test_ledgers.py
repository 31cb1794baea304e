"""The ledgers of a process, and what workers know of each other's."""

import random
import time
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.verify.ledger_chunks import CHUNKS, FILE_HASH, SIZE, Chunk, note_each, prove
from xetserve.pipeline.verify import ledger as ledger_module
from xetserve.pipeline.verify import ledgers as ledgers_module
from xetserve.pipeline.verify import worker_bus as bus_module
from xetserve.pipeline.verify.ledger import CHUNK_COST, Ledger
from xetserve.pipeline.verify.ledger_file import ChunkList
from xetserve.pipeline.verify.ledgers import Ledgers
from xetserve.pipeline.verify.ring_log import ring_size
from xetserve.pipeline.verify.worker_bus import PLACE_SIZE, WorkerBus
from xetserve.pipeline.verify.worker_records import MarkKind, SeenChunks, SeenCollector
from xetserve.xet.reconstruction import ChunkRange

XORB = b"x" * 32
WRONG = bytes(32)


class Workers:
    """What several processes have in memory; forked ones share the places just so."""

    def __init__(self, count: int = 3, size: int = PLACE_SIZE) -> None:
        self.places = [memoryview(bytearray(size)) for _ in range(count)]
        self.all = [self.start(number) for number in range(count)]

    def start(self, number: int) -> Ledgers:
        """Have a worker begin, in a place where another may have been."""
        return Ledgers(worker_bus=WorkerBus(self.places, number))

    def see(self, number: int, chunks: Sequence[Chunk], seen_at: int | None = None) -> Ledger:
        """Have a worker note chunks and tell the others; gives its ledger."""
        ledgers = self.all[number]
        ledger = ledgers.get(FILE_HASH)
        pad = SeenCollector(FILE_HASH)
        pad.note_source(XORB, ChunkRange(0, len(CHUNKS)))
        ledger.note_source(XORB, ChunkRange(0, len(CHUNKS)))
        for chunk in chunks:
            pad.add(*chunk, seen_at or time.monotonic_ns())
            ledger.note(*chunk)
        ledgers.send(pad.take())
        return ledger

    def look(self, number: int) -> Ledger:
        """Have a worker look what there is of the file."""
        ledger = self.all[number].get(FILE_HASH)
        self.all[number].look_up(ledger)
        return ledger

    def prove(self, number: int) -> Ledger:
        """Have a worker see and prove the whole file."""
        ledger = self.see(number, CHUNKS)
        assert prove(ledger)
        self.all[number].send_proven(ledger)
        return ledger


@pytest.fixture
def workers() -> Workers:
    return Workers()


def wrong(chunk: Chunk) -> Chunk:
    return (*chunk[:2], WRONG)


def test_parts_that_several_have_seen_prove_the_file(workers: Workers) -> None:
    for number in range(3):
        workers.see(number, CHUNKS[number::3])
    for number in range(3):
        ledger = workers.look(number)
        assert ledger.can_be_proven(SIZE)
        assert prove(ledger)
        assert ledger.generation == 0


@given(st.lists(st.integers(0, 2), min_size=len(CHUNKS), max_size=len(CHUNKS)), st.randoms())
def test_whoever_looks_last_knows_all(owners: list[int], source: random.Random) -> None:
    """Each tells before it looks, in any order: the last one can judge, and finds what is wrong."""
    workers = Workers(3, 2 * bus_module.MARKS_SIZE + bus_module.SEEN_SIZE + ring_size(1 << 16))
    bad = source.choice(CHUNKS)
    parts: list[list[Chunk]] = [[], [], []]
    for chunk, owner in zip(CHUNKS, owners, strict=True):
        parts[owner].append(wrong(chunk) if chunk is bad else chunk)
    moves = [0, 1, 2, 0, 1, 2]  # each tells, then looks
    source.shuffle(moves)
    told: set[int] = set()
    judged = []
    for number in moves:
        if number not in told:
            told.add(number)
            workers.see(number, parts[number])
        elif (ledger := workers.look(number)).can_be_proven(SIZE):
            judged.append(prove(ledger))
        elif len(told) == 3:
            judged.append(ledger.generation == 0)  # another has found it before
    assert judged
    assert not any(judged)


def test_a_wrong_chunk_from_another_is_found_and_forgotten_by_all(workers: Workers) -> None:
    workers.see(0, [*CHUNKS[:50], wrong(CHUNKS[50]), *CHUNKS[51:100]])
    workers.see(1, CHUNKS[100:])
    late = workers.look(2)
    ledger = workers.look(1)
    assert ledger.can_be_proven(SIZE)
    assert not prove(ledger)
    assert ledger.sources == {XORB: ChunkRange(0, len(CHUNKS))}  # all that may have to be dropped
    assert late.can_be_proven(SIZE)
    for number in (0, 2):
        assert not workers.look(number).can_be_proven(SIZE)
        assert workers.look(number).generation == 1
    # It is proven by who reads it anew, and for all.
    for number in range(3):
        workers.see(number, CHUNKS[number::3])
    assert prove(workers.look(0))
    assert prove(workers.look(2))


def test_two_stories_from_two_workers_are_none(workers: Workers) -> None:
    workers.see(0, CHUNKS[:9])
    mine = workers.see(1, [wrong(CHUNKS[5])])
    workers.look(1)
    assert mine.generation == 1
    for number in (0, 2):
        ledger = workers.look(number)
        assert not ledger.can_be_proven(CHUNKS[9][0])
    workers.see(2, CHUNKS)
    assert prove(workers.look(1))


def test_what_was_seen_before_it_was_forgotten_does_not_come_back(workers: Workers) -> None:
    """A worker may have told of a chunk before another has forgotten all, and be heard
    afterwards.
    """
    before = time.monotonic_ns()
    workers.see(0, CHUNKS[:50])
    workers.see(0, [wrong(CHUNKS[5])])  # it forgets
    workers.see(1, [wrong(CHUNKS[7])], before)
    for number in range(3):
        workers.look(number)
    workers.see(2, CHUNKS)
    for number in range(3):
        assert prove(workers.look(number))


def test_a_cut_is_known_to_all(workers: Workers) -> None:
    now = time.monotonic()
    first, second, _ = workers.all
    assert not second.was_cut(FILE_HASH, now)
    first.note_cut(FILE_HASH, now)
    for ledgers in workers.all:
        assert ledgers.was_cut(FILE_HASH, now)
        assert ledgers.was_cut_since(FILE_HASH, now - 1)
        assert not ledgers.was_cut_since(FILE_HASH, now + 1)
        assert not ledgers.was_cut(WRONG, now)
    # And to one that begins later, in whoever's place.
    for number in (0, 2):
        assert workers.start(number).was_cut(FILE_HASH, now)
    second.note_cut(FILE_HASH, now + 5)
    assert first.was_cut_since(FILE_HASH, now + 5)


def test_a_cut_outlasts_any_number_of_dropped_ledgers(workers: Workers) -> None:
    """A worker or a server that begins within the hour has to know of it."""
    first, now = workers.all[0], time.monotonic()
    first.note_cut(FILE_HASH, now)
    first.note_client_cut(FILE_HASH, "client", now)
    for _ in range(3000):
        first._mark(FILE_HASH, time.monotonic_ns(), MarkKind.LOST)
    for number in (0, 1):
        late = workers.start(number)
        assert late.was_cut(FILE_HASH, now)
        assert late.was_client_cut(FILE_HASH, "client", now)
        assert late.was_lost_since(FILE_HASH, now)


def test_a_file_that_was_cut_is_suspect_until_it_is_proven(workers: Workers) -> None:
    now = time.monotonic()
    assert not workers.all[1].is_suspect(FILE_HASH, now)
    workers.all[0].note_cut(FILE_HASH, now)
    assert all(ledgers.is_suspect(FILE_HASH, now) for ledgers in workers.all)
    workers.see(0, CHUNKS[:50])
    assert all(ledgers.is_suspect(FILE_HASH, now) for ledgers in workers.all)
    later = now + ledgers_module.SUSPECT_SECONDS
    assert all(ledgers.is_suspect(FILE_HASH, later) for ledgers in workers.all)
    workers.prove(2)
    assert all(ledgers.is_suspect(FILE_HASH, later - 1) for ledgers in workers.all)
    assert not any(ledgers.is_suspect(FILE_HASH, later) for ledgers in workers.all)
    assert all(ledgers.was_cut(FILE_HASH, later) for ledgers in workers.all)


def test_a_whole_read_that_was_right_ends_the_doubt_without_a_ledger(workers: Workers) -> None:
    now = time.monotonic()
    workers.all[0].note_right(FILE_HASH, now)  # nobody had doubts
    workers.all[0].note_cut(FILE_HASH, now + 1)
    later = now + 2 + ledgers_module.SUSPECT_SECONDS
    assert all(ledgers.is_suspect(FILE_HASH, later) for ledgers in workers.all)
    workers.all[1].note_right(FILE_HASH, now + 2)
    assert all(ledgers.is_suspect(FILE_HASH, now + 2) for ledgers in workers.all)
    assert not any(ledgers.is_suspect(FILE_HASH, later) for ledgers in workers.all)
    workers.all[2].note_cut(FILE_HASH, later)
    later += ledgers_module.SUSPECT_SECONDS
    assert all(ledgers.is_suspect(FILE_HASH, later) for ledgers in workers.all)


def test_what_was_forgotten_because_it_was_wrong_counts_as_cut(workers: Workers) -> None:
    """Somebody may have got it, and be between two parts."""
    began = time.monotonic()
    workers.see(0, CHUNKS[:9])
    assert not workers.all[0].was_cut(FILE_HASH, began)
    workers.see(0, [wrong(CHUNKS[5])])
    assert all(ledgers.was_cut_since(FILE_HASH, began) for ledgers in workers.all)


def test_a_client_that_was_cut_is_known_until_it_gets_the_whole(workers: Workers) -> None:
    now = time.monotonic()
    first, second, _ = workers.all
    first.note_client_cut(FILE_HASH, "a", now)
    for ledgers in workers.all:
        assert ledgers.was_client_cut(FILE_HASH, "a", now)
        assert ledgers.was_client_cut(FILE_HASH, "a", now + ledgers_module.CUT_SECONDS - 1)
        assert not ledgers.was_client_cut(FILE_HASH, "a", now + ledgers_module.CUT_SECONDS)
        assert not ledgers.was_client_cut(FILE_HASH, "b", now)
        assert not ledgers.was_client_cut(WRONG, "a", now)
        assert not ledgers.was_cut(FILE_HASH, now)  # that is noted by itself
    second.note_client_right(FILE_HASH, "b", now + 1)  # it was never cut
    second.note_client_right(FILE_HASH, "a", now + 1)
    assert not any(ledgers.was_client_cut(FILE_HASH, "a", now + 2) for ledgers in workers.all)
    first.note_client_cut(FILE_HASH, "a", now + 3)
    assert all(ledgers.was_client_cut(FILE_HASH, "a", now + 4) for ledgers in workers.all)


def test_as_many_cuts_as_are_remembered_are_told(workers: Workers) -> None:
    now = time.monotonic()
    names = [number.to_bytes(32, "big") for number in range(ledgers_module.MAX_CUTS)]
    for name in names:
        workers.all[0].note_cut(name, now)
    assert all(workers.all[1].was_cut(name, now) for name in names)


def test_a_worker_that_begins_hears_what_there_is(workers: Workers) -> None:
    workers.see(0, CHUNKS[:100])
    workers.see(1, CHUNKS[100:])
    for number in (0, 1):
        workers.all[number] = workers.start(number)
        assert prove(workers.look(number))


def test_a_proven_list_is_there_for_all(workers: Workers) -> None:
    workers.prove(0)
    ledger = workers.look(1)
    assert ledger.is_proven
    assert all(ledger.matches(*chunk) for chunk in CHUNKS)
    workers.all[0] = workers.start(0)
    workers.all[0].receive()
    assert workers.look(0).is_proven


def test_who_has_noted_what_is_right_goes_on_when_it_is_proven_elsewhere(workers: Workers) -> None:
    mine = Ledgers().get(FILE_HASH)
    note_each(mine, [*CHUNKS[3:9], *CHUNKS[50:], *CHUNKS[12:20]])
    proven = workers.prove(0).get_chunks()
    assert proven is not None
    mine.adopt(proven)
    assert mine.is_proven
    assert mine.generation == 0


@pytest.mark.parametrize(
    "odd",
    [
        wrong(CHUNKS[50]),
        (CHUNKS[50][0], CHUNKS[50][1] + 1, CHUNKS[50][2]),
        (CHUNKS[50][0] + 1, CHUNKS[50][1] - 1, CHUNKS[50][2]),
        (SIZE, 5, WRONG),
        (CHUNKS[-1][0], CHUNKS[-1][1] + 1, CHUNKS[-1][2]),
    ],
    ids=["hash", "size", "place", "behind the end", "over the end"],
)
def test_who_has_noted_something_else_is_told(workers: Workers, odd: Chunk) -> None:
    mine = Ledgers().get(FILE_HASH)
    note_each(mine, [*CHUNKS[3:9], odd])
    proven = workers.prove(0).get_chunks()
    assert proven is not None
    mine.adopt(proven)
    assert mine.is_proven
    assert mine.generation == 1


def test_a_list_that_was_forgotten_somewhere_is_told_again(workers: Workers) -> None:
    proven = workers.prove(0)
    other = workers.all[1]
    other._proven.pop(proven.file_hash)  # as trim does
    assert proven.is_sent
    room = bus_module.LISTS_SIZE // 64  # and its place in the ring is overwritten
    rest = [Ledger(number.to_bytes(32, "big")) for number in range(70)]
    starts = array("Q", range(0, 131072 * (room // 36), 131072))
    for ledger in rest:
        hashes = bytes(32 * len(starts))
        workers.all[0]._worker_bus.send_list(  # type: ignore[union-attr]
            ledger.file_hash, ChunkList(starts, len(starts) * 131072, hashes)
        )
    workers.see(1, CHUNKS[:5])
    assert not workers.look(1).is_proven
    workers.all[0].receive()
    assert workers.look(1).is_proven


def test_who_gives_a_wrong_chunk_of_a_proven_file_away_is_seen(workers: Workers) -> None:
    now = time.monotonic()
    workers.prove(0)
    workers.see(1, [wrong(CHUNKS[5])])
    workers.all[0].receive()
    assert workers.look(0).is_proven
    for ledgers in workers.all:
        assert ledgers.was_cut_since(FILE_HASH, now)
        assert not ledgers.was_cut_since(FILE_HASH, time.monotonic())


def test_what_is_missed_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not listen for long misses what others tell, and so does one that begins
    late: both know.
    """
    small = ring_size(3000)
    monkeypatch.setattr(bus_module, "SEEN_SIZE", small)
    workers = Workers()
    for at in range(0, 190, 10):
        workers.see(0, CHUNKS[at : at + 10])
    ledger = workers.see(1, CHUNKS[190:])
    before = time.monotonic()
    assert not workers.all[1].was_lost_since(FILE_HASH, before)
    workers.look(1)
    assert not ledger.can_be_proven(SIZE)
    assert ledger.generation == 0
    workers.all[2] = workers.start(2)
    for ledgers, is_lost in zip(workers.all, (False, True, True), strict=True):
        assert ledgers.was_lost_since(FILE_HASH, before) is is_lost
        assert not ledgers.was_lost_since(FILE_HASH, time.monotonic())
    for at in range(0, 190, 10):
        workers.see(0, CHUNKS[at : at + 10])
        workers.look(1)
    assert prove(ledger)


def test_memory_is_bounded_whatever_others_tell() -> None:
    places = [memoryview(bytearray(PLACE_SIZE)) for _ in range(2)]
    teller, hearer = WorkerBus(places, 0), Ledgers(30_000, WorkerBus(places, 1))
    chunk_list = [chunk for _, _, chunk in CHUNKS]
    for number in range(50):
        name = number.to_bytes(32, "big")
        sizes = array("I", (size for _, size, _ in CHUNKS))
        seen = SeenChunks(
            name, XORB, ChunkRange(0, 9), time.monotonic_ns(), 0, sizes, b"".join(chunk_list)
        )
        teller.send_chunks([seen])
        hearer.receive()
    names = [number.to_bytes(32, "big") for number in range(50)]
    kept = [ledger for name in names if (ledger := hearer.find(name)) is not None]
    assert 0 < sum(ledger.nbytes for ledger in kept) == hearer.nbytes < 40_000


def test_damage_to_what_is_shared_is_no_damage_to_files(workers: Workers) -> None:
    """Whatever a process that went wild has written there: nothing is proven by it, nobody
    stumbles.
    """
    source = random.Random(1)
    for _ in range(30):
        workers.prove(0)
        workers.see(1, CHUNKS[:100])
        for place in workers.places:
            for _ in range(200):
                place[source.randrange(2 * bus_module.MARKS_SIZE + 5000)] = source.randrange(256)
        for number in range(3):
            ledger = workers.look(number)
            for chunk in CHUNKS:
                assert not ledger.is_proven or ledger.matches(*chunk)
        workers.all = [workers.start(number) for number in range(3)]


def test_one_worker_alone_tells_nobody() -> None:
    ledgers = Ledgers()
    ledger = ledgers.get(FILE_HASH)
    note_each(ledger, CHUNKS)
    ledgers.look_up(ledger)
    assert prove(ledger)
    ledgers.send_proven(ledger)
    ledgers.receive()
    assert not ledgers.is_shared
    assert not ledger.is_sent


def test_the_ledgers_used_last_stay() -> None:
    ledgers = Ledgers(max_memory=25_000)
    for number in range(4):
        ledger = ledgers.get(b"%d" % number * 32)
        for chunk in CHUNKS:
            ledger.note(*chunk)
        ledgers.get(b"0" * 32)
        ledgers.trim(ledger.file_hash)
    assert ledgers.get(b"0" * 32).is_complete(SIZE)
    assert ledgers.get(b"3" * 32).is_complete(SIZE)
    assert not ledgers.get(b"1" * 32).is_complete(SIZE)


def test_trimming_looks_at_one_ledger_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ledgers = Ledgers()
    for number in range(500):
        ledgers.get(number.to_bytes(32, "big"))
    looked_at: list[bytes] = []

    def look_at(ledger: Ledger) -> int:
        looked_at.append(ledger.file_hash)
        return 1

    monkeypatch.setattr(Ledger, "nbytes", property(look_at))
    ledgers.trim(bytes(32))
    assert looked_at == [bytes(32)]


def test_what_is_forgotten_of_files_that_are_not_proven_is_not_gone_on_with(
    workers: Workers,
) -> None:
    """Who holds the URLs from before would end without a proof."""
    first, second, _ = workers.all
    before = time.monotonic()
    for number in range(4):
        ledger = first.get(b"%d" % number * 32)
        for chunk in CHUNKS:
            ledger.note(*chunk)
        ledger.is_proven = number == 3
        first.trim(ledger.file_hash)
    second.get(b"0" * 32).note(*CHUNKS[0])
    first._max_memory = 2 * ledger.nbytes
    first.get(b"0" * 32)
    first.trim(b"0" * 32)
    for ledgers in (first, second):
        lost = [ledgers.was_lost_since(b"%d" % number * 32, before) for number in range(4)]
        assert lost == [False, True, False, True]  # the proven one goes first, then the oldest
        assert not ledgers.was_lost_since(b"1" * 32, time.monotonic())
        assert not ledgers.was_cut_since(b"1" * 32, before)
        assert not ledgers.is_suspect(b"1" * 32, time.monotonic())  # nothing is known to be wrong
    assert second.get(b"0" * 32).has_chunks


def test_more_losses_than_are_remembered_are_of_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers_module, "MAX_CUTS", 2)
    ledgers, before = Ledgers(), time.monotonic()
    for number in range(3):
        assert not ledgers.was_cut_since(b"y" * 32, before)
        ledgers.note_cut(b"%d" % number * 32, time.monotonic())
    assert ledgers.was_cut_since(b"y" * 32, before)
    assert not ledgers.was_cut_since(b"y" * 32, time.monotonic())
    assert not ledgers.was_cut(b"y" * 32, time.monotonic())


@pytest.mark.parametrize("first", [0, 1])
def test_chunks_of_a_huge_file_that_are_not_remembered_are_lost(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first chunk somebody begins anew; the others before those that are known are not
    looked at.
    """
    monkeypatch.setattr(ledger_module, "MAX_FILE_MEMORY", 100 * CHUNK_COST)
    ledgers, before = Ledgers(), time.monotonic()
    ledger = ledgers.get(FILE_HASH)
    for chunk in CHUNKS[:150]:
        ledger.note(*chunk)
    ledgers.trim(FILE_HASH)
    assert not ledgers.was_lost_since(FILE_HASH, before)
    ledger.note(*CHUNKS[first])
    ledgers.trim(FILE_HASH)
    assert ledgers.was_lost_since(FILE_HASH, before)
    assert not ledgers.was_lost_since(FILE_HASH, time.monotonic())
    assert ledgers.find(FILE_HASH) is ledger


def test_what_is_known_of_a_file_that_is_too_large_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "MAX_FILE_MEMORY", 100 * CHUNK_COST)
    ledgers, before = Ledgers(), time.monotonic()
    ledger = ledgers.get(FILE_HASH)
    for chunk in CHUNKS[1:]:
        ledger.note(*chunk)
    assert ledger.is_full
    ledgers.trim(FILE_HASH)
    assert ledgers.was_lost_since(FILE_HASH, before)
    assert ledgers.find(FILE_HASH) is None  # whoever begins anew is luckier


@pytest.mark.parametrize("is_right", [True, False])
def test_who_was_given_something_else_before_the_file_was_proven_elsewhere_is_cut(
    is_right: bool,
) -> None:
    there, here = Ledgers(), Ledgers()
    proven, noted = there.get(FILE_HASH), here.get(FILE_HASH)
    for chunk in CHUNKS:
        proven.note(*chunk)
    assert prove(proven)
    chunks = proven.get_chunks()
    assert chunks is not None
    before = time.monotonic()
    noted.note(*(CHUNKS[5] if is_right else wrong(CHUNKS[5])))
    noted.adopt(chunks)
    assert noted.is_proven
    assert here.was_cut_since(FILE_HASH, before) is not is_right


def test_cuts_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers_module, "MAX_CUTS", 2)
    ledgers = Ledgers()
    ledgers.note_cut(FILE_HASH, 100.0)
    assert ledgers.was_cut(FILE_HASH, 100.0 + ledgers_module.CUT_SECONDS - 1)
    assert not ledgers.was_cut(FILE_HASH, 100.0 + ledgers_module.CUT_SECONDS)
    assert not ledgers.was_cut(bytes(32), 100.0)
    for number in range(2):
        ledgers.note_cut(bytes([number]) * 32, 101.0)
    assert not ledgers.was_cut(FILE_HASH, 101.0)
