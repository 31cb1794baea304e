"""Trouble is remembered for its time, for its token and kind of question, and is forgotten then."""

import pytest

from xetserve.errors import UpstreamBusy
from xetserve.upstream.answers.backoff import DOWN_TIME, MAX_PAUSE, Backoff


class Bench:
    """Backoff, and their clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.troubles = Backoff(5.0, lambda: self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def busy(retry_after: float | None = None, *fields: tuple[str, str]) -> UpstreamBusy:
    return UpstreamBusy("slow", status=429, retry_after=retry_after, headers=fields)


def test_trouble_counts_for_a_while(bench: Bench) -> None:
    bench.troubles.note_down("me", "file")
    assert bench.troubles.find("others", "file") is None
    assert bench.troubles.find("me", "tree") is None
    bench.now += DOWN_TIME - 0.1
    error = bench.troubles.find("me", "file")
    assert error is not None
    assert not isinstance(error, UpstreamBusy)
    bench.now += 0.2
    assert bench.troubles.find("me", "file") is None


def test_an_answer_ends_trouble_but_no_pause(bench: Bench) -> None:
    bench.troubles.note_down("me", "file")
    bench.troubles.note_up("me", "file")
    assert bench.troubles.find("me", "file") is None
    bench.troubles.note_busy("me", "file", busy(20.0))
    bench.troubles.note_up("me", "file")
    assert bench.troubles.find("me", "file") is not None


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        pytest.param(busy(20.0), 20.0, id="Retry-After"),
        pytest.param(busy(0.5), 0.5, id="a short one"),
        pytest.param(busy(9999.0), MAX_PAUSE, id="capped"),
        pytest.param(busy(None, ("RateLimit", '"api";r=0;t=33')), 33.0, id="RateLimit"),
        pytest.param(busy(None, ("ratelimit", "x"), ("RateLimit", "y; t=7")), 7.0, id="two fields"),
        pytest.param(busy(None, ("RateLimit", "t=33")), 5.0, id="not understood"),
        pytest.param(busy(), 5.0, id="neither"),
    ],
)
def test_a_pause_is_as_long_as_was_said(bench: Bench, error: UpstreamBusy, pause: float) -> None:
    bench.troubles.note_busy("me", "file", error)
    bench.troubles.note_down("me", "file")
    bench.now += pause / 2
    found = bench.troubles.find("me", "file")
    assert isinstance(found, UpstreamBusy)  # that counts more than other trouble
    assert (found.status, found.headers) == (429, error.headers)
    assert found.retry_after == pytest.approx(pause / 2)
    bench.now += MAX_PAUSE
    assert bench.troubles.find("me", "file") is None


def test_what_is_over_takes_no_memory(bench: Bench) -> None:
    for number in range(100):
        bench.now += MAX_PAUSE
        bench.troubles.note_busy(str(number), "file", busy(1.0))
        bench.troubles.note_down(str(number), "file")
    assert len(bench.troubles._pauses) == len(bench.troubles._down_until) == 1


def test_a_note_keeps_no_traceback(bench: Bench) -> None:
    error = busy(20.0)
    try:
        raise error
    except UpstreamBusy as exc:
        bench.troubles.note_busy("me", "file", exc)
    ((_, (_, kept)),) = [bench.troubles._pauses.peek_first() or ("", (0.0, error))]
    assert (str(kept), kept.__traceback__, kept.__context__) == (str(error), None, None)
