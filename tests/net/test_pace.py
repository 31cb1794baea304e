"""The least rate of a client."""

import pytest

from xetserve.net.pace import RateFloor


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
