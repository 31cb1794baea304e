"""Proven ledgers as files: what was written is read, and anything else is not."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.verify.ledger_chunks import CHUNKS, FILE_HASH, SIZE
from xetserve.errors import FormatError
from xetserve.pipeline.verify.ledger_file import (
    CHECK_SIZE,
    ChunkList,
    ledger_file_size,
    pack_ledger,
    parse_ledger,
)
from xetserve.xet.hashes import HASH_SIZE

LIST = ChunkList(
    array("Q", (position for position, _, _ in CHUNKS)),
    SIZE,
    b"".join(chunk_hash for _, _, chunk_hash in CHUNKS),
)
PACKED = pack_ledger(FILE_HASH, LIST)


def test_what_was_written_is_read() -> None:
    turns: list[None] = []
    assert parse_ledger(PACKED, FILE_HASH, lambda: turns.append(None)) == LIST
    assert turns
    assert len(PACKED) == ledger_file_size(len(CHUNKS))


@given(st.data())
def test_damage_is_seen(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(PACKED) - 1))
    changed = bytearray(PACKED)
    match data.draw(st.sampled_from(["flip", "cut", "grow"])):
        case "flip":
            changed[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del changed[at:]
        case "grow":
            changed += data.draw(st.binary(min_size=1, max_size=40))
    with pytest.raises(FormatError):
        parse_ledger(bytes(changed), FILE_HASH)


@given(st.binary(max_size=300))
def test_anything_else_is_none(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_ledger(data, FILE_HASH)


def test_the_ledger_of_another_file_is_none() -> None:
    with pytest.raises(FormatError, match="belongs to another file"):
        parse_ledger(PACKED, bytes(32))


@pytest.mark.parametrize("what", ["hash", "size", "order", "huge"])
def test_a_well_made_lie_is_none(what: str) -> None:
    starts, hashes = LIST.starts[:], bytearray(LIST.hashes)
    size = SIZE
    if what == "hash":
        hashes[5 * HASH_SIZE] ^= 1
    elif what == "size":
        starts[5] += 1
    elif what == "order":
        hashes = hashes[HASH_SIZE:] + hashes[:HASH_SIZE]
    else:
        size += 1 << 20
    lie = pack_ledger(FILE_HASH, ChunkList(starts, size, hashes))
    assert len(lie) > CHECK_SIZE
    with pytest.raises(FormatError, match=r"do not make the file|a chunk of"):
        parse_ledger(lie, FILE_HASH)
