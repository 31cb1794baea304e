"""Long computations in slices: between two of them, the event loop serves others."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


async def run_slices(steps: Generator[None, None, T]) -> T:
    """Run a generator to its end, one step in a turn of the loop; return what it returns."""
    try:
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            await asyncio.sleep(0)
    finally:
        steps.close()
