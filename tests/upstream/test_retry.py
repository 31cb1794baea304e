"""When to try again. The clock is a number."""

import pytest

from xetserve.errors import (
    RangeUnsatisfiable,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamTimeout,
    UrlExpired,
)
from xetserve.upstream.retry import RetryPolicy, RetryState

POLICY = RetryPolicy(first_delay=1.0, max_delay=8.0, time_limit=100.0)
ERROR = UpstreamError("500")


def test_pauses_double_up_to_their_bound() -> None:
    for _ in range(50):
        state = RetryState(POLICY, 0)
        for bound in (1, 2, 4, 8, 8, 8):
            delay = state.next_delay(ERROR, 0)
            assert delay is not None
            assert bound / 2 <= delay <= bound


def test_clients_that_failed_together_do_not_come_back_together() -> None:
    assert len({RetryState(POLICY, 0).next_delay(ERROR, 0) for _ in range(20)}) > 10


@pytest.mark.parametrize(
    "error",
    [ERROR, UpstreamTimeout("late"), UpstreamBusy("busy"), UpstreamBusy("slow down", status=429)],
)
def test_trouble_is_tried_again(error: UpstreamError) -> None:
    assert RetryState(POLICY, 0).next_delay(error, 0) is not None


@pytest.mark.parametrize(
    "error",
    [
        UpstreamMissing("no"),
        UpstreamDenied("no", status=401),
        UpstreamRefused("no"),
        UrlExpired("old"),
        RangeUnsatisfiable("past the end"),
    ],
)
def test_facts_are_not_tried_again(error: UpstreamError) -> None:
    assert RetryState(POLICY, 0).next_delay(error, 0) is None


def test_no_try_is_made_after_the_time_limit() -> None:
    state = RetryState(POLICY, 1000)
    assert state.next_delay(ERROR, 1099.6) is None  # at least half a second would be waited
    assert state.next_delay(ERROR, 1101) is None


def test_progress_starts_the_time_and_the_pauses_over() -> None:
    state = RetryState(POLICY, 0)
    for _ in range(5):
        state.next_delay(ERROR, 0)
    state.note_progress(99)
    delay = state.next_delay(ERROR, 150)
    assert delay is not None
    assert delay <= 1
    assert state.next_delay(ERROR, 199) is None


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        pytest.param(30.0, 30.0, id="kept"),
        pytest.param(0.0, None, id="never less than the pause"),
        pytest.param(1000.0, "give up", id="too long"),
    ],
)
def test_retry_after(retry_after: float, expected: float | str | None) -> None:
    delay = RetryState(POLICY, 0).next_delay(UpstreamBusy("busy", retry_after=retry_after), 0)
    if expected == "give up":
        assert delay is None
    elif expected is None:
        assert delay is not None
        assert delay >= 0.5
    else:
        assert delay == expected


def test_the_usual_policy_ends_before_clients_give_up() -> None:
    policy = RetryPolicy()
    assert policy.time_limit < 8
    state = RetryState(policy, 0)
    now = 0.0
    while (delay := state.next_delay(ERROR, now)) is not None:
        now += delay
    assert now < 8
