"""Event loop lag: measure how long the loop is blocked, and log the code that blocks it.

A task on the loop sleeps for a tick and measures how much later it wakes. A thread checks that the
task wakes at all. If it does not, the thread logs the stack of the loop's thread, which shows the
blocking code. The stack shows functions, files and lines, no values. C code that holds the
interpreter lock (a regular expression, a hash) blocks the thread too; the thread then runs directly
afterwards and logs the caller.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import PurePath
from types import FrameType
from typing import Final

from xetserve.metrics.catalogue import LOOP_LAG, LOOP_LAG_MAX

logger = logging.getLogger(__name__)

TICK: Final = 0.1  # seconds that the task sleeps
CHECK_INTERVAL: Final = 0.25  # seconds between two checks of the thread
LIMIT: Final = 1.0  # seconds; a longer turn of the loop is logged
MAX_FRAMES: Final = 12  # innermost frames of a stack that are logged


class LoopWatch:
    """A watch over the event loop of the current thread. Times are in seconds.

    Args:
        limit: a longer turn of the loop is logged.
        tick: the time that the task sleeps.
        check_interval: the time between two checks of the thread.
    """

    def __init__(
        self, limit: float = LIMIT, tick: float = TICK, check_interval: float = CHECK_INTERVAL
    ) -> None:
        self._limit = limit
        self._tick = tick
        self._check_interval = check_interval
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._beat = time.monotonic()  # when the task last woke

    async def measure(self) -> None:
        """Measure the lag on the loop, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(self._tick)
            self.note(time.monotonic() - self._beat - self._tick)

    def note(self, lag: float) -> None:
        """Record the lag of one tick, in seconds."""
        LOOP_LAG.observe(max(0.0, lag))
        if lag > LOOP_LAG_MAX.get():
            LOOP_LAG_MAX.set(round(lag, 3))
        if lag >= self._limit:
            logger.warning("the event loop runs again after %.1f s", lag)

    def look(self) -> None:
        """Check that the task wakes, until stop is called; run this in a thread."""
        known = None  # the wake-up time of the turn that was logged last
        while not self._ended.wait(self._check_interval):
            beat = self._beat
            held = time.monotonic() - beat - self._tick
            frame = sys._current_frames().get(self._loop_thread)
            if held >= self._limit and beat != known and frame is not None:
                known = beat
                logger.warning(
                    "the event loop has been blocked for %.1f s in %s", held, describe(frame)
                )
            del frame  # it references all local variables of the function

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()


@asynccontextmanager
async def watching_loop(watch: LoopWatch | None = None) -> AsyncIterator[None]:
    """Watch the running loop while the block runs."""
    watch = watch or LoopWatch()
    thread = threading.Thread(target=watch.look, name="loop-watch", daemon=True)
    thread.start()
    measuring = asyncio.create_task(watch.measure())
    try:
        yield
    finally:
        measuring.cancel()
        watch.stop()
        thread.join()


def describe(frame: FrameType) -> str:
    """Return a stack in one line: functions with file and line, the innermost first."""
    parts: list[str] = []
    at: FrameType | None = frame
    while at is not None and len(parts) < MAX_FRAMES:
        file = "/".join(PurePath(at.f_code.co_filename).parts[-2:])
        parts.append(f"{at.f_code.co_qualname} ({file}:{at.f_lineno})")
        at = at.f_back
    return " < ".join(parts)
