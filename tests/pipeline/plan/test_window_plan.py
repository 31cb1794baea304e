"""From a reconstruction to fetches and pieces."""

import pytest

from xetserve.errors import FormatError, IntegrityError
from xetserve.pipeline.plan import window_plan as plan_module
from xetserve.pipeline.plan.window_plan import Piece, Step, make_plan
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction, Term

A, B = bytes(32), bytes([1]) * 32


def info(start: int, end: int, url: str = "http://d/") -> FetchInfo:
    return FetchInfo(ChunkRange(start, end), ByteRange(start * 100, end * 100), url)


def term(xorb: bytes, start: int, end: int, size: int = 0) -> Term:
    return Term(xorb, ChunkRange(start, end), size or (end - start) * 10)


def test_one_term() -> None:
    answer = Reconstruction(3, (term(A, 0, 4),), {A: (info(0, 4),)})
    plan = make_plan(answer, ByteRange(100, 120), 1000)
    assert plan.file_range == ByteRange(100, 137)  # to the end of the term, where a chunk ends
    assert (plan.asked, plan.skip) == (ByteRange(100, 120), 3)
    assert plan.steps == (Step(A, info(0, 4), (1, 1, 1, 1)),)
    assert plan.pieces == (Piece(A, ChunkRange(0, 4), 40, 0),)


def test_the_example_of_the_module() -> None:
    x, y, z = b"x" * 32, b"y" * 32, b"z" * 32
    terms = (term(x, 0, 2, 90), term(y, 5, 6, 60), term(x, 1, 3, 80), term(z, 0, 1, 50))
    fetch_info: dict[bytes, tuple[FetchInfo, ...]] = {
        x: (info(0, 3),),
        y: (info(5, 6),),
        z: (info(0, 1),),
    }
    plan = make_plan(Reconstruction(20, terms, fetch_info), ByteRange(100, 300), None)
    assert (plan.file_range, plan.skip, plan.num_terms) == (ByteRange(100, 310), 20, 3)
    assert plan.steps == (Step(x, info(0, 3), (1, 2, 1)), Step(y, info(5, 6), (1,)))
    assert [piece.step for piece in plan.pieces] == [0, 1, 0]


def test_a_fetch_range_is_fetched_once_however_often_it_is_used() -> None:
    terms = (term(A, 0, 3), term(B, 5, 6), term(A, 1, 2), term(A, 1, 5))
    answer = Reconstruction(0, terms, {A: (info(0, 6),), B: (info(5, 6),)})
    plan = make_plan(answer, ByteRange(0, 90), None)
    assert [step.uses for step in plan.steps] == [(1, 3, 2, 1, 1, 0), (1,)]
    assert [piece.step for piece in plan.pieces] == [0, 1, 0, 0]


def test_the_same_range_under_two_urls_is_two_fetches_at_most() -> None:
    infos = (info(0, 2, "http://d/1"), info(4, 6, "http://d/2"))
    answer = Reconstruction(0, (term(A, 0, 1), term(A, 5, 6), term(A, 1, 2)), {A: infos})
    plan = make_plan(answer, ByteRange(0, 30), 30)
    assert [step.info for step in plan.steps] == list(infos)
    assert [step.uses for step in plan.steps] == [(1, 1), (0, 1)]


def test_a_fetch_range_wider_than_any_term_counts_its_unused_chunks() -> None:
    answer = Reconstruction(0, (term(A, 2, 3),), {A: (info(0, 5),)})
    plan = make_plan(answer, ByteRange(0, 10), 10)
    assert plan.steps[0].uses == (0, 0, 1, 0, 0)


def test_how_far_the_data_is_packed() -> None:
    """Each chunk is 100 bytes packed here."""
    answer = Reconstruction(0, (term(A, 0, 4, 500), term(A, 1, 2, 125)), {A: (info(0, 8),)})
    assert make_plan(answer, ByteRange(0, 625), None).packed_ratio == 0.8  # 5 uses, 625 bytes
    nothing = make_plan(Reconstruction(0, (), {}), ByteRange(50, 100), None)
    assert nothing.packed_ratio == 0


def test_the_window_ends_with_the_callers_range() -> None:
    answer = Reconstruction(0, (term(A, 0, 4),), {A: (info(0, 4),)})
    assert make_plan(answer, ByteRange(0, 25), 25).file_range == ByteRange(0, 25)
    assert make_plan(answer, ByteRange(0, 25), 33).file_range == ByteRange(0, 33)
    assert make_plan(answer, ByteRange(0, 25), None).file_range == ByteRange(0, 40)


def test_a_file_of_unknown_size_may_end_before_the_asked_end() -> None:
    answer = Reconstruction(0, (term(A, 0, 1),), {A: (info(0, 1),)})
    assert make_plan(answer, ByteRange(0, 100), None).file_range == ByteRange(0, 10)
    nothing = make_plan(Reconstruction(0, (), {}), ByteRange(50, 100), None)
    assert (nothing.file_range, nothing.steps, nothing.pieces) == (ByteRange(50, 50), (), ())


@pytest.mark.parametrize("limit", [50, 1000])
def test_terms_that_do_not_reach_the_end_are_an_integrity_error(limit: int) -> None:
    answer = Reconstruction(0, (term(A, 0, 4),), {A: (info(0, 4),)})
    with pytest.raises(IntegrityError, match="end at byte 40, expected 50"):
        make_plan(answer, ByteRange(0, 50), limit)


def test_a_term_without_a_fetch_range_is_a_format_error() -> None:
    answer = Reconstruction(0, (term(A, 0, 4),), {A: (info(0, 2), info(2, 4))})
    with pytest.raises(FormatError, match="no fetch range"):
        make_plan(answer, ByteRange(0, 40), 40)


@pytest.mark.parametrize(
    "chunks", [ChunkRange(0, 2**32 - 1), ChunkRange(7, 7 + 21)], ids=["all there can be", "one"]
)
def test_more_chunks_than_the_bytes_can_hold_are_refused_before_they_are_counted(
    chunks: ChunkRange,
) -> None:
    # A chunk record has a header of 8 bytes: 160 bytes hold 20 at most.
    crowded = FetchInfo(chunks, ByteRange(1000, 1160), "http://d/")
    answer = Reconstruction(0, (Term(A, chunks, 500),), {A: (crowded,)})
    with pytest.raises(IntegrityError, match="chunks in 160 bytes"):
        make_plan(answer, ByteRange(0, 500), 500)


def test_a_fetch_range_larger_than_any_xorb_is_refused() -> None:
    huge = FetchInfo(ChunkRange(0, 2**31), ByteRange(0, 2**40), "http://d/")
    answer = Reconstruction(0, (term(A, 0, 1),), {A: (huge,)})
    with pytest.raises(IntegrityError, match="larger than a xorb"):
        make_plan(answer, ByteRange(0, 10), 10)


def test_terms_behind_the_asked_end_are_left_out() -> None:
    """A CAS may look only at where a range starts."""
    infos: dict[bytes, tuple[FetchInfo, ...]] = {A: (info(0, 4),), B: (info(0, 9),)}
    answer = Reconstruction(3, (term(A, 0, 4), term(B, 0, 1), term(B, 2, 9)), infos)
    plan = make_plan(answer, ByteRange(100, 140), 1000, start=110)
    assert (plan.file_range, plan.num_terms) == (ByteRange(110, 147), 2)
    assert [step.xorb_hash for step in plan.steps] == [A, B]
    reached = make_plan(answer, ByteRange(100, 140), 1000, start=150)  # by the window before
    assert (reached.file_range.size < 0, reached.pieces) == (True, ())


@pytest.mark.parametrize(
    ("bound", "value"), [("MAX_STEPS", 2), ("MAX_PIECES", 2), ("MAX_WINDOW_CHUNKS", 3)]
)
def test_a_window_ends_before_it_has_more_than_is_planned_in_one_turn(
    bound: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, bound, value)
    infos = tuple(info(start, start + 1) for start in range(5))
    answer = Reconstruction(3, tuple(term(A, at, at + 1) for at in range(5)), {A: infos})
    plan = make_plan(answer, ByteRange(100, 147), None)
    assert (plan.file_range, plan.num_terms) == (ByteRange(100, 117), 2)
    assert (len(plan.steps), len(plan.pieces)) == (2, 2)


def test_thousands_of_terms_without_bytes_are_an_integrity_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "MAX_PIECES", 2)
    nothing = Term(A, ChunkRange(0, 1), 0)
    answer = Reconstruction(0, (nothing, nothing, term(A, 0, 1)), {A: (info(0, 1),)})
    with pytest.raises(IntegrityError, match="2 terms without bytes"):
        make_plan(answer, ByteRange(0, 10), 10)
