"""How far to look ahead: a few made-up clients and upstreams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.pipeline.flow.pacing import (
    MAX_BLOCK,
    MAX_HOLD,
    MAX_SHARED_WINDOW,
    MAX_WINDOW,
    MIN_BLOCK,
    MIN_HOLD,
    MIN_WINDOW,
    HostSpeed,
    Pacer,
    Stopwatch,
)

GB = 1e9
MIB = 1024 * 1024
PLENTY = 1 << 40


def host_speed(latency: float, bandwidth: float) -> HostSpeed:
    far = HostSpeed()
    far.note_fetch(latency, int(bandwidth), 1.0)
    return far


NEAR = host_speed(0.0005, 2 * GB)
FAR = host_speed(0.04, 10e6)


def test_the_example_of_the_module() -> None:
    far, pacer = HostSpeed(), Pacer()
    far.note_fetch(0.05, 10_000_000, 1.0)
    for _ in range(2000):
        pacer.note_block(40_000, 0.0, 0.005)
        pacer.note_starved(0.003)
    pacer.note_window(2000 * 40_000, PLENTY, far)
    assert pacer.hold_limit == pytest.approx(1_000_000, rel=0.01)
    assert pacer.block_size == pytest.approx(40_000, rel=0.01)
    assert pacer.ahead_limit == pytest.approx(15_000_000, rel=0.01)
    assert pacer.window_size == 2 * MIN_WINDOW


def play(
    pacer: Pacer,
    *,
    rate: float,
    blocked: float = 0.0,
    starved: float = 0.0,
    share: int = PLENTY,
    count: int = 1,
    far: HostSpeed | None = None,
) -> None:
    """Let windows pass at a rate in bytes a second; blocked and starved are shares of the time."""
    for _ in range(count):
        size = left = pacer.window_size
        while left:
            block = min(left, pacer.block_size)
            left -= block
            pacer.note_starved(block / rate * starved)
            pacer.note_block(block, block / rate * blocked, block / rate)
        pacer.note_window(size, share, far or NEAR)


def sizes(pacer: Pacer) -> tuple[int, int, int, int]:
    return pacer.hold_limit, pacer.ahead_limit, pacer.window_size, pacer.block_size


SMALLEST = (MIN_HOLD, MIN_HOLD, MIN_WINDOW, MIN_BLOCK)


def test_it_starts_small() -> None:
    assert sizes(Pacer()) == SMALLEST


def test_a_fast_client_gets_large_sizes_and_nothing_extra_is_fetched_ahead() -> None:
    pacer = Pacer()
    play(pacer, rate=GB, count=500)
    assert sizes(pacer) == (MAX_HOLD, MIN_HOLD, MAX_WINDOW, MAX_BLOCK)


def test_windows_of_the_fastest_stay_as_large_as_what_is_held_where_others_want_it() -> None:
    pacer = Pacer()
    play(pacer, rate=GB, count=500)
    pacer.note_window(MAX_WINDOW, 1 << 27, NEAR, is_shared=True)
    assert pacer.window_size == MAX_SHARED_WINDOW == MAX_HOLD


def test_windows_are_small_where_the_cache_is() -> None:
    pacer = Pacer()
    play(pacer, rate=GB, count=50)
    pacer.note_window(MAX_WINDOW, 1 << 27, NEAR, max_stored=30 * MIB)
    assert pacer.window_size == 4 * MIB


def count_windows(size: int, *, rate: float, far: HostSpeed = NEAR, share: int = PLENTY) -> int:
    """Count the windows that a file of size bytes needs; they lie on a grid."""
    pacer = Pacer()
    position = count = 0
    while position < size:
        end = min((position // pacer.window_size + 1) * pacer.window_size, size)
        for _ in range(position, end, pacer.block_size):
            pacer.note_starved(0.9 * pacer.block_size / rate)
            pacer.note_block(pacer.block_size, 0.0, pacer.block_size / rate)
        pacer.note_window(end - position, share, far)
        position, count = end, count + 1
    return count


@pytest.mark.parametrize(
    ("rate", "far", "most"), [(GB / 2, NEAR, 12), (8e6, NEAR, 20), (80e6, FAR, 140)]
)
def test_a_gib_needs_few_questions(rate: float, far: HostSpeed, most: int) -> None:
    assert count_windows(1 << 30, rate=rate, far=far, share=64 * MIB) <= most


def test_a_far_upstream_gets_few_questions_though_moments_are_slow() -> None:
    pacer = Pacer()
    count = position = 0
    while position < 1 << 30:
        count += 1
        position += pacer.window_size
        rate = pacer.ahead_limit / FAR.get_fetch_seconds(pacer.window_size)
        slow = 0.4 if count % 7 < 2 else 1.0
        play(pacer, rate=slow * min(max(rate, 5e6), 75e6), starved=0.5, far=FAR, share=64 * MIB)
    assert count <= 140


def test_a_client_slower_than_one_connection_of_a_far_upstream_gets_long_windows() -> None:
    pacer = Pacer()
    play(pacer, rate=5e6, starved=0.6, far=FAR, count=3)  # as long as windows are short
    assert pacer.ahead_limit > MIN_HOLD
    play(pacer, rate=6e6, blocked=0.9, far=FAR, count=12)
    assert (pacer.ahead_limit, pacer.window_size) == (MIN_HOLD, 64 * MIB)
    play(pacer, rate=11e6, blocked=0.3, far=FAR, count=1)
    assert pacer.window_size < 2 * MIB  # in parallel: one connection is too slow for it


@pytest.mark.parametrize("swallowed", [0, 4 * MIB])
def test_a_slow_clients_window_does_not_last_for_minutes(swallowed: int) -> None:
    pacer = Pacer()
    for _ in range(0, swallowed, MIN_BLOCK):
        pacer.note_block(MIN_BLOCK, 0.0, 1e-5)
    pacer.note_window(swallowed, PLENTY, NEAR)
    assert pacer.window_size <= max(MIN_WINDOW, 4 * swallowed)
    for _ in range(40):
        pacer.note_block(MIN_BLOCK, 0.5, 0.5)
    pacer.note_window(MIN_WINDOW, PLENTY, NEAR)
    assert pacer.window_size == MIN_WINDOW


def test_a_slow_client_keeps_small_ones() -> None:
    pacer = Pacer()
    play(pacer, rate=100_000, blocked=0.99, count=10)
    assert sizes(pacer) == SMALLEST


def test_a_client_that_becomes_slow_gets_small_ones_again() -> None:
    pacer = Pacer()
    play(pacer, rate=GB, count=500)
    play(pacer, rate=100_000, blocked=0.99, count=10)
    assert sizes(pacer) == SMALLEST


def test_a_kernel_that_swallows_the_first_megabytes_is_no_fast_client() -> None:
    pacer = Pacer()
    pacer.note_block(MIN_HOLD * 4, 0.0, 1e-6)
    assert sizes(pacer) == SMALLEST


def test_more_is_fetched_ahead_of_a_far_upstream_until_it_keeps_up() -> None:
    pacer = Pacer()
    # What a reader gets of an upstream with 40 ms and 10 MB/s a connection: what is on its way,
    # once a fetch.
    rate = 10e6
    for _ in range(40):
        rate = max(rate, pacer.ahead_limit / FAR.get_fetch_seconds(pacer.window_size))
        play(pacer, rate=rate, starved=0.9, far=FAR, count=20)
    assert rate > 6 * 10e6
    assert pacer.window_size * 4 <= pacer.ahead_limit


def test_waiting_for_a_near_upstream_is_no_reason_to_hold_more() -> None:
    pacer = Pacer()
    play(pacer, rate=GB / 2, starved=0.9, count=500)
    assert pacer.ahead_limit <= MAX_HOLD


def test_what_is_fetched_ahead_shrinks_when_the_client_is_the_slow_one() -> None:
    pacer = Pacer()
    play(pacer, rate=GB / 10, starved=0.9, far=FAR, count=500)
    assert pacer.ahead_limit > 16 * MIN_HOLD
    play(pacer, rate=GB, blocked=0.9, far=FAR, count=500)
    assert pacer.ahead_limit == MIN_HOLD


def test_a_fetch_is_timed_from_the_request_on_and_its_bandwidth_without_the_first_read() -> None:
    far = HostSpeed()
    make_watch().record_in(far, 102.5, busy=7.0, paused=0.0)
    assert far.get_fetch_seconds(4_000_000) == pytest.approx(2 * 0.5 + 1.0)


def make_watch() -> Stopwatch:
    """A fetch that began at 100 s, and had its bytes at 102.5 s."""
    watch = Stopwatch(100.0, busy=7.0)
    watch.note_bytes(1 << 20, 100.5)
    watch.note_bytes(4_000_000, 101.0)
    watch.note_bytes(4_000_000, 102.5)
    return watch


@pytest.mark.parametrize(
    ("busy", "paused", "tells"),
    [
        pytest.param(0.6, 0.6, True, id="hardly"),
        pytest.param(0.0, 1.3, False, id="the client"),
        pytest.param(1.3, 0.0, False, id="this process"),
        pytest.param(0.7, 0.7, False, id="both"),
    ],
)
def test_a_fetch_tells_the_bandwidth_unless_somebody_else_was_slow(
    busy: float, paused: float, *, tells: bool
) -> None:
    far = HostSpeed()
    make_watch().record_in(far, 102.5, busy=7.0 + busy, paused=paused)
    bandwidth_part = far.get_fetch_seconds(4_000_000) - 2 * 0.5
    assert bandwidth_part == pytest.approx(1.0 if tells else 0.0)


def test_the_speed_of_a_host_is_that_of_its_best_fetches() -> None:
    far = HostSpeed()
    assert far.get_fetch_seconds(1000) == 0.0
    far.note_fetch(0.05, 1_000_000, 0.1)
    assert far.get_fetch_seconds(10_000_000) == pytest.approx(1.1)
    far.note_fetch(0.5, 1_000_000, 10.0)  # that was our own machine, busy
    assert far.get_fetch_seconds(10_000_000) == pytest.approx(1.1, rel=0.05)
    for _ in range(2500):  # or, if it lasts, another route
        far.note_fetch(0.5, 1_000_000, 10.0)
    assert far.get_fetch_seconds(1_000_000) == pytest.approx(11, rel=0.05)


@pytest.mark.parametrize("share", [0, MIN_HOLD, MIN_HOLD * 3 // 2])
def test_the_budget_caps_it(share: int) -> None:
    pacer = Pacer()
    play(pacer, rate=GB, starved=0.5, share=share, count=5)
    assert pacer.ahead_limit <= max(MIN_HOLD, share)


SECONDS = st.floats(0, 1e5)
SIZES = st.integers(0, 1 << 32)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("block"), SIZES, SECONDS, SECONDS),
            st.tuples(st.just("starved"), st.just(0), SECONDS, st.just(0.0)),
            st.tuples(st.just("window"), SIZES, st.just(0.0), st.just(0.0)),
        ),
        max_size=60,
    )
)
def test_no_history_leads_out_of_bounds(history: list[tuple[str, int, float, float]]) -> None:
    pacer = Pacer()
    share = 1 << 28
    for kind, size, seconds, elapsed in history:
        if kind == "block":
            pacer.note_block(size, min(seconds, elapsed), elapsed)
        elif kind == "starved":
            pacer.note_starved(seconds)
        else:
            pacer.note_window(size, share, FAR)
        assert MIN_HOLD <= pacer.hold_limit <= MAX_HOLD
        assert MIN_HOLD <= pacer.ahead_limit <= share
        assert MIN_WINDOW <= pacer.window_size <= MAX_WINDOW
        assert MIN_BLOCK <= pacer.block_size <= MAX_BLOCK
        assert all(type(value) is int for value in sizes(pacer))
