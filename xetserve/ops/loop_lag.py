"""How long the event loop keeps others waiting, and who keeps it.

A task on the loop measures how much later than it wanted it comes to its turn. A thread sees that
it does not come at all, and logs where the loop is at that moment: by then it is the culprit's
stack. It shows functions, files and lines, no values. A pattern or a hash that runs in C keeps the
thread waiting, too; it comes next, and sees the caller.
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

TICK: Final = 0.1  # seconds between two looks of the task
CHECK_INTERVAL: Final = 0.25  # seconds between two looks of the thread
LIMIT: Final = 1.0  # seconds of one turn that are logged
MAX_FRAMES: Final = 12  # of a stack, the innermost ones


class LoopWatch:
    """Watches the loop that it is made on. Times in seconds.

    Args:
        limit: a turn that takes longer is logged.
        tick: between two looks of the task.
        check_interval: between two looks of the thread.
    """

    def __init__(
        self, limit: float = LIMIT, tick: float = TICK, check_interval: float = CHECK_INTERVAL
    ) -> None:
        self._limit = limit
        self._tick = tick
        self._check_interval = check_interval
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._beat = time.monotonic()  # when the task last had its turn

    async def measure(self) -> None:
        """Measure, until cancelled."""
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(self._tick)
            self.note(time.monotonic() - self._beat - self._tick)

    def note(self, lag: float) -> None:
        """Record that the task came to its turn late."""
        LOOP_LAG.observe(max(0.0, lag))
        if lag > LOOP_LAG_MAX.get():
            LOOP_LAG_MAX.set(round(lag, 3))
        if lag >= self._limit:
            logger.warning("the event loop serves others again, after %.1f s", lag)

    def look(self) -> None:
        """Look again and again whether the task comes to its turn, until stopped; for a thread."""
        known = None  # the turn that was logged already
        while not self._ended.wait(self._check_interval):
            beat = self._beat
            held = time.monotonic() - beat - self._tick
            frame = sys._current_frames().get(self._loop_thread)
            if held >= self._limit and beat != known and frame is not None:
                known = beat
                logger.warning(
                    "the event loop serves nobody for %.1f s, it is in %s", held, describe(frame)
                )
            del frame  # it holds all that the function has

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
    """Write a stack in one line: the innermost function first, with file and line."""
    parts: list[str] = []
    at: FrameType | None = frame
    while at is not None and len(parts) < MAX_FRAMES:
        file = "/".join(PurePath(at.f_code.co_filename).parts[-2:])
        parts.append(f"{at.f_code.co_qualname} ({file}:{at.f_lineno})")
        at = at.f_back
    return " < ".join(parts)
