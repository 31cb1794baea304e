"""Which chunks stay until the file comes back to them."""

import random

import pytest

from xetserve.pipeline.plan import chunk_reuse
from xetserve.pipeline.plan.chunk_reuse import MIN_RUN, ChunkReuse
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction, Term

A, B = b"a" * 32, b"b" * 32
CHUNK = MIN_RUN  # bytes, decoded and packed: every run of kept terms is worth a window
BIG = 1 << 40

Run = tuple[bytes, int, int]  # xorb, first chunk, end chunk


def answer_for(runs: list[Run], offset: int = 0) -> Reconstruction:
    infos: dict[bytes, tuple[FetchInfo, ...]] = {
        xorb: (FetchInfo(ChunkRange(0, 100), ByteRange(0, 100 * CHUNK), "http://data.test/"),)
        for xorb in (A, B)
    }
    terms = tuple(
        Term(xorb, ChunkRange(start, end), (end - start) * CHUNK) for xorb, start, end in runs
    )
    return Reconstruction(offset, terms, infos)


def learn(
    *runs: Run, read: tuple[int, int] = (0, 0), planned: int = 0, capacity: int = BIG
) -> ChunkReuse:
    reuse = ChunkReuse()
    reuse.add(answer_for(list(runs)), 0, read=read, planned=planned, capacity=capacity)
    return reuse


def is_kept(reuse: ChunkReuse, run: Run, position: int) -> bool:
    chunks, end = ChunkRange(run[1], run[2]), position + run[2] - run[1]
    return reuse.is_kept(run[0], chunks, position * CHUNK, end * CHUNK)


def test_a_file_that_never_comes_back_keeps_nothing() -> None:
    reuse = learn((A, 0, 30), (B, 0, 10), (A, 30, 50))
    assert reuse.is_empty
    assert reuse.peak == 0
    assert reuse.known_end == 60 * CHUNK
    assert not reuse.stays((A, 3), 0)
    assert reuse.find_cut(ByteRange(5, 20 * CHUNK)) == 20 * CHUNK
    assert reuse.find_run(0, BIG) == []


def test_only_so_many_chunks_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may have as many tiny terms as there are bytes."""
    monkeypatch.setattr(chunk_reuse, "MAX_KNOWN_CHUNKS", 8)
    reuse = learn(*[(A, at, at + 2) for at in range(0, 40, 2)])
    assert reuse.known_end == 8 * CHUNK
    assert reuse.is_full
    reuse.forget(4 * CHUNK)
    assert not reuse.is_full
    answer = answer_for([(A, at, at + 2) for at in range(8, 40, 2)])
    reuse.add(answer, 8 * CHUNK, read=(4 * CHUNK, 4), planned=4 * CHUNK, capacity=BIG)
    assert reuse.known_end == 12 * CHUNK


def test_the_example_of_the_module() -> None:
    terms = [(A, 0, 3), (B, 0, 2), (A, 1, 3), (B, 0, 1), (A, 0, 1)]
    reuse = learn(*terms, capacity=2 * CHUNK)
    starts = [0, 3, 5, 7, 8]
    stay = [
        [(run[0], chunk) for chunk in range(*run[1:]) if reuse.stays((run[0], chunk), at * CHUNK)]
        for run, at in zip(terms, starts, strict=True)
    ]
    assert stay == [[(A, 1), (A, 2)], [], [], [], []]
    assert [is_kept(reuse, run, at) for run, at in zip(terms, starts, strict=True)] == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert reuse.find_cut(ByteRange(0, 9 * CHUNK)) == 5 * CHUNK
    (term,) = reuse.find_run(5 * CHUNK, 9 * CHUNK)
    assert (term.start, term.end) == (5 * CHUNK, 7 * CHUNK)
    assert reuse.peak == 2 * CHUNK


def test_a_chunk_stays_until_its_last_use() -> None:
    first, second, third = (A, 0, 4), (A, 2, 6), (A, 3, 4)
    reuse = learn(first, second, third)
    assert [chunk for chunk in range(6) if reuse.stays((A, chunk), chunk * CHUNK)] == [2, 3]
    assert not is_kept(reuse, second, 4)  # chunks 4 and 5 are new
    assert is_kept(reuse, (A, 2, 4), 4)
    assert is_kept(reuse, third, 8)
    assert not reuse.stays((A, 3), 8 * CHUNK)
    assert reuse.peak == 2 * CHUNK


def test_windows_end_where_kept_terms_begin() -> None:
    reuse = learn((A, 0, 4), (B, 0, 2), (A, 1, 3), (A, 0, 1), (B, 2, 3))
    assert reuse.find_cut(ByteRange(0, 100 * CHUNK)) == 6 * CHUNK
    assert reuse.find_cut(ByteRange(0, 5 * CHUNK)) == 5 * CHUNK
    run = reuse.find_run(6 * CHUNK, BIG)
    assert [(term.start // CHUNK, term.end // CHUNK) for term in run] == [(6, 8), (8, 9)]
    assert len(reuse.find_run(6 * CHUNK, 7 * CHUNK)) == 1
    assert reuse.find_run(6 * CHUNK + 1, BIG) == []  # inside a term
    assert reuse.find_run(9 * CHUNK, BIG) == []  # new


def test_short_runs_are_left_in_their_window() -> None:
    terms = (Term(A, ChunkRange(0, 9), 9000), Term(A, ChunkRange(2, 3), 1000))
    infos: dict[bytes, tuple[FetchInfo, ...]] = {
        A: (FetchInfo(ChunkRange(0, 9), ByteRange(0, 9000), "http://data.test/"),)
    }
    reuse = ChunkReuse()
    reuse.add(Reconstruction(0, terms, infos), 0, read=(0, 0), planned=0, capacity=BIG)
    assert reuse.is_kept(A, ChunkRange(2, 3), 9000, 10_000)
    assert reuse.find_cut(ByteRange(0, 10000)) == 10000
    assert reuse.find_run(9000, BIG) == []


def test_what_is_needed_last_goes_first() -> None:
    runs: list[Run] = [(A, 0, 3), (A, 2, 3), (A, 1, 2), (A, 0, 1)]
    reuse = learn(*runs, capacity=2 * CHUNK)
    assert [is_kept(reuse, run, at) for run, at in zip(runs[1:], (3, 4, 5), strict=True)] == [
        *(True, True, False)
    ]
    assert reuse.peak <= 2 * CHUNK
    assert learn(*runs, capacity=0).peak == 0


def test_what_was_read_already_does_not_change() -> None:
    again = (A, 0, 4)
    reuse = learn(again, again, again, read=(2 * CHUNK, 2), planned=3 * CHUNK)
    assert not reuse.stays((A, 1), 1 * CHUNK)  # it was read without knowing
    assert reuse.stays((A, 2), 2 * CHUNK)  # planned, but it can still be kept
    assert reuse.stays((A, 1), 5 * CHUNK)
    assert not is_kept(reuse, again, 4)
    assert is_kept(reuse, (A, 2, 4), 6)


def test_what_windows_count_on_does_not_change() -> None:
    reuse = learn((A, 0, 4), (B, 0, 4), (A, 0, 4), capacity=4 * CHUNK)
    more = answer_for([(B, 1, 2), (B, 0, 4)])
    reuse.add(more, 12 * CHUNK, read=(0, 0), planned=5 * CHUNK, capacity=1 * CHUNK)
    assert is_kept(reuse, (A, 0, 4), 8)  # promised, although there is less room now
    assert not is_kept(reuse, (B, 1, 2), 12)


def test_what_stays_outlives_the_term_that_it_came_with() -> None:
    reuse = learn((A, 0, 4), (B, 0, 4), (A, 0, 4))
    reuse.forget(6 * CHUNK)
    read, planned = (6 * CHUNK, 2), 8 * CHUNK
    reuse.add(answer_for([(B, 50, 60)]), 12 * CHUNK, read=read, planned=planned, capacity=BIG)
    assert is_kept(reuse, (A, 0, 4), 8)
    assert not reuse.stays((A, 2), 8 * CHUNK)
    reuse.forget(12 * CHUNK)
    read, planned = (12 * CHUNK, 50), 12 * CHUNK
    reuse.add(answer_for([(A, 0, 1)]), 22 * CHUNK, read=read, planned=planned, capacity=BIG)
    assert reuse.is_empty


def test_a_term_is_split_where_a_window_ends() -> None:
    reuse = learn((A, 0, 8), (A, 0, 8), read=(3 * CHUNK, 3), planned=4 * CHUNK)
    assert reuse.find_run(8 * CHUNK, BIG) == []  # its first chunks are gone
    reuse.split(10 * CHUNK, 2)
    assert reuse.find_run(10 * CHUNK, BIG) == []
    reuse.split(11 * CHUNK, 3)
    run = reuse.find_run(11 * CHUNK, BIG)
    assert [(term.start, term.end, term.chunks) for term in run] == [
        (11 * CHUNK, 16 * CHUNK, ChunkRange(3, 8))
    ]


def test_a_term_is_split_where_chunks_that_were_read_begin_or_end() -> None:
    first, kept_first, kept_last = (A, 0, 4), (A, 2, 8), (A, 40, 44)
    reuse = learn(first, kept_first, (B, 0, 1), kept_last, (A, 36, 42))
    assert reuse.find_run(4 * CHUNK, BIG) == []  # not before the sizes are known
    for chunk in range(4):
        reuse.record_size((A, chunk), CHUNK)
    assert [(term.start, term.end) for term in reuse.find_run(4 * CHUNK, BIG)] == [
        (4 * CHUNK, 6 * CHUNK)
    ]
    last = 15 * CHUNK
    assert reuse.find_cut(ByteRange(last, last + 6 * CHUNK)) == last + 6 * CHUNK
    for chunk in range(40, 42):
        reuse.record_size((A, chunk), CHUNK)
    assert reuse.find_cut(ByteRange(last, last + 6 * CHUNK)) == last + 4 * CHUNK


def test_an_answer_may_start_inside_a_term() -> None:
    reuse = ChunkReuse()
    reuse.add(
        answer_for([(A, 0, 3), (A, 0, 3)], offset=CHUNK),
        5 * CHUNK,
        read=(0, 0),
        planned=0,
        capacity=BIG,
    )
    assert reuse.known_end == 10 * CHUNK
    assert is_kept(reuse, (A, 0, 3), 7)


@pytest.mark.parametrize("seed", range(20))
def test_a_chunk_that_is_kept_has_been_told_to_stay(seed: int) -> None:
    """Whatever is learnt when: reading in order, what is_kept promises is there, and no more than
    peak.
    """
    source = random.Random(seed)
    reuse = ChunkReuse()
    here: set[tuple[bytes, int]] = set()
    runs: list[tuple[int, Run]] = []
    position = planned = 0
    for _ in range(6):
        more = []
        for _ in range(source.randrange(1, 12)):
            start = source.randrange(12)
            run = (source.choice((A, B)), start, start + source.randrange(1, 5))
            more.append(run)
            runs.append((position, run))
            position += run[2] - run[1]
        known = reuse.known_end or 0
        capacity = source.randrange(12) * CHUNK
        read = (planned * CHUNK, runs[0][1][1])
        reuse.add(answer_for(more), known, read=read, planned=read[0], capacity=capacity)
        peak = reuse.peak
        for _ in range(source.randrange(len(runs))):
            at, (xorb, start, end) = runs.pop(0)
            if is_kept(reuse, (xorb, start, end), at):
                assert all((xorb, chunk) in here for chunk in range(start, end))
            for chunk in range(start, end):
                if reuse.stays((xorb, chunk), at * CHUNK):
                    here.add((xorb, chunk))
                else:
                    here.discard((xorb, chunk))
            planned = at + end - start
            assert len(here) * CHUNK <= peak
            reuse.forget(planned * CHUNK)


def test_what_goes_on_behind_the_known_end_is_not_kept() -> None:
    """The answer for a window shows the whole term, of which the survey saw the beginning."""
    reuse = learn((A, 0, 4), (A, 0, 4), (A, 0, 2))
    assert is_kept(reuse, (A, 0, 2), 8)
    assert not is_kept(reuse, (A, 0, 4), 8)  # chunks 2 and 3 were kept until 4, not until 8


def test_the_cases_above_keep_something() -> None:
    runs: list[Run] = [(A, 0, 4), (A, 0, 4)]
    assert is_kept(learn(*runs), runs[1], 4)
