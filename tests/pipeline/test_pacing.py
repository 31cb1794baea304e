"""How far to look ahead: a few made-up clients and upstreams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.pipeline.pacing import (
    MAX_BLOCK,
    MAX_WINDOW,
    MIN_BLOCK,
    MIN_WINDOW,
    PARALLEL_FETCHES,
    Pacer,
)

GB = 1e9


def play(pacer: Pacer, *, blocked: float, starved: float, rate: float, count: int = 1) -> None:
    """Let windows pass at a rate in bytes a second; blocked and starved are shares of the time."""
    for _ in range(count):
        size = pacer.window_size
        elapsed = size / rate
        pacer.note_block(pacer.block_size, elapsed * blocked)
        pacer.note_starved(elapsed * starved)
        pacer.note_window(size, elapsed)


def test_it_starts_small() -> None:
    pacer = Pacer()
    assert (pacer.window_size, pacer.block_size, pacer.ahead_limit) == (
        MIN_WINDOW,
        MIN_BLOCK,
        MIN_WINDOW,
    )


def test_a_fast_client_gets_large_windows_and_blocks() -> None:
    pacer = Pacer()
    sizes = []
    for _ in range(8):
        play(pacer, blocked=0, starved=0, rate=GB)
        sizes.append(pacer.window_size)
    assert sizes[0] == 2 * MIN_WINDOW  # never more than double
    assert sizes[-1] == MAX_WINDOW
    assert pacer.block_size == MAX_BLOCK
    assert pacer.ahead_limit == MIN_WINDOW  # nothing was waited for


def test_a_slow_client_keeps_small_ones() -> None:
    pacer = Pacer()
    play(pacer, blocked=0.99, starved=0, rate=100_000, count=10)
    assert (pacer.window_size, pacer.block_size) == (MIN_WINDOW, MIN_BLOCK)
    assert pacer.ahead_limit == MIN_WINDOW


def test_a_client_that_becomes_slow_gets_smaller_ones_again() -> None:
    pacer = Pacer()
    play(pacer, blocked=0, starved=0, rate=GB, count=8)
    play(pacer, blocked=0.99, starved=0, rate=100_000, count=30)
    assert (pacer.window_size, pacer.block_size) == (MIN_WINDOW, MIN_BLOCK)


def test_a_slow_upstream_is_asked_for_more_at_once_in_smaller_windows() -> None:
    pacer = Pacer()
    play(pacer, blocked=0, starved=0.5, rate=GB, count=5)
    assert pacer.ahead_limit == MIN_WINDOW * 32
    assert pacer.window_size == pacer.ahead_limit // PARALLEL_FETCHES


def test_what_is_fetched_ahead_shrinks_when_the_client_is_the_slow_one() -> None:
    pacer = Pacer()
    play(pacer, blocked=0, starved=0.5, rate=GB, count=5)
    ahead = pacer.ahead_limit
    play(pacer, blocked=0.9, starved=0, rate=GB)
    assert pacer.ahead_limit == ahead // 2
    play(pacer, blocked=0.9, starved=0, rate=GB, count=20)
    assert pacer.ahead_limit == MIN_WINDOW


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, MIN_WINDOW), (5 * MIN_WINDOW, 5 * MIN_WINDOW), (1 << 60, 1 << 25)]
)
def test_the_budget_caps_it(limit: int, expected: int) -> None:
    pacer = Pacer()
    play(pacer, blocked=0, starved=0.5, rate=GB, count=5)
    pacer.cap_ahead(limit)
    assert pacer.ahead_limit == expected


SECONDS = st.floats(0, 1e5)
SIZES = st.integers(0, 1 << 32)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("block"), SIZES, SECONDS),
            st.tuples(st.just("starved"), st.just(0), SECONDS),
            st.tuples(st.just("window"), SIZES, SECONDS),
        ),
        max_size=60,
    )
)
def test_no_history_leads_out_of_bounds(history: list[tuple[str, int, float]]) -> None:
    pacer = Pacer()
    for kind, size, seconds in history:
        if kind == "block":
            pacer.note_block(size, seconds)
        elif kind == "starved":
            pacer.note_starved(seconds)
        else:
            pacer.note_window(size, seconds)
            pacer.cap_ahead(1 << 28)
        assert MIN_WINDOW <= pacer.window_size <= MAX_WINDOW
        assert MIN_BLOCK <= pacer.block_size <= MAX_BLOCK
        assert MIN_WINDOW <= pacer.ahead_limit <= 1 << 28
        assert type(pacer.window_size) is type(pacer.block_size) is int
