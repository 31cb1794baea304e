import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xetserve.errors import FormatError
from xetserve.xet.hashes import ZERO_HASH, MerkleTree, format_hash, hash_range, parse_hash
from xetserve.xet.reconstruction import ChunkRange, Term
from xetserve.xet.shard import (
    RECORD_SIZE,
    TAG,
    Shard,
    ShardChunk,
    ShardFile,
    ShardXorb,
    make_shard,
    parse_shard,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/xorbs.json").read_text())
CASES: list[dict[str, Any]] = VECTORS["xorbs_from_official_client"]["cases"]
OFFICIAL = [base64.b64decode(case["shard_base64"]) for case in CASES]

official = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])

HASH_A, HASH_B = (bytes((n,)) * 32 for n in (1, 2))
SHA256 = "0123456789abcdef" * 4
BOOKEND = b"\xff" * 32 + bytes(16)

hashes = st.binary(min_size=32, max_size=32)
small = st.integers(0, 2**32 - 1)


@st.composite
def shards(draw: st.DrawFn) -> Shard:
    """Any shard that can be written."""

    def make_file() -> ShardFile:
        terms = []
        for _ in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, 2**32 - 2))
            end = draw(st.integers(start + 1, 2**32 - 1))
            terms.append(Term(draw(hashes), ChunkRange(start, end), draw(small)))
        proofs = tuple(draw(hashes) for _ in terms) if draw(st.booleans()) else None
        sha256 = draw(st.none() | hashes.filter(any).map(format_hash))
        return ShardFile(
            draw(hashes.filter(lambda h: h != b"\xff" * 32)), tuple(terms), proofs, sha256
        )

    def make_xorb() -> ShardXorb:
        chunks = tuple(
            ShardChunk(draw(hashes), draw(small), draw(small))
            for _ in range(draw(st.integers(0, 3)))
        )
        name = draw(hashes.filter(lambda h: h != b"\xff" * 32))
        return ShardXorb(name, chunks, draw(small), draw(small))

    return Shard(
        tuple(make_file() for _ in range(draw(st.integers(0, 2)))),
        tuple(make_xorb() for _ in range(draw(st.integers(0, 2)))),
    )


@official
def test_files_are_read_as_the_official_client_means_them(case: dict[str, Any]) -> None:
    shard = parse_shard(base64.b64decode(case["shard_base64"]))
    found = {file.file_hash: file for file in shard.files}
    for wanted in case["files"]:
        file = found[parse_hash(wanted["file_hash"])]
        assert file.sha256 == wanted["sha256"]
        assert file.range_hashes is not None
        assert [
            {
                "xorb_hash": format_hash(term.xorb_hash),
                "unpacked_length": term.decoded_size,
                "chunk_start": term.chunks.start,
                "chunk_end": term.chunks.end,
                "verification_hash": format_hash(proof),
            }
            for term, proof in zip(file.terms, file.range_hashes, strict=True)
        ] == wanted["segments"]


@official
def test_xorbs_are_read_as_the_official_client_means_them(case: dict[str, Any]) -> None:
    (xorb,) = parse_shard(base64.b64decode(case["shard_base64"])).xorbs
    assert format_hash(xorb.xorb_hash) == case["xorb_hash"]
    assert xorb.packed_size == 0  # the uploader leaves it to the server
    assert [(format_hash(chunk.chunk_hash), chunk.size) for chunk in xorb.chunks] == [
        (chunk["hash"], chunk["uncompressed_length"]) for chunk in case["chunks"]
    ]
    assert xorb.decoded_size == sum(chunk.size for chunk in xorb.chunks)
    starts = [sum(chunk.size for chunk in xorb.chunks[:n]) for n in range(len(xorb.chunks))]
    assert [chunk.start for chunk in xorb.chunks] == starts


@official
def test_an_official_shard_proves_itself(case: dict[str, Any]) -> None:
    shard = parse_shard(base64.b64decode(case["shard_base64"]))
    chunks = {xorb.xorb_hash: xorb.chunks for xorb in shard.xorbs}
    for file in shard.files:
        tree = MerkleTree()
        for term, proof in zip(file.terms, file.range_hashes or (), strict=True):
            run = chunks[term.xorb_hash][slice(*term.chunks)]
            assert hash_range(chunk.chunk_hash for chunk in run) == proof
            for chunk in run:
                tree.add(chunk.chunk_hash, chunk.size)
        assert tree.file_hash() == file.file_hash


@given(shards())
def test_a_shard_is_read_as_it_was_written(shard: Shard) -> None:
    assert parse_shard(make_shard(*shard)) == shard


def test_an_empty_file_is_240_bytes_with_the_zero_hash() -> None:
    data = make_shard([ShardFile(ZERO_HASH, (), (), SHA256)], [])
    assert len(data) == 240
    assert parse_shard(data).files == (ShardFile(ZERO_HASH, (), (), SHA256),)


def test_a_zero_sha256_is_none() -> None:
    data = make_shard([ShardFile(HASH_A, (), (), "0" * 64)], [])
    assert parse_shard(data).files[0].sha256 is None


@pytest.mark.parametrize("footer", [b"", b"x", bytes(200), BOOKEND * 3], ids=len)
@pytest.mark.parametrize("announced", [0, 200])
def test_what_follows_is_ignored_whatever_footer_is_announced(
    footer: bytes, announced: int
) -> None:
    plain = OFFICIAL[0]
    data = plain[:40] + announced.to_bytes(8, "little") + plain[48:] + footer
    assert parse_shard(data) == parse_shard(plain)


def head(version: int = 2, tag: bytes = TAG) -> bytes:
    return struct.pack("<32sQQ", tag, version, 0)


def record(name: bytes, *numbers: int) -> bytes:
    return struct.pack("<32sIIII", name, *numbers)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "at least 48", id="nothing"),
        pytest.param(head()[:-1], "at least 48", id="a cut header"),
        pytest.param(head(tag=TAG[:-1] + b"\0") + BOOKEND * 2, "unknown tag", id="another tag"),
        pytest.param(head(version=1) + BOOKEND * 2, "version 1", id="version 1"),
        pytest.param(head(), "0 left", id="no sections"),
        pytest.param(head() + BOOKEND, "0 left", id="no xorb section"),
        pytest.param(head() + BOOKEND + BOOKEND[:-1], "0 left", id="a cut bookend"),
        pytest.param(
            head() + record(HASH_A, 0, 2**32 - 1, 0, 0) + BOOKEND * 2, "2 left", id="absurd count"
        ),
        pytest.param(
            head() + BOOKEND + record(HASH_A, 0, 2**32 - 1, 0, 0) + BOOKEND,
            "1 left",
            id="chunk count",
        ),
        pytest.param(
            head() + record(HASH_A, 1, 0, 0, 0) + BOOKEND * 2,
            "unknown flags 0x1",
            id="unknown flag",
        ),
        pytest.param(
            head() + record(HASH_A, 0, 1, 0, 0) + record(HASH_B, 0, 9, 4, 4) + BOOKEND * 2,
            "4..4 is empty",
            id="empty chunk range",
        ),
        pytest.param(
            head() + record(HASH_A, 0, 1, 0, 0) + record(HASH_B, 0, 9, 4, 3) + BOOKEND * 2,
            "4..3 is empty",
            id="reversed chunk range",
        ),
        pytest.param(
            head() + record(HASH_A, 1 << 31, 1, 0, 0) + record(HASH_B, 0, 9, 0, 1),
            "2 records, 1 left",
            id="proofs missing",
        ),
        pytest.param(
            head() + record(HASH_A, 1 << 30, 0, 0, 0), "1 records, 0 left", id="metadata missing"
        ),
    ],
)
def test_a_malformed_shard_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_shard(data)


@pytest.mark.parametrize("data", OFFICIAL, ids=len)
def test_every_cut_of_a_shard_is_refused(data: bytes) -> None:
    for size in range(len(data)):
        with pytest.raises(FormatError):
            parse_shard(data[:size])


def parses_or_refuses(data: bytes) -> None:
    try:
        shard = parse_shard(data)
    except FormatError:
        return
    assert len(shard.files) + len(shard.xorbs) <= len(data) // RECORD_SIZE


@given(st.binary(max_size=400))
@example(b"")
def test_random_bytes_give_a_shard_or_a_format_error(data: bytes) -> None:
    parses_or_refuses(data)
    parses_or_refuses(head() + data)


@settings(max_examples=300)
@given(st.sampled_from(OFFICIAL), st.data())
def test_mutated_shards_give_a_shard_or_a_format_error(data: bytes, draw: st.DataObject) -> None:
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(mutated) - 1))
        mutated[at] = draw.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
    end = draw.draw(st.integers(0, len(mutated)))
    parses_or_refuses(bytes(mutated))
    parses_or_refuses(bytes(mutated[:end]))
    parses_or_refuses(bytes(mutated[:end] + mutated[max(0, end - RECORD_SIZE) :]))
