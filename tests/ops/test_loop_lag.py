"""A loop that keeps others waiting is measured, and whoever keeps it is named."""

import asyncio
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.waiting import PATIENCE
from xetserve.metrics.catalogue import LOOP_LAG, LOOP_LAG_MAX, REGISTRY
from xetserve.ops.loop_lag import MAX_FRAMES, LoopWatch, describe, watching_loop

SECRET = "hf_of_somebody"


class Seen(logging.Handler):
    """Tells of what is logged by the watch's thread, while the loop hangs on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.hanging = threading.Event()
        self.over = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if "hang_in_" in line:
            self.lines.append(line)
            self.hanging.set()
        elif self.hanging.is_set():
            self.over.set()


class Counted(LoopWatch):
    """Tells when it has measured five times."""

    def __init__(self) -> None:
        super().__init__(limit=PATIENCE, tick=0.001, check_interval=0.001)
        self.left = 5
        self.done = asyncio.Event()

    def note(self, lag: float) -> None:
        super().note(lag)
        self.left -= 1
        if not self.left:
            self.done.set()


@pytest.fixture
def seen() -> Iterator[Seen]:
    handler = Seen()
    logger = logging.getLogger("xetserve.ops.loop_lag")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def hang_in_python(seen: Seen, token: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not seen.hanging.is_set() and time.monotonic() < deadline:
        pass


def hang_in_c(seen: Seen, token: str) -> None:
    """A pattern keeps all threads waiting; as long as nothing was seen, it is matched again."""
    deadline = time.monotonic() + PATIENCE
    while not seen.hanging.is_set() and time.monotonic() < deadline:
        re.fullmatch("(a+)+b", "a" * 22)


@pytest.mark.parametrize("hang", [hang_in_python, hang_in_c])
async def test_who_keeps_the_loop_is_named_while_it_does(
    seen: Seen, hang: Callable[[Seen, str], None]
) -> None:
    LOOP_LAG_MAX.set(0.0)
    async with watching_loop(LoopWatch(limit=0.3, tick=0.001, check_interval=0.001)):
        await asyncio.sleep(0)
        hang(seen, SECRET)
        assert await asyncio.to_thread(seen.over.wait, PATIENCE)
    (line,) = seen.lines
    assert f"{hang.__name__} (ops/test_loop_lag.py:" in line
    assert "< test_who_keeps_the_loop_is_named_while_it_does (" in line
    assert "\n" not in line
    assert SECRET not in line
    assert LOOP_LAG_MAX.get() >= 0.3
    assert "loop-watch" not in {thread.name for thread in threading.enumerate()}


async def test_a_loop_that_turns_is_measured_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = count()
    watch = Counted()
    async with watching_loop(watch):
        await watch.done.wait()
    assert count() >= before + 5
    assert caplog.text == ""


def count() -> float:
    (values,) = LOOP_LAG.merge([read()]).values()
    return sum(values[:-1])


def read() -> dict[tuple[str, tuple[str, ...]], list[float]]:
    place = REGISTRY.cells.find((LOOP_LAG.name, ()), LOOP_LAG.width)
    return {(LOOP_LAG.name, ()): list(REGISTRY.cells.values[place : place + LOOP_LAG.width])}


def test_lags_are_counted_and_the_longest_is_kept() -> None:
    LOOP_LAG_MAX.set(0.0)
    before = count()
    watch = LoopWatch(limit=100.0)
    for lag in (-0.001, 0.002, 3.0, 0.5):
        watch.note(lag)
    assert count() == before + 4
    assert LOOP_LAG_MAX.get() == 3.0


def test_a_deep_stack_is_cut() -> None:
    def go(depth: int) -> str:
        if depth:
            return go(depth - 1)
        return describe(sys._getframe())

    assert go(100).count(" < ") == MAX_FRAMES - 1
