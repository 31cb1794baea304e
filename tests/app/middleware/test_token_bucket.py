"""Token buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.app.middleware.token_bucket import Bucket, BucketTable


def test_a_bucket_is_full_at_first_and_fills_at_its_rate() -> None:
    bucket = Bucket(rate=2, capacity=4, now=100)
    assert bucket.wait_time(4, 100) == 0
    bucket.take(4, 100)
    assert bucket.wait_time(1, 100) == 0.5
    assert bucket.wait_time(4, 100) == 2
    assert bucket.wait_time(1, 100.25) == 0.25
    assert bucket.wait_time(1, 100.5) == 0


def test_it_never_holds_more_than_its_capacity() -> None:
    bucket = Bucket(rate=2, capacity=4, now=0)
    bucket.take(4, 1000)
    assert bucket.wait_time(1, 1000) == 0.5


def test_what_is_owed_is_filled_up_first() -> None:
    bucket = Bucket(rate=10, capacity=10, now=0)
    bucket.take(110, 0)
    assert bucket.wait_time(0, 0) == 10
    assert bucket.wait_time(0, 10) == 0


def test_more_than_it_can_hold_waits_until_it_is_full() -> None:
    bucket = Bucket(rate=1, capacity=5, now=0)
    assert bucket.wait_time(100, 0) == 0
    bucket.take(100, 0)
    assert bucket.wait_time(100, 0) == 100


def test_time_that_stands_still_fills_nothing() -> None:
    bucket = Bucket(rate=1, capacity=1, now=5)
    bucket.take(1, 5)
    assert bucket.wait_time(1, 5) == 1


@given(
    st.floats(0.1, 1000),
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 500)), max_size=50),
)
def test_no_more_passes_than_capacity_and_rate_allow(
    rate: float, capacity: float, events: list[tuple[float, float]]
) -> None:
    bucket = Bucket(rate, capacity, 0)
    now = passed = 0.0
    for pause, amount in events:
        now += pause
        if amount <= capacity and bucket.wait_time(amount, now) == 0:
            bucket.take(amount, now)
            passed += amount
        assert passed <= (capacity + rate * now) * (1 + 1e-9) + 1e-6


def test_a_key_keeps_its_bucket() -> None:
    table = BucketTable(rate=1, burst=1, max_keys=10)
    table.get("a", 0).take(1, 0)
    assert table.get("a", 0).wait_time(1, 0) == 1
    assert table.get("b", 0).wait_time(1, 0) == 0


def test_the_table_is_bounded_and_forgets_who_was_away_longest() -> None:
    table = BucketTable(rate=1, burst=1, max_keys=3)
    for key in ("a", "b", "c"):
        table.get(key, 0).take(1, 0)
    table.get("a", 0)
    table.get("d", 0)
    assert len(table) == 3
    assert [table.get(key, 0).wait_time(1, 0) for key in ("a", "c")] == [1, 1]
    assert table.get("b", 0).wait_time(1, 0) == 0


@pytest.mark.parametrize(
    ("rate", "burst", "expected"),
    [
        pytest.param(5, 10, 50, id="so many seconds' worth"),
        pytest.param(0.01, 10, 1, id="one at least"),
    ],
)
def test_a_bucket_holds_a_burst(rate: float, burst: float, expected: int) -> None:
    bucket = BucketTable(rate, burst, 1).get("a", 0)
    count = 0
    while bucket.wait_time(1, 0) == 0:
        bucket.take(1, 0)
        count += 1
    assert count == expected
