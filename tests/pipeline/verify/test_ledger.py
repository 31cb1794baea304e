"""What is remembered of a file's chunks, and when it is proof."""

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.verify.ledger_chunks import (
    CHUNKS,
    FILE_HASH,
    SIZE,
    Chunk,
    make_file,
    note_each,
    prove,
)
from xetserve.pipeline.verify import ledger as ledger_module
from xetserve.pipeline.verify.ledger import Ledger
from xetserve.pipeline.verify.worker_records import SeenChunks
from xetserve.xet.reconstruction import ChunkRange


def test_the_example_of_the_module() -> None:
    file_hash, size, chunks = make_file([10, 20, 5, 25])
    assert [position for position, _, _ in chunks] == [0, 10, 30, 35]
    wrong = (30, 5, bytes(32))
    ledger = Ledger(file_hash)
    note_each(ledger, [*chunks[2:], chunks[0]])
    assert not ledger.can_be_proven(size)
    note_each(ledger, [chunks[1]])
    assert ledger.can_be_proven(size)
    assert prove(ledger)
    assert not ledger.matches(*wrong)
    ledger = Ledger(file_hash)
    note_each(ledger, [wrong, chunks[3], chunks[0], chunks[1]])
    assert not prove(ledger)
    assert not ledger.has_chunks
    note_each(ledger, [chunks[0], wrong, chunks[2]])
    assert not ledger.has_chunks
    assert ledger.generation == 2


@pytest.mark.parametrize("seed", range(10))
def test_chunks_in_any_order_make_the_file(seed: int) -> None:
    chunks = CHUNKS * 2
    random.Random(seed).shuffle(chunks)
    ledger = Ledger(FILE_HASH)
    seen: set[Chunk] = set()
    for chunk in chunks:
        assert ledger.is_complete(SIZE) == (len(seen) == len(CHUNKS))
        ledger.note(*chunk)
        seen.add(chunk)
    assert ledger.is_complete(SIZE)
    assert not ledger.is_complete(SIZE + 1)
    assert prove(ledger)
    assert all(ledger.matches(*chunk) for chunk in CHUNKS)
    assert ledger.generation == 0


def test_a_proven_list_says_what_is_wrong() -> None:
    ledger = Ledger(FILE_HASH)
    for chunk in CHUNKS:
        ledger.note(*chunk)
    prove(ledger)
    position, size, chunk_hash = CHUNKS[17]
    assert not ledger.matches(position, size, bytes(32))
    assert not ledger.matches(position + 1, size, chunk_hash)
    assert not ledger.matches(position, size + 1, chunk_hash)
    assert not ledger.matches(SIZE, size, chunk_hash)
    ledger.note(position, size, bytes(32))  # whatever is said now does not count
    assert ledger.is_proven
    assert ledger.matches(*CHUNKS[17])


def test_folding_keeps_up_with_what_is_noted() -> None:
    ledger = Ledger(FILE_HASH)
    for chunk in CHUNKS:
        ledger.note(*chunk)
        ledger.fold(1)
    assert not ledger.fold(1)
    assert ledger.prove()


def test_one_wrong_chunk_is_found_when_the_list_is_complete() -> None:
    ledger = Ledger(FILE_HASH)
    for position, size, chunk_hash in CHUNKS:
        ledger.note(position, size, chunk_hash if position != CHUNKS[3][0] else bytes(32))
    assert not prove(ledger)
    assert not ledger.is_complete(SIZE)
    assert ledger.generation == 1
    for chunk in CHUNKS:
        ledger.note(*chunk)
    assert prove(ledger)


@pytest.mark.parametrize(
    "odd",
    [
        (CHUNKS[5][0], CHUNKS[5][1], bytes(32)),
        (CHUNKS[5][0], CHUNKS[5][1] + 1, CHUNKS[5][2]),
        (CHUNKS[5][0] + 1, 1, bytes(32)),
    ],
    ids=["hash", "size", "place"],
)
def test_two_stories_are_none(odd: Chunk) -> None:
    ledger = Ledger(FILE_HASH)
    for chunk in CHUNKS[:10]:
        ledger.note(*chunk)
    ledger.note(*odd)
    assert ledger.generation == 1
    assert not ledger.is_complete(CHUNKS[10][0])


def test_a_chunk_that_reaches_into_the_next_is_a_contradiction() -> None:
    ledger = Ledger(FILE_HASH)
    ledger.note(100, 50, bytes(32))
    ledger.note(0, 101, bytes(32))
    assert ledger.generation == 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 100 chunks only."""
    monkeypatch.setattr(ledger_module, "MAX_FILE_MEMORY", 5000)
    monkeypatch.setattr(ledger_module, "FOLDED_AWAY", 30)


def in_about_order(seed: int) -> list[Chunk]:
    """The chunks as parallel readers come by them."""
    source = random.Random(seed)
    order = sorted(range(len(CHUNKS)), key=lambda number: number + source.randrange(40))
    return [CHUNKS[number] for number in order]


def note_seen(ledger: Ledger, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        ledger.note_source(b"x" * 32, ChunkRange(5, 6))
        ledger.note(*chunk)
        assert ledger.nbytes <= 5000 + 100


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(5))
def test_a_huge_file_that_is_read_in_about_its_order_is_proven(seed: int) -> None:
    ledger = Ledger(FILE_HASH)
    chunks = in_about_order(seed)
    note_seen(ledger, chunks[:-1])
    assert not ledger.can_be_proven(SIZE)
    note_seen(ledger, [CHUNKS[5], chunks[-1], CHUNKS[20]])  # some come again
    assert ledger.can_be_proven(SIZE)
    assert not ledger.is_complete(SIZE)
    assert prove(ledger)
    assert not ledger.is_proven  # there is no list
    assert ledger.sources == {}
    assert ledger.generation == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("wrong", [0, 7, 120, 199])
def test_a_wrong_chunk_of_a_huge_file_is_found(wrong: int) -> None:
    ledger = Ledger(FILE_HASH)
    chunks = [(a, b, bytes(32) if a == CHUNKS[wrong][0] else h) for a, b, h in in_about_order(1)]
    note_seen(ledger, chunks)
    assert ledger.can_be_proven(SIZE)
    assert not prove(ledger)
    assert list(ledger.sources) == [b"x" * 32]
    assert ledger.generation == 1
    note_seen(ledger, in_about_order(2))
    assert prove(ledger)


@pytest.mark.usefixtures("small")
def test_whoever_begins_a_huge_file_anew_is_checked_anew() -> None:
    ledger = Ledger(FILE_HASH)
    note_seen(ledger, CHUNKS[:150])
    position, size, _ = CHUNKS[40]
    note_seen(ledger, [*CHUNKS[:40], (position, size, bytes(32)), *CHUNKS[41:]])
    assert ledger.can_be_proven(SIZE)
    assert not prove(ledger)


@pytest.mark.usefixtures("small")
def test_a_huge_file_that_is_not_read_from_its_beginning_is_not_remembered() -> None:
    ledger = Ledger(FILE_HASH)
    note_seen(ledger, CHUNKS[1:])
    assert ledger.is_full
    assert ledger.sources == {}
    assert not ledger.can_be_proven(SIZE)
    assert ledger.nbytes < 2000


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.randoms())
def test_ranges_of_chunks_meet(sizes: list[int], source: random.Random) -> None:
    file_hash, size, chunks = make_file(sizes)
    ledger = Ledger(file_hash)
    while not ledger.is_complete(size):
        first = source.randrange(len(chunks))
        for chunk in chunks[first : source.randrange(first, len(chunks)) + 1]:
            ledger.note(*chunk)
    assert prove(ledger)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12), st.booleans()), max_size=25),
    st.sampled_from([5000, 1 << 20]),
)
def test_notes_of_others_are_noted_as_ones_own(
    moves: list[tuple[int, int, bool]], max_memory: int
) -> None:
    """Chunks that come at once make the same of a ledger as one by one, whatever was there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_module, "MAX_FILE_MEMORY", max_memory)
        patch.setattr(ledger_module, "FOLDED_AWAY", 30)
        one, other = Ledger(FILE_HASH), Ledger(FILE_HASH)
        for first, count, is_wrong in moves:
            chunks = CHUNKS[first : first + count]
            hashes = b"".join(chunk_hash for _, _, chunk_hash in chunks)
            if is_wrong:
                hashes = bytes(32) + hashes[32:]
            sizes = array("I", (size for _, size, _ in chunks))
            seen = SeenChunks(
                FILE_HASH, b"x" * 32, ChunkRange(0, 9), 5, chunks[0][0], sizes, hashes
            )
            one.note_seen(seen)
            other.note_source(seen.xorb_hash, seen.chunks)
            note_each(other, list(seen.each()))
            assert repr(one) == repr(other)
            assert (one.generation, one.nbytes) == (other.generation, other.nbytes)
            assert [one.can_be_proven(end) for end, _, _ in CHUNKS] == [
                other.can_be_proven(end) for end, _, _ in CHUNKS
            ]
        assert state(one) == state(other)


def state(ledger: Ledger) -> list[object]:
    return [(run.start, run.end, run.starts, run.hashes) for run in ledger._runs]
