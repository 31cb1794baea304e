"""Wait in a test for something that no event tells of.

Spinning would take the processor from what is waited for, on a machine that runs several tests at
once. So both functions look every few milliseconds, and fail after PATIENCE.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

PATIENCE: Final = 30.0  # seconds after which a test that waits for something has failed
_PAUSE: Final = 0.005  # seconds between two looks


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, while the event loop goes on.

    Raises:
        AssertionError: it did not hold within PATIENCE.
    """
    for pause in _iter_pauses(condition):
        await asyncio.sleep(pause)


def wait_until(condition: Callable[[], object]) -> None:
    """Block until a condition holds: for what other processes and threads do.

    Raises:
        AssertionError: it did not hold within PATIENCE.
    """
    for pause in _iter_pauses(condition):
        time.sleep(pause)


def _iter_pauses(condition: Callable[[], object]) -> Iterator[float]:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, (
            f"what the test waits for did not happen within {PATIENCE:.0f} seconds"
        )
        yield _PAUSE
