"""Run long computations in slices of a few milliseconds, so that the event loop serves others, too.

A computation that knows the size of its output counts the bytes with Slices. A pure generator whose
steps are short runs in run_slices.
"""

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

SLICE_SIZE: Final = 1024 * 1024  # bytes made in one slice: some milliseconds
STEP_COST: Final = 1024  # bytes that could be made in the time that every step takes

T = TypeVar("T")


class Slices:
    """Counts the work of a task since it last let others run."""

    def __init__(self) -> None:
        self._done = 0

    async def add(self, size: int) -> None:
        """Count a step that made size bytes; let others run if the slice is full."""
        self._done += size + STEP_COST
        if self._done >= SLICE_SIZE:
            self._done = 0
            await asyncio.sleep(0)


async def run_slices(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end, one step in a turn of the loop; return its return value."""
    try:
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            await asyncio.sleep(0)
    finally:
        steps.close()
