import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.xet.chunking import CHUNK_SIZE, Chunker, pack_smallest
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import MerkleTree, format_hash, hash_chunk
from xetserve.xet.xorb import MAX_CHUNK_SIZE, iter_records, pack_chunk

HASHES: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/hashes.json").read_text())


def cut(chunker: Chunker, pieces: list[bytes]) -> list[bytes]:
    """The chunks of a stream that comes in pieces."""
    chunks = [chunk for piece in pieces for chunk in chunker.receive_data(piece)]
    last = chunker.finish()
    return [*chunks, last] if last else chunks


@given(st.lists(st.binary(max_size=40)), st.integers(1, 20))
def test_chunks_are_of_one_size_and_make_up_the_stream(pieces: list[bytes], size: int) -> None:
    data = b"".join(pieces)
    assert cut(Chunker(size), pieces) == [
        data[start : start + size] for start in range(0, len(data), size)
    ]


def test_a_stream_may_come_byte_by_byte() -> None:
    data = bytes(range(256)) * 3
    pieces = [data[at : at + 1] for at in range(len(data))]
    assert cut(Chunker(100), pieces) == cut(Chunker(100), [data])


def test_the_usual_chunk_is_64_kib() -> None:
    assert [len(chunk) for chunk in cut(Chunker(), [bytes(150_000)])] == [
        CHUNK_SIZE,
        65_536,
        18_928,
    ]


def test_after_finish_another_stream_may_follow() -> None:
    chunker = Chunker(4)
    assert cut(chunker, [b"abcdef"]) == [b"abcd", b"ef"]
    assert cut(chunker, [b"ghi"]) == [b"ghi"]


@pytest.mark.parametrize("size", [0, -1, MAX_CHUNK_SIZE + 1])
def test_a_chunk_size_out_of_bounds_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="chunk size"):
        Chunker(size)


@pytest.mark.parametrize("case", HASHES["zero_files"]["cases"], ids=lambda case: str(case["size"]))
def test_zeros_cut_at_the_maximum_hash_as_the_official_client_hashes_them(
    case: dict[str, Any],
) -> None:
    tree = MerkleTree()
    for chunk in cut(Chunker(MAX_CHUNK_SIZE), [bytes(case["size"])]):
        tree.add(hash_chunk(chunk), len(chunk))
    assert (tree.num_chunks, format_hash(tree.file_hash())) == (case["n_chunks"], case["file_hash"])


@pytest.mark.parametrize(
    ("data", "scheme"),
    [
        pytest.param(bytes(range(256)), Scheme.NONE, id="no repeats stay raw"),
        pytest.param(b"the same text " * 99, Scheme.LZ4, id="text is LZ4"),
        pytest.param(
            b"".join(n.to_bytes(4, "big") for n in range(0, 900_000, 77)),
            Scheme.BG4_LZ4,
            id="numbers",
        ),
        pytest.param(b"", Scheme.NONE, id="nothing"),
    ],
)
def test_the_smallest_scheme_is_chosen(data: bytes, scheme: Scheme) -> None:
    record = pack_smallest(data)
    assert len(record) == min(len(pack_chunk(data, one)) for one in Scheme)
    (found,) = iter_records(record)
    assert found.header.scheme is scheme
    assert bytes(found.decode()) == data
