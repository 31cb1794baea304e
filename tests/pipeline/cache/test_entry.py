"""The file of an entry: its index, and its name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.cache.cache_site import SMALL
from xetserve.errors import FormatError
from xetserve.pipeline.cache.entry import (
    EntryKey,
    Indexer,
    index_size,
    make_entry_name,
    parse_entry_name,
    parse_index,
)
from xetserve.xet.reconstruction import ChunkRange


def make_entry(key: EntryKey, records: list[bytes]) -> bytes:
    indexer = Indexer(key)
    for record in records:
        indexer.feed(memoryview(record))
    assert indexer.is_complete
    return b"".join(records) + indexer.make_index().pack()


KEY = EntryKey(SMALL.xorb_hash, ChunkRange(2, 9), SMALL.byte_range(ChunkRange(2, 9)))


@given(sizes=st.lists(st.integers(1, 700)))
def test_an_index_does_not_depend_on_how_the_bytes_come(sizes: list[int]) -> None:
    data = memoryview(b"".join(SMALL.records[2:9]))
    indexer = Indexer(KEY)
    at = 0
    for size in [*sizes, len(data)]:
        indexer.feed(data[at : at + size])
        at += size
    whole = Indexer(KEY)
    whole.feed(data)
    assert indexer.is_complete
    assert indexer.make_index().pack() == whole.make_index().pack()


def test_an_index_reads_as_it_was_written() -> None:
    entry = make_entry(KEY, SMALL.records[2:9])
    tail = entry[-index_size(KEY.chunks) :]
    assert len(entry) == KEY.file_size
    index = parse_index(tail, KEY.xorb_hash, KEY.chunks, len(entry))
    assert index.key == KEY
    assert index.offset_of(2) == 0
    assert index.position_of(5) == SMALL.byte_range(ChunkRange(5, 6)).start
    assert index.is_intact(memoryview(b"".join(SMALL.records[4:7])), 4, 7)
    assert not index.is_intact(memoryview(b"".join(SMALL.records[4:8])), 4, 7)


@pytest.mark.parametrize(
    ("xorb_hash", "chunks", "more"),
    [
        pytest.param(b"x" * 32, KEY.chunks, 0, id="another xorb"),
        pytest.param(KEY.xorb_hash, ChunkRange(3, 10), 0, id="other chunks"),
        pytest.param(KEY.xorb_hash, ChunkRange(2, 8), 0, id="fewer chunks"),
        pytest.param(KEY.xorb_hash, KEY.chunks, 1, id="another size"),
    ],
)
def test_the_index_of_something_else_is_refused(
    xorb_hash: bytes, chunks: ChunkRange, more: int
) -> None:
    entry = make_entry(KEY, SMALL.records[2:9])
    with pytest.raises(FormatError):
        parse_index(entry[-index_size(KEY.chunks) :], xorb_hash, chunks, len(entry) + more)


def test_names_read_as_they_were_written() -> None:
    assert parse_entry_name(make_entry_name(ChunkRange(0, 812), bytes(8))) == (0, 812)
    assert parse_entry_name("0-812.xc") is None
