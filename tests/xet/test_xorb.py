import base64
import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.errors import FormatError
from xetserve.xet.compression import Scheme, encode_payload
from xetserve.xet.hashes import MerkleTree, format_hash, hash_chunk, hash_range
from xetserve.xet.xorb import (
    CHUNK_HEADER_SIZE,
    FOOTER_IDENT,
    MAX_CHUNK_SIZE,
    MAX_PACKED_SIZE,
    MAX_RECORD_SIZE,
    MAX_XORB_SIZE,
    ChunkHeader,
    ChunkRecord,
    RecordReader,
    iter_records,
    make_chunk_header,
    pack_chunk,
    parse_chunk_header,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/xorbs.json").read_text())


def cases(group: str) -> list[Any]:
    found: list[Any] = VECTORS[group]["cases"]
    return found


XORBS = cases("xorbs_from_official_client") + cases("xorb_hand_made")
xorbs = pytest.mark.parametrize("case", XORBS, ids=lambda case: case.get("name", "hand-made"))


def xorb_bytes(case: dict[str, Any]) -> bytes:
    return base64.b64decode(case["xorb_base64"])


def decode_all(data: bytes) -> list[bytes]:
    return [bytes(record.decode()) for record in iter_records(data)]


def freeze(records: Iterator[ChunkRecord]) -> list[tuple[ChunkHeader, bytes]]:
    """Copy records out of a buffer that is about to change."""
    return [(record.header, bytes(record.payload)) for record in records]


def read_in_pieces(
    data: bytes, pieces: Iterator[int], capacity: int
) -> list[tuple[ChunkHeader, bytes]]:
    """Receive data piece by piece into slabs, as a connection does.

    What is left of a full slab moves to the front of a new one; the old one is wiped.
    """
    reader = RecordReader()
    slab = bytearray(capacity)
    filled = received = 0
    records = []
    while received < len(data):
        if filled == capacity:
            rest = slab[reader.position : filled]
            slab[:] = b"\xee" * capacity
            slab = bytearray(rest) + bytearray(capacity - len(rest))
            filled = len(rest)
            reader.move_to(0)
        piece = data[received : received + min(next(pieces), capacity - filled)]
        slab[filled : filled + len(piece)] = piece
        filled += len(piece)
        received += len(piece)
        records += freeze(reader.scan(memoryview(slab), filled))
    assert reader.num_records == len(records)
    return records


# Real xorbs


@xorbs
def test_records_lie_where_the_official_client_put_them(case: dict[str, Any]) -> None:
    data = xorb_bytes(case)
    assert len(data) == case.get("xorb_length", len(data))
    offset = 0
    for record, chunk in zip(iter_records(data), case["chunks"], strict=True):
        assert offset == chunk["record_start"]
        assert record.header.scheme == chunk["scheme"]
        assert record.header.decoded_size == chunk["uncompressed_length"]
        offset += record.header.record_size
        assert offset == chunk["record_end"]
        assert parse_chunk_header(data, chunk["record_start"]) == record.header
        assert format_hash(hash_chunk(record.decode())) == chunk["hash"]
    assert offset == len(data)


@xorbs
def test_chunks_hash_to_the_xorb_hash(case: dict[str, Any]) -> None:
    tree = MerkleTree()
    for chunk in decode_all(xorb_bytes(case)):
        tree.add(hash_chunk(chunk), len(chunk))
    assert format_hash(tree.xorb_hash()) == case["xorb_hash"]
    if "file_hash" in case:  # the one file that is all of the xorb
        assert format_hash(tree.file_hash()) == case["file_hash"]


@pytest.mark.parametrize(
    ("case", "file"),
    [
        pytest.param(case, file, id=file["name"])
        for case in cases("xorbs_from_official_client")
        for file in case["files"]
    ],
)
def test_segments_rebuild_the_uploaded_file(case: dict[str, Any], file: dict[str, Any]) -> None:
    chunks = decode_all(xorb_bytes(case))
    tree = MerkleTree()
    content = b""
    for segment in file["segments"]:
        assert segment["xorb_hash"] == case["xorb_hash"]
        run = chunks[segment["chunk_start"] : segment["chunk_end"]]
        assert sum(map(len, run)) == segment["unpacked_length"]
        chunk_hashes = [hash_chunk(chunk) for chunk in run]
        assert format_hash(hash_range(chunk_hashes)) == segment["verification_hash"]
        for chunk, chunk_hash in zip(run, chunk_hashes, strict=True):
            tree.add(chunk_hash, len(chunk))
        content += b"".join(run)
    assert tree.size == len(content) == file["size"]
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert format_hash(tree.file_hash()) == file["file_hash"]


def test_a_footer_is_no_chunk() -> None:
    (case,) = cases("xorb_with_footer")
    footer = base64.b64decode(case["footer_base64"])
    assert len(footer) == case["footer_length"]
    assert footer.startswith(FOOTER_IDENT)
    (hand_made,) = cases("xorb_hand_made")
    data = xorb_bytes(hand_made)
    assert len(data) == case["chunk_bytes_length"]

    records = iter_records(data + footer)
    assert len(list(itertools.islice(records, len(hand_made["chunks"])))) == 4
    with pytest.raises(FormatError, match="chunk version 88"):
        next(records)

    reader = RecordReader()
    whole = memoryview(data + footer)
    with pytest.raises(FormatError, match="chunk version 88"):
        list(reader.scan(whole, len(whole)))
    assert reader.num_records == 4
    assert reader.position == len(data)


def invalid_stream(case: dict[str, Any]) -> bytes:
    if case["bytes_base64"] is not None:
        return base64.b64decode(case["bytes_base64"])
    assert case["build"] == "header 00 010004 01 640000 then 262145 payload bytes"
    return bytes.fromhex("0001000401640000") + bytes(262_145)


@pytest.mark.parametrize("case", cases("invalid_chunk_streams"), ids=lambda case: case["name"])
def test_streams_that_the_official_client_rejects(case: dict[str, Any]) -> None:
    assert case["official_client"] == "rejected"
    data = invalid_stream(case)
    with pytest.raises(FormatError):
        decode_all(data)


@pytest.mark.parametrize("case", cases("invalid_chunk_streams"), ids=lambda case: case["name"])
def test_the_incremental_reader_rejects_them_or_sees_them_incomplete(case: dict[str, Any]) -> None:
    data = invalid_stream(case)
    reader = RecordReader()
    try:
        for record in reader.scan(memoryview(data), len(data)):
            record.decode()
    except FormatError:
        return
    # A cut record shows as bytes that belong to none when the stream ends.
    assert "truncated" in case["name"]
    assert reader.position < len(data)


# Headers


def test_limits_are_the_official_ones() -> None:
    assert (MAX_CHUNK_SIZE, MAX_PACKED_SIZE) == (131_072, 262_144)
    assert MAX_RECORD_SIZE == 262_152
    assert MAX_XORB_SIZE == 67_108_864


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param("0000000000000000", ChunkHeader(0, Scheme.NONE, 0), id="empty raw chunk"),
        pytest.param("000f000001000000", ChunkHeader(15, Scheme.LZ4, 0), id="empty LZ4 chunk"),
        pytest.param("0005000000050000", ChunkHeader(5, Scheme.NONE, 5), id="raw chunk"),
        pytest.param(
            "0003020102060500",
            ChunkHeader(0x010203, Scheme.BG4_LZ4, 0x0506),
            id="little-endian",
        ),
        pytest.param(
            "0000000402000002",
            ChunkHeader(MAX_PACKED_SIZE, Scheme.BG4_LZ4, MAX_CHUNK_SIZE),
            id="both at most",
        ),
        pytest.param(
            "0000000200000002",
            ChunkHeader(MAX_CHUNK_SIZE, Scheme.NONE, MAX_CHUNK_SIZE),
            id="largest raw chunk",
        ),
    ],
)
def test_parse_chunk_header(header: str, expected: ChunkHeader) -> None:
    data = bytes.fromhex(header)
    assert make_chunk_header(expected) == data
    for buffer in (data, bytearray(data), memoryview(data)):
        parsed = parse_chunk_header(buffer)
        assert parsed == expected
        assert type(parsed.scheme) is Scheme
    assert parse_chunk_header(b"\xff" * 3 + data + b"\xff", 3) == expected
    assert expected.record_size == CHUNK_HEADER_SIZE + expected.packed_size


@pytest.mark.parametrize(
    ("header", "message"),
    [
        pytest.param("0105000000050000", "chunk version 1, expected 0", id="version 1"),
        pytest.param("ff05000000050000", "chunk version 255, expected 0", id="version 255"),
        pytest.param("0005000003050000", "chunk compression 3, expected", id="bit-sliced"),
        pytest.param("0005000063050000", "chunk compression 99, expected", id="auto"),
        pytest.param("00050000ff050000", "chunk compression 255, expected", id="compression 255"),
        pytest.param("0005000001010002", "chunk sizes 5 and 131073, expected", id="decoded size"),
        pytest.param("0001000401640000", "chunk sizes 262145 and 100, expected", id="packed size"),
        pytest.param("00ffffff01ffffff", "16777215 and 16777215", id="both as large as can be"),
        pytest.param("0005000000040000", "raw chunk of 5 bytes, expected 4", id="raw, longer"),
        pytest.param("0005000000060000", "raw chunk of 5 bytes, expected 6", id="raw, shorter"),
        pytest.param("5845544c4f423031", "chunk version 88", id="text"),
    ],
)
def test_parse_chunk_header_refuses(header: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_chunk_header(bytes.fromhex(header))


small_or_any_byte = st.sampled_from([0, 1, 2, 3, 4]) | st.integers(0, 255)


@settings(deadline=None)
@given(st.lists(small_or_any_byte, min_size=8, max_size=8).map(bytes))
def test_any_eight_bytes_are_a_header_or_a_format_error(data: bytes) -> None:
    try:
        header = parse_chunk_header(data)
    except FormatError:
        return
    assert make_chunk_header(header) == data
    assert 0 <= header.decoded_size <= MAX_CHUNK_SIZE
    assert CHUNK_HEADER_SIZE <= header.record_size <= MAX_RECORD_SIZE


@settings(deadline=None)
@given(st.integers(0, MAX_PACKED_SIZE), st.sampled_from(Scheme), st.integers(0, MAX_CHUNK_SIZE))
def test_a_made_header_is_parsed_back(packed_size: int, scheme: Scheme, decoded_size: int) -> None:
    if scheme is Scheme.NONE:
        packed_size = decoded_size
    header = ChunkHeader(packed_size, scheme, decoded_size)
    assert parse_chunk_header(make_chunk_header(header)) == header


# Chunk records


@pytest.mark.parametrize(
    ("data", "scheme", "stored_as"),
    [
        pytest.param(b"", Scheme.LZ4, Scheme.NONE, id="nothing stays raw"),
        pytest.param(b"hello", Scheme.LZ4, Scheme.NONE, id="what does not shrink stays raw"),
        pytest.param(b"hello", Scheme.BG4_LZ4, Scheme.NONE, id="grouped or not"),
        pytest.param(bytes(100), Scheme.NONE, Scheme.NONE, id="raw by wish"),
        pytest.param(bytes(100), Scheme.LZ4, Scheme.LZ4, id="what shrinks is packed"),
        pytest.param(bytes(MAX_CHUNK_SIZE), Scheme.BG4_LZ4, Scheme.BG4_LZ4, id="a full chunk"),
    ],
)
def test_pack_chunk(data: bytes, scheme: Scheme, stored_as: Scheme) -> None:
    (record,) = iter_records(pack_chunk(data, scheme))
    assert record.header.scheme is stored_as
    assert record.header.packed_size == len(record.payload)
    assert record.decode() == data


@pytest.mark.parametrize("size", range(20, 32), ids=lambda size: f"{size} zeros")
def test_a_chunk_is_packed_only_where_that_is_smaller(size: int) -> None:
    payload = encode_payload(Scheme.LZ4, bytes(size))
    (record,) = iter_records(pack_chunk(bytes(size), Scheme.LZ4))
    assert record.header.scheme is (Scheme.LZ4 if len(payload) < size else Scheme.NONE)
    assert record.header.packed_size == min(size, len(payload))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param("00", "header cut after 1 bytes", id="one byte"),
        pytest.param("00050000000500", "header cut after 7 bytes", id="header of seven bytes"),
        pytest.param("0005000000050000", "payload cut: 0 of 5", id="header alone"),
        pytest.param("000500000005000068656c6c", "payload cut: 4 of 5", id="cut payload"),
        pytest.param("000000000000000000", "header cut after 1 bytes", id="one byte too many"),
    ],
)
def test_iter_records_refuses_cut_records(data: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        list(iter_records(bytes.fromhex(data)))


def test_no_bytes_hold_no_records() -> None:
    assert list(iter_records(b"")) == []
    assert list(RecordReader().scan(memoryview(b""), 0)) == []


@pytest.mark.parametrize("shorter_by", range(1, 9), ids=lambda n: f"{n} bytes short")
def test_a_record_whose_payload_does_not_decode_is_still_a_record(shorter_by: int) -> None:
    packed = pack_chunk(bytes(1000), Scheme.LZ4)
    size = len(packed) - CHUNK_HEADER_SIZE - shorter_by
    header = make_chunk_header(ChunkHeader(size, Scheme.LZ4, 1000))
    (record,) = iter_records(header + packed[CHUNK_HEADER_SIZE:-shorter_by])
    with pytest.raises(FormatError):
        record.decode()


# The incremental reader

SAMPLE = b"".join(
    (
        pack_chunk(b"", Scheme.NONE),
        pack_chunk(b"hello", Scheme.NONE),
        pack_chunk(bytes(3000), Scheme.LZ4),
        pack_chunk(b"", Scheme.NONE),
        pack_chunk(b"0,1,2,3,4,5,6,7,8,9,10,11," * 20, Scheme.LZ4),
        pack_chunk(b"\x3f\x80\x01\x07" * 200, Scheme.BG4_LZ4),
        make_chunk_header(ChunkHeader(15, Scheme.LZ4, 0))
        + bytes.fromhex("04224d18604082")
        + bytes(8),
        pack_chunk(bytes(range(256)), Scheme.NONE),
    )
)


def test_a_growing_buffer_gives_each_record_once_it_is_complete() -> None:
    buffer = bytearray(len(SAMPLE))
    view = memoryview(buffer)
    reader = RecordReader()
    found = []
    ends = list(itertools.accumulate(r.header.record_size for r in iter_records(SAMPLE)))
    for filled in range(len(SAMPLE) + 1):
        buffer[:filled] = SAMPLE[:filled]
        found += freeze(reader.scan(view, filled))
        complete = sum(end <= filled for end in ends)
        assert len(found) == reader.num_records == complete
        assert reader.position == ([0, *ends])[complete]
    assert found == freeze(iter_records(SAMPLE))


@xorbs
def test_one_byte_at_a_time_equals_all_at_once(case: dict[str, Any]) -> None:
    data = xorb_bytes(case)
    largest = max(record.header.record_size for record in iter_records(data))
    whole = freeze(iter_records(data))
    for capacity in (len(data), largest, largest + 1, largest + CHUNK_HEADER_SIZE):
        assert read_in_pieces(data, itertools.repeat(1), capacity) == whole
        assert read_in_pieces(data, itertools.repeat(capacity), capacity) == whole


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=60), st.integers(1, 30), st.sampled_from(Scheme)), max_size=8
    ),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
    st.integers(0, 50),
)
def test_pieces_across_slabs_equal_all_at_once(
    chunks: list[tuple[bytes, int, Scheme]], pieces: list[int], spare: int
) -> None:
    records = [pack_chunk(unit * repeats, scheme) for unit, repeats, scheme in chunks]
    capacity = max(map(len, records), default=1) + spare
    data = b"".join(records)
    found = read_in_pieces(data, itertools.cycle(pieces), capacity)
    assert found == freeze(iter_records(data))


def test_the_rest_of_a_record_may_move_to_any_position() -> None:
    reader = RecordReader()
    first = memoryview(SAMPLE[:100])
    found = freeze(reader.scan(first, 100))
    rest = SAMPLE[reader.position :]
    reader.move_to(17)
    moved = memoryview(b"\xff" * 17 + rest)
    assert list(reader.scan(moved, 17)) == []
    found += freeze(reader.scan(moved, len(moved)))
    assert found == freeze(iter_records(SAMPLE))
    assert reader.position == len(moved)


def test_payloads_are_views_of_the_buffer() -> None:
    buffer = bytearray(pack_chunk(b"hello", Scheme.NONE))
    (record,) = RecordReader().scan(memoryview(buffer), len(buffer))
    buffer[-5:] = b"HELLO"
    assert bytes(record.payload) == b"HELLO"
    assert bytes(record.decode()) == b"HELLO"


def test_bytes_past_the_filled_part_are_not_looked_at() -> None:
    header = make_chunk_header(ChunkHeader(5, Scheme.NONE, 5))
    stale = memoryview(header + b"hello" + b"\xff" * 20)
    reader = RecordReader()
    assert list(reader.scan(stale, 7)) == []
    assert list(reader.scan(stale, 12)) == []
    assert len(list(reader.scan(stale, 13))) == 1
    assert list(reader.scan(stale, 20)) == []
    with pytest.raises(FormatError):
        list(reader.scan(stale, 21))


def test_a_bad_header_is_refused_before_its_payload_arrives() -> None:
    buffer = memoryview(bytes.fromhex("00ffffff01000002") + bytes(100))
    reader = RecordReader()
    for _ in range(2):  # it stays refused
        with pytest.raises(FormatError, match="chunk sizes 16777215 and 131072"):
            list(reader.scan(buffer, 8))
    assert (reader.position, reader.num_records) == (0, 0)


def test_a_scan_that_is_left_midway_goes_on_with_the_next_record() -> None:
    view = memoryview(SAMPLE)
    reader = RecordReader()
    records = reader.scan(view, len(view))
    found = freeze(itertools.islice(records, 3))
    assert reader.num_records == 3
    found += freeze(reader.scan(view, len(view)))
    assert found == freeze(iter_records(SAMPLE))


# Anything at all


@st.composite
def damaged_streams(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([SAMPLE, *map(xorb_bytes, XORBS[1:])])))
    starts = [0]
    for record in iter_records(bytes(data)):
        starts.append(starts[-1] + record.header.record_size)
    in_header = st.builds(int.__add__, st.sampled_from(starts), st.integers(0, 7))
    anywhere = st.integers(0, len(data) - 1)
    for index in draw(st.lists(in_header | anywhere, max_size=3)):
        data[index % len(data)] = draw(small_or_any_byte)
    cut = draw(st.none() | st.integers(0, len(data)))
    return bytes(data[:cut]) + draw(st.just(b"") | st.binary(max_size=10))


streams = damaged_streams() | st.binary(max_size=80) | st.lists(small_or_any_byte).map(bytes)


@settings(deadline=None, max_examples=500)
@given(streams)
def test_any_stream_gives_records_or_a_format_error(data: bytes) -> None:
    offset = 0
    try:
        for record in iter_records(data):
            offset += CHUNK_HEADER_SIZE
            assert bytes(record.payload) == data[offset : offset + record.header.packed_size]
            offset += record.header.packed_size
            assert len(record.decode()) == record.header.decoded_size
    except FormatError:
        return
    assert offset == len(data)


@settings(deadline=None, max_examples=300)
@given(streams, st.lists(st.integers(1, 50), min_size=1, max_size=10))
def test_any_stream_reads_the_same_in_pieces(data: bytes, pieces: list[int]) -> None:
    whole: list[tuple[ChunkHeader, bytes]] = []
    refused = False
    try:
        for record in iter_records(data):
            whole += freeze(iter([record]))
    except FormatError as exc:
        refused = "cut" not in str(exc)  # the reader cannot know that no more bytes will come

    reader = RecordReader()
    found: list[tuple[ChunkHeader, bytes]] = []
    filled = 0
    sizes = itertools.cycle(pieces)
    try:
        while filled < len(data):
            filled = min(len(data), filled + next(sizes))
            for record in reader.scan(memoryview(data), filled):
                found += freeze(iter([record]))
    except FormatError:
        assert refused
    else:
        assert not refused
    assert found == whole
