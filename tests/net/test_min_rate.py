"""The least rate of a client."""

import pytest

from xetserve.net.min_rate import BodyDeadline, RateFloor


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        pytest.param([(10.0, 1000)], [True], id="just enough"),
        pytest.param([(10.0, 999)], [False], id="too little"),
        pytest.param([(9.9, 0)], [True], id="nothing, but the window is not over"),
        pytest.param([(5.0, 0), (5.0, 1000)], [True, True], id="in lumps"),
        pytest.param([(5.0, 400), (5.0, 400)], [True, False], id="too little in sum"),
        pytest.param([(10.0, 5000), (10.0, 0)], [True, False], id="each window for itself"),
        pytest.param([(10.0, 0), (10.0, 1000)], [False, True], id="a window does not carry over"),
        pytest.param([(0.0, 10**9)] * 3, [True] * 3, id="no time"),
    ],
)
def test_a_rate_is_kept_or_not(waits: list[tuple[float, int]], expected: list[bool]) -> None:
    floor = RateFloor(100, 10)
    assert [floor.allows(seconds, taken) for seconds, taken in waits] == expected


@pytest.mark.parametrize(
    ("rate", "steps", "left"),
    [
        pytest.param(100, [(10.0, 0)], 20.0, id="a pause"),
        pytest.param(100, [(30.0, 0)], 0.0, id="too long a pause"),
        pytest.param(100, [(10.0, 1000)] * 50, 30.0, id="at the rate"),
        pytest.param(100, [(1.0, 1)] * 30, 0.3, id="a byte now and then"),
        pytest.param(100, [(0.0, 10**6), (29.0, 0)], 1.0, id="a lump earns no more than there was"),
        pytest.param(0, [(29.0, 1)] * 50, 30.0, id="no rate"),
    ],
)
def test_patience_with_a_body(rate: float, steps: list[tuple[float, int]], left: float) -> None:
    patience = BodyDeadline(30.0, rate)
    for seconds, num_bytes in steps:
        patience.wait(seconds)
        patience.note(num_bytes)
    assert patience.left == pytest.approx(left)


def test_patience_may_have_no_end() -> None:
    patience = BodyDeadline(0.0, 100.0)
    patience.wait(1000.0)
    assert patience.left is None
