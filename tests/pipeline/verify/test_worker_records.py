"""What workers tell each other, as bytes and before."""

import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.verify.ledger_chunks import CHUNKS, FILE_HASH
from xetserve.errors import FormatError
from xetserve.pipeline.verify.worker_records import (
    MARK_SIZE,
    MAX_SEEN,
    Mark,
    MarkKind,
    SeenChunks,
    SeenCollector,
    pack_mark,
    pack_seen,
    parse_mark,
    parse_seen,
)
from xetserve.xet.reconstruction import ChunkRange

XORB = b"x" * 32

hashes = st.binary(min_size=32, max_size=32)
words = st.integers(0, 2**64 - 1)
half_words = st.integers(0, 2**32 - 1)


@st.composite
def notes(draw: st.DrawFn) -> SeenChunks:
    chunks = draw(st.lists(st.tuples(half_words, hashes), max_size=9))
    return SeenChunks(
        draw(hashes),
        draw(hashes),
        ChunkRange(draw(half_words), draw(half_words)),
        draw(words),
        draw(words),
        array("I", (size for size, _ in chunks)),
        b"".join(chunk_hash for _, chunk_hash in chunks),
    )


@given(notes())
def test_a_note_is_read_as_it_was_written(seen: SeenChunks) -> None:
    assert parse_seen(pack_seen(seen)) == seen
    assert parse_seen(memoryview(pack_seen(seen))) == seen


@given(notes(), st.data())
def test_a_note_of_another_size_is_none(seen: SeenChunks, data: st.DataObject) -> None:
    packed = pack_seen(seen)
    other = data.draw(
        st.one_of(
            st.integers(0, len(packed) - 1).map(lambda size: packed[:size]),
            st.binary(min_size=1, max_size=80).map(lambda more: packed + more),
        )
    )
    with pytest.raises(FormatError):
        parse_seen(other)


@given(st.binary(max_size=200))
def test_anything_else_is_none(data: bytes) -> None:
    for parse in (parse_seen, parse_mark):
        try:
            parse(data)
        except FormatError:
            continue
        assert len(data) >= MARK_SIZE


@given(st.builds(Mark, hashes, words, st.sampled_from(MarkKind)))
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    assert parse_mark(pack_mark(mark)) == mark
    with pytest.raises(FormatError):
        parse_mark(pack_mark(mark) + b"\0")


def test_a_mark_of_no_kind_is_none() -> None:
    with pytest.raises(FormatError, match="kind 9"):
        parse_mark(pack_mark(Mark(FILE_HASH, 5, MarkKind.CUT))[:-4] + b"\x09\0\0\0")


@pytest.mark.parametrize("seed", range(5))
def test_a_pad_has_all_chunks_in_as_few_notes_as_it_takes(seed: int) -> None:
    pad, source = SeenCollector(FILE_HASH), random.Random(seed)
    places = [0, 60, 130]  # one range of a xorb may be used at several places of a file
    for step in range(50):
        pad.note_source(XORB, ChunkRange(step, step + 1))
        for place in places:
            pad.add(*CHUNKS[place + step], 1000 + step)
    taken = pad.take()
    assert sorted(seen.position for seen in taken) == [CHUNKS[place][0] for place in places]
    expected = {CHUNKS[place + step] for place in places for step in range(50)}
    assert {chunk for seen in taken for chunk in seen.each()} == expected
    assert {seen[:4] for seen in taken} == {(FILE_HASH, XORB, ChunkRange(0, 50), 1000)}
    assert pad.take() == []
    # What comes next is another note, from the same xorb if nothing else is said.
    number = source.randrange(len(CHUNKS))
    pad.add(*CHUNKS[number], 2000)
    (seen,) = pad.take()
    assert (seen.xorb_hash, list(seen.each())) == (XORB, [CHUNKS[number]])


def test_a_note_is_of_one_xorb() -> None:
    pad = SeenCollector(FILE_HASH)
    for number in range(6):
        pad.note_source(bytes([number // 2 + 1]) * 32, ChunkRange(7 + number % 2, 8 + number % 2))
        pad.add(*CHUNKS[number], 5)
    taken = pad.take()
    assert [seen.xorb_hash[0] for seen in taken] == [1, 2, 3]
    assert {seen.chunks for seen in taken} == {ChunkRange(7, 9)}
    assert [chunk for seen in taken for chunk in seen.each()] == CHUNKS[:6]


def test_a_chunk_that_comes_twice_is_told_twice() -> None:
    pad = SeenCollector(FILE_HASH)
    for _ in range(3):
        pad.add(*CHUNKS[4], 5)
    assert [chunk for seen in pad.take() for chunk in seen.each()] == [CHUNKS[4]] * 3


def test_a_note_has_a_bound() -> None:
    pad = SeenCollector(FILE_HASH)
    for number in range(MAX_SEEN * 2 + 1):
        pad.add(number, 1, bytes(32), number)
    taken = pad.take()
    assert [len(seen.sizes) for seen in taken] == [MAX_SEEN, MAX_SEEN, 1]
    assert [(seen.seen_at, seen.position) for seen in taken] == [
        (at, at) for at in (0, MAX_SEEN, 2 * MAX_SEEN)
    ]
