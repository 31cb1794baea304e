"""Reconstructions written in pieces are the same as at once, and a piece is small."""

import json

import pytest

from xetserve.xet.batch import make_batch_answer
from xetserve.xet.reconstruction import (
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
    to_v1,
    to_v2,
)
from xetserve.xet.reconstruction_writer import PIECE_SIZE, write_batch, write_plan


def make_plan(num_terms: int, num_xorbs: int, num_ranges: int) -> Reconstruction:
    xorbs = [bytes([number]) * 32 for number in range(num_xorbs)]
    terms = tuple(
        Term(xorbs[at % num_xorbs], ChunkRange(at, at + 3), 9 * at) for at in range(num_terms)
    )
    infos = {
        xorb: tuple(
            FetchInfo(ChunkRange(at, at + 9), ByteRange(at, at + 99), f"http://data/{at // 3}")
            for at in range(num_ranges)
        )
        for xorb in xorbs
    }
    return Reconstruction(7, terms, infos)


@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 1, 0), (1, 1, 1), (5000, 3, 700), (9, 200, 2)])
def test_the_pieces_are_the_answer(counts: tuple[int, int, int]) -> None:
    plan = make_plan(*counts)
    for version, whole in ((1, to_v1(plan)), (2, to_v2(plan))):
        pieces = list(write_plan(plan, version))
        assert json.loads(b"".join(pieces)) == whole
        assert max(map(len, pieces)) < 2 * PIECE_SIZE
    files = {b"f" * 32: plan.terms, b"g" * 32: (), b"h" * 32: plan.terms[:1]}
    pieces = list(write_batch(files, plan.fetch_info))
    assert json.loads(b"".join(pieces)) == make_batch_answer(files, plan.fetch_info)


def test_where_chunks_are_is_asked_for_as_late_as_it_is_written() -> None:
    plan = make_plan(3, 2, 1000)
    asked = 0

    def ask(xorb: bytes) -> "list[FetchInfo]":
        nonlocal asked
        asked += 1
        return list(plan.fetch_info[xorb])

    pieces = write_plan(plan, 1, ((xorb, ask(xorb)) for xorb in plan.fetch_info))
    for _ in range(6):
        next(pieces)
    assert asked == 1
    assert json.loads(b"".join(write_plan(plan, 1))) == to_v1(plan)
