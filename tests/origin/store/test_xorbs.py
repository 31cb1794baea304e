import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.origin.client import XorbFile, list_files, pieces
from xetserve.errors import FormatError, IntegrityError
from xetserve.origin.store.blobs import TemporaryFiles
from xetserve.origin.store.xorbs import (
    XorbIndex,
    XorbScanner,
    XorbStore,
    gather_blocks,
    parse_index,
)
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange
from xetserve.xet.xorb import MAX_XORB_SIZE, pack_chunk

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data/xorbs.json").read_text())
OFFICIAL: list[dict[str, Any]] = VECTORS["xorbs_from_official_client"]["cases"]

FILE = XorbFile([b"first chunk", b"second, longer chunk" * 40, b"3"])


def scan(data: bytes, piece_size: int) -> tuple[bytes, bytes, XorbIndex]:
    """What a scanner stores of a body in pieces, its hash and its index."""
    scanner = XorbScanner()
    stored = [
        scanner.receive_data(data[at : at + piece_size]) for at in range(0, len(data), piece_size)
    ]
    return (b"".join(stored), *scanner.finish())


@pytest.fixture
def store(tmp_path: Path) -> XorbStore:
    return XorbStore(tmp_path, TemporaryFiles(tmp_path / "tmp"))


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case["name"])
@pytest.mark.parametrize("piece_size", [1, 7, 100_000])
def test_an_official_upload_is_indexed(case: dict[str, Any], piece_size: int) -> None:
    data = base64.b64decode(case["xorb_base64"])
    stored, xorb_hash, index = scan(data, piece_size)
    assert stored == data
    assert format_hash(xorb_hash) == case["xorb_hash"]
    for number, chunk in enumerate(case["chunks"]):
        only = ChunkRange(number, number + 1)
        assert index.byte_range(only) == (chunk["record_start"], chunk["record_end"])
        assert index.decoded_size(only) == chunk["uncompressed_length"]
        assert format_hash(index.chunk_hash(number)) == chunk["hash"]
    assert index.num_chunks == len(case["chunks"])


@pytest.mark.parametrize("piece_size", [1, 100, 100_000])
def test_a_footer_is_left_out(piece_size: int) -> None:
    footer = b"XETBLOB\x01" + bytes(100)
    stored, xorb_hash, _ = scan(FILE.xorb + footer, piece_size)
    assert (stored, xorb_hash) == (FILE.xorb, FILE.tree.xorb_hash())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "without chunks", id="nothing"),
        pytest.param(b"XETBLOB\x01", "without chunks", id="only a footer"),
        pytest.param(FILE.xorb[:-1], "cut", id="a cut record"),
        pytest.param(FILE.xorb + b"\0", "cut", id="a byte too many"),
        pytest.param(b"\x01" + FILE.xorb[1:], "version 1", id="another version"),
        pytest.param(FILE.xorb + b"XETBLOX\x01", "version 88", id="not quite a footer"),
        pytest.param(FILE.xorb + bytes(8), "an empty chunk", id="an empty chunk"),
        pytest.param(
            FILE.xorb + bytes(8) + b"XETBLOB\x01", "an empty chunk", id="one before the footer"
        ),
        pytest.param(
            FILE.xorb + b"\0\2\0\0\1\3\0\0\xff\xff" + b"XETBLOB\x01",
            "lz4|LZ4",
            id="a damaged chunk before the footer",
        ),
    ],
)
@pytest.mark.parametrize("piece_size", [3, 100_000])
def test_what_is_not_a_xorb_is_refused(data: bytes, reason: str, piece_size: int) -> None:
    with pytest.raises(FormatError, match=reason):
        scan(data, piece_size)


def test_a_xorb_that_is_too_large_is_refused() -> None:
    # The official client fills a xorb up with decoded bytes; the headers of raw chunks come on top.
    chunk = bytes(range(256)) * 512
    record = pack_chunk(chunk, Scheme.NONE)
    scanner = XorbScanner()
    for _ in range(MAX_XORB_SIZE // len(chunk)):
        scanner.receive_data(record)
    with pytest.raises(FormatError, match="more than 67108864 payload bytes"):
        scanner.receive_data(record)


def test_a_xorb_of_too_many_chunks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xetserve.origin.store.xorbs.MAX_CHUNKS", 3)
    scan(FILE.xorb, 100)
    with pytest.raises(FormatError, match="more than 3 chunks"):
        scan(FILE.xorb + pack_chunk(b"4", Scheme.NONE), 100)


def test_a_footer_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xetserve.origin.store.xorbs.MAX_UPLOAD_SIZE", len(FILE.xorb) + 50)
    scan(FILE.xorb + b"XETBLOB\x01" + bytes(42), 10)
    with pytest.raises(FormatError, match="xorb of more than"):
        scan(FILE.xorb + b"XETBLOB\x01" + bytes(43), 10)


@given(st.binary(max_size=300))
def test_random_bytes_give_a_xorb_or_a_format_error(data: bytes) -> None:
    for prefix in (b"", FILE.xorb):
        try:
            stored, _, index = scan(prefix + data, 50)
        except FormatError:
            continue
        assert len(stored) == index.packed_size


def test_the_index_is_read_as_it_was_written() -> None:
    _, _, index = scan(FILE.xorb, 1000)
    assert parse_index(index.to_bytes()) == index


@pytest.mark.parametrize(
    "data", [b"", bytes(39), bytes(40), scan(FILE.xorb, 1000)[2].to_bytes()[40:] * 2], ids=len
)
def test_a_damaged_index_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_index(data)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.data())
def test_trimming_leaves_the_chunks_that_are_needed(sizes: list[int], draw: st.DataObject) -> None:
    chunks = [bytes((number,)) * size for number, size in enumerate(sizes)]
    _, _, index = scan(XorbFile(chunks).xorb, 10_000)
    start = draw.draw(st.integers(0, len(chunks) - 1))
    end = draw.draw(st.integers(start + 1, len(chunks)))
    content = b"".join(chunks[start:end])
    skip = draw.draw(st.integers(0, len(content) - 1))
    stop = draw.draw(st.integers(skip + 1, len(content)))
    trimmed, dropped = index.trim(ChunkRange(start, end), skip, stop)
    assert trimmed == (start + content[skip] - start, content[stop - 1] + 1)
    kept = b"".join(chunks[slice(*trimmed)])
    assert kept[skip - dropped : stop - dropped] == content[skip:stop]


async def test_an_upload_is_there_afterwards(store: XorbStore, tmp_path: Path) -> None:
    xorb_hash = FILE.tree.xorb_hash()
    assert await store.put(xorb_hash, pieces(FILE.xorb[:20], FILE.xorb[20:]))
    assert (tmp_path / "xorbs" / FILE.xorb_name).read_bytes() == FILE.xorb
    index = await store.require_index(xorb_hash)
    assert (index.num_chunks, index.packed_size) == (3, len(FILE.xorb))
    assert list_files(tmp_path / "tmp") == set()


async def test_a_second_upload_changes_nothing(store: XorbStore, tmp_path: Path) -> None:
    assert await store.put(FILE.tree.xorb_hash(), pieces(FILE.xorb))
    before = list_files(tmp_path)
    assert not await store.put(FILE.tree.xorb_hash(), pieces(FILE.xorb))
    assert list_files(tmp_path) == before


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(XorbFile([b"other"]).xorb, "not " + FILE.xorb_name, id="another xorb"),
        pytest.param(FILE.xorb[:-1], "cut", id="a cut one"),
        pytest.param(b"", "without chunks", id="nothing"),
    ],
)
async def test_a_bad_upload_leaves_nothing_behind(
    store: XorbStore, tmp_path: Path, data: bytes, reason: str
) -> None:
    with pytest.raises(FormatError, match=reason):
        await store.put(FILE.tree.xorb_hash(), pieces(data))
    assert list_files(tmp_path) == set()
    assert await store.get_index(FILE.tree.xorb_hash()) is None


async def test_an_upload_that_breaks_off_leaves_nothing_behind(
    store: XorbStore, tmp_path: Path
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield FILE.xorb[:20]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await store.put(FILE.tree.xorb_hash(), broken())
    assert list_files(tmp_path) == set()


@pytest.mark.parametrize("damage", ["missing", "cut", "of another xorb"])
async def test_an_index_is_made_again(store: XorbStore, tmp_path: Path, damage: str) -> None:
    await store.put(FILE.tree.xorb_hash(), pieces(FILE.xorb))
    path = tmp_path / "xorb-index" / FILE.xorb_name
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(good[:-1] if damage == "cut" else good[:-40])
    fresh = XorbStore(tmp_path, TemporaryFiles(tmp_path / "tmp"))
    assert (await fresh.require_index(FILE.tree.xorb_hash())).to_bytes() == good
    assert path.read_bytes() == good


async def test_a_damaged_xorb_is_noticed_when_it_is_indexed(
    store: XorbStore, tmp_path: Path
) -> None:
    await store.put(FILE.tree.xorb_hash(), pieces(FILE.xorb))
    (tmp_path / "xorb-index" / FILE.xorb_name).unlink()
    (tmp_path / "xorbs" / FILE.xorb_name).write_bytes(XorbFile([b"x"]).xorb)
    with pytest.raises(IntegrityError, match="damaged on disk"):
        await store.get_index(FILE.tree.xorb_hash())


@pytest.mark.parametrize(
    "byte_range", [ByteRange(0, 10), ByteRange(3, 30), ByteRange(5, 6)], ids=str
)
@pytest.mark.parametrize("block_size", [1, 4, 1000])
async def test_a_range_is_read_in_blocks(
    store: XorbStore, byte_range: ByteRange, block_size: int
) -> None:
    await store.put(FILE.tree.xorb_hash(), pieces(FILE.xorb))
    blocks = [b async for b in store.read(FILE.tree.xorb_hash(), byte_range, block_size)]
    assert b"".join(blocks) == FILE.xorb[byte_range.start : byte_range.end]
    assert max(map(len, blocks)) <= block_size


async def test_a_xorb_that_shrank_or_vanished_breaks_the_read(
    store: XorbStore, tmp_path: Path
) -> None:
    await store.put(FILE.tree.xorb_hash(), pieces(FILE.xorb))
    path = tmp_path / "xorbs" / FILE.xorb_name
    path.write_bytes(FILE.xorb[:5])
    with pytest.raises(IntegrityError, match="cut on disk"):
        _ = [b async for b in store.read(FILE.tree.xorb_hash(), ByteRange(0, 10))]
    path.unlink()
    with pytest.raises(IntegrityError, match="missing on disk"):
        _ = [b async for b in store.read(FILE.tree.xorb_hash(), ByteRange(0, 10))]


async def test_an_unknown_xorb_has_no_index(store: XorbStore) -> None:
    assert await store.get_index(parse_hash("ab" * 32)) is None
    with pytest.raises(IntegrityError, match="missing on disk"):
        await store.require_index(parse_hash("ab" * 32))


@given(st.lists(st.binary(max_size=20)), st.integers(1, 50))
async def test_gathered_blocks_are_large_and_complete(parts: list[bytes], size: int) -> None:
    blocks = [block async for block in gather_blocks(pieces(*parts), size)]
    assert b"".join(blocks) == b"".join(parts)
    assert all(len(block) >= size for block in blocks[:-1])
