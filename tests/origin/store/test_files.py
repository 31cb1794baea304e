import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.origin.client import XorbFile, pieces
from xetserve.errors import IntegrityError
from xetserve.http.ranges import Span
from xetserve.origin.store.blobs import TemporaryFiles
from xetserve.origin.store.files import (
    FileRecord,
    FileStore,
    find_whole_terms,
    make_file_record,
    merge_ranges,
)
from xetserve.origin.store.xorbs import XorbStore
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import MerkleTree, hash_chunk
from xetserve.xet.reconstruction import ChunkRange, Term

source = random.Random(7)
XORBS = [
    XorbFile([source.randbytes(source.randrange(1, 400)) for _ in range(12)], scheme)
    for scheme in (Scheme.NONE, Scheme.BG4_LZ4)
]
# Repeats, overlaps, and going back.
RUNS = [(0, 2, 6), (1, 0, 3), (0, 4, 8), (0, 2, 6), (1, 2, 3), (1, 11, 12)]


def make_term(xorb: XorbFile, start: int, end: int) -> Term:
    size = sum(map(len, xorb.chunks[start:end]))
    return Term(xorb.tree.xorb_hash(), ChunkRange(start, end), size)


def make_record() -> tuple[FileRecord, bytes]:
    """A file over both xorbs, and its content."""
    tree = MerkleTree()
    parts = [chunk for which, start, end in RUNS for chunk in XORBS[which].chunks[start:end]]
    for part in parts:
        tree.add(hash_chunk(part), len(part))
    terms = (make_term(XORBS[which], start, end) for which, start, end in RUNS)
    return make_file_record(tree.file_hash(), terms, "ab" * 32), b"".join(parts)


RECORD, CONTENT = make_record()


@pytest.fixture
async def stores(tmp_path: Path) -> tuple[FileStore, XorbStore]:
    temporary = TemporaryFiles(tmp_path / "tmp")
    xorbs = XorbStore(tmp_path, temporary)
    for xorb in XORBS:
        await xorbs.put(xorb.tree.xorb_hash(), pieces(xorb.xorb))
    return FileStore(tmp_path, temporary, xorbs), xorbs


@pytest.fixture
def files(stores: tuple[FileStore, XorbStore]) -> FileStore:
    return stores[0]


def spans() -> list[Span]:
    """Ranges at and around every cut, and some others."""
    cuts = {0, len(CONTENT), *RECORD.term_ends}
    ends = sorted({cut + by for cut in cuts for by in (-1, 0, 1)} & set(range(len(CONTENT) + 1)))
    pairs = [(a, b) for a in ends for b in ends if a < b]
    samples = [source.sample(range(len(CONTENT)), 2) for _ in range(50)]
    pairs += [(min(two), max(two)) for two in samples]
    return [Span(*pair) for pair in pairs]


async def read(files: FileStore, span: Span) -> bytes:
    return b"".join([part async for block in files.read(RECORD, span) for part in block])


async def test_any_range_is_read_back(files: FileStore) -> None:
    for span in spans():
        assert await read(files, span) == CONTENT[span.start : span.end]


async def test_terms_are_cut_to_the_chunks_that_are_needed(files: FileStore) -> None:
    for span in spans():
        offset, terms = await files.find_terms(RECORD, span)
        chunks = [
            chunk
            for term in terms
            for xorb in XORBS
            if xorb.tree.xorb_hash() == term.xorb_hash
            for chunk in xorb.chunks[slice(*term.chunks)]
        ]
        content = b"".join(chunks)
        assert sum(term.decoded_size for term in terms) == len(content)
        assert content[offset : offset + span.size] == CONTENT[span.start : span.end]
        assert offset < len(chunks[0])
        assert offset + span.size > len(content) - len(chunks[-1])


def test_whole_terms_are_left_as_they_are() -> None:
    for span in spans():
        offset, terms = find_whole_terms(RECORD, span)
        first = RECORD.terms.index(terms[0])
        assert set(terms) <= set(RECORD.terms)
        assert offset < terms[0].decoded_size
        size = sum(term.decoded_size for term in terms)
        assert size - terms[-1].decoded_size < offset + span.size <= size
        assert first <= len(RECORD.terms) - len(terms)


async def test_no_bytes_need_no_terms(files: FileStore) -> None:
    assert await files.find_terms(RECORD, Span(5, 5)) == (0, [])
    assert await read(files, Span(0, 0)) == b""


async def test_fetch_ranges_hold_every_term_and_do_not_touch(files: FileStore) -> None:
    ranges = await files.find_fetch_ranges(RECORD.terms)
    for term in RECORD.terms:
        assert sum(chunks.contains(term.chunks) for chunks, _ in ranges[term.xorb_hash]) == 1
    first, second = (ranges[xorb.tree.xorb_hash()] for xorb in XORBS)
    assert [chunks for chunks, _ in first] == [(2, 8)]
    assert [chunks for chunks, _ in second] == [(0, 3), (11, 12)]
    start, end = second[1][1]
    assert end == len(XORBS[1].xorb)
    assert XORBS[1].xorb[start:].startswith(b"\0")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), min_size=1))
def test_merged_ranges_are_the_same_chunks(pairs: list[tuple[int, int]]) -> None:
    ranges = [ChunkRange(start, start + size) for start, size in pairs]
    merged = merge_ranges(ranges)
    assert {n for chunks in ranges for n in range(*chunks)} == {
        n for chunks in merged for n in range(*chunks)
    }
    assert all(a.end < b.start for a, b in itertools.pairwise(merged))


async def test_a_record_outlives_a_restart(
    stores: tuple[FileStore, XorbStore], tmp_path: Path
) -> None:
    files, xorbs = stores
    assert files.put(RECORD)
    fresh = FileStore(tmp_path, TemporaryFiles(tmp_path / "tmp"), xorbs)
    assert await fresh.get(RECORD.file_hash) == RECORD
    assert await fresh.get(bytes(32)) is None


async def test_the_first_record_of_a_file_stays(files: FileStore) -> None:
    assert files.put(RECORD)
    assert not files.put(make_file_record(RECORD.file_hash, (), None))
    assert await files.get(RECORD.file_hash) == RECORD


async def test_a_chunk_that_was_changed_on_disk_breaks_the_read(
    files: FileStore, tmp_path: Path
) -> None:
    path = tmp_path / "xorbs" / XORBS[0].xorb_name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # outside of what the file uses
    path.write_bytes(data)
    assert await read(files, Span(0, len(CONTENT))) == CONTENT
    data[sum(map(len, XORBS[0].chunks[:3])) + 40] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged on disk"):
        await read(files, Span(0, len(CONTENT)))
