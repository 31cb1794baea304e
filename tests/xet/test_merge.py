"""Reconstructions put together: whatever is known of a file, what comes out builds the same
bytes.
"""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeAccess, FakeCas, FakeFile, FakeXorb
from xetserve.xet.merge import Part, join_parts
from xetserve.xet.reconstruction import (
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
)

SOURCE = random.Random(3)


def make_xorb(sizes: list[int]) -> FakeXorb:
    return FakeXorb.make([SOURCE.randbytes(size) for size in sizes])


ONE = make_xorb([100, 50, 80, 20, 70, 90])
TWO = make_xorb([60, 60, 10])
FILE = FakeFile(
    [
        (ONE, ChunkRange(0, 5)),
        (TWO, ChunkRange(1, 3)),
        (ONE, ChunkRange(2, 6)),
        (ONE, ChunkRange(0, 1)),
    ]
)
SIZE = len(FILE.content)
XORBS = {xorb.xorb_hash: xorb for xorb in (ONE, TWO)}


def ask(asked: ByteRange, *, trims: bool = True) -> Part:
    cas = FakeCas(FILE, trims=trims)
    answer = asyncio.run(cas.fetch_reconstruction(FakeAccess(), FILE.file_hash, asked))
    return Part(asked.start, answer)


def build(answer: Reconstruction) -> bytes:
    """Build the bytes, from the fetch ranges that the answer names."""
    data = b""
    for term in answer.terms:
        info = answer.find_fetch_info(term)
        assert info.byte_range == XORBS[term.xorb_hash].byte_range(info.chunks)
        piece = b"".join(XORBS[term.xorb_hash].chunks[term.chunks.start : term.chunks.end])
        assert len(piece) == term.decoded_size
        data += piece
    return data[answer.offset_into_first_range :]


@st.composite
def ranges(draw: st.DrawFn) -> ByteRange:
    start = draw(st.integers(0, SIZE - 1))
    return ByteRange(start, draw(st.integers(start + 1, SIZE)))


@given(st.lists(st.tuples(ranges(), st.booleans()), max_size=8), ranges())
def test_what_is_joined_builds_the_file(
    known: list[tuple[ByteRange, bool]], asked: ByteRange
) -> None:
    joined = join_parts([ask(one, trims=trims) for one, trims in known], asked)
    if joined is None:
        return
    built = build(joined)
    assert built == FILE.content[asked.start : asked.start + len(built)]
    assert len(built) == joined.decoded_size >= asked.size
    assert joined.offset_into_first_range < joined.terms[0].decoded_size


@given(st.integers(1, SIZE), st.integers(0, 60), ranges())
def test_windows_that_follow_each_other_cover_all(size: int, more: int, asked: ByteRange) -> None:
    windows = [
        ask(ByteRange(start, min(start + size + more, SIZE))) for start in range(0, SIZE, size)
    ]
    joined = join_parts(windows, asked)
    assert joined is not None
    assert build(joined)[: asked.size] == FILE.content[asked.start : asked.end]


def test_small_parts_come_first() -> None:
    whole, small = ask(ByteRange(0, SIZE)), ask(ByteRange(100, 150))
    joined = join_parts([whole, small], ByteRange(100, 150))
    assert joined is not None
    assert joined.terms == (Term(ONE.xorb_hash, ChunkRange(1, 2), 50),)


def test_a_chunk_that_both_have_is_given_once() -> None:
    joined = join_parts([ask(ByteRange(0, 120)), ask(ByteRange(120, 320))], ByteRange(0, 320))
    assert joined is not None
    assert [term.chunks for term in joined.terms] == [ChunkRange(0, 2), ChunkRange(2, 5)]


@pytest.mark.parametrize(
    "known",
    [
        pytest.param([], id="nothing"),
        pytest.param([ByteRange(0, 100)], id="the end is missing"),
        pytest.param([ByteRange(150, 300)], id="the start is missing"),
        pytest.param([ByteRange(0, 100), ByteRange(150, 300)], id="a hole"),
    ],
)
def test_what_is_not_covered_is_not_known(known: list[ByteRange]) -> None:
    assert join_parts([ask(one) for one in known], ByteRange(10, 250)) is None


def test_parts_that_do_not_fit_are_not_joined() -> None:
    """Another xorb has the same chunks, cut elsewhere: where one ends the other has no boundary."""
    first = ask(ByteRange(0, 100))
    info = FetchInfo(ChunkRange(0, 9), ByteRange(0, 900), "http://data.test/x")
    other = Reconstruction(0, (Term(bytes(32), ChunkRange(0, 9), 320),), {bytes(32): (info,)})
    assert join_parts([first, Part(0, other)], ByteRange(0, 320)) == other
    other = other._replace(terms=(Term(bytes(32), ChunkRange(0, 9), 270),))
    assert join_parts([first, Part(50, other)], ByteRange(0, 320)) is None
