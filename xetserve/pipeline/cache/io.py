"""Wait for a disk that may hang, for a client that may disconnect."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def run_io(
    work: asyncio.Future[T],
    timeout: float | None,
    on_late: Callable[[T], object] | None = None,
) -> T:
    """Wait for work in a thread, and return its result.

    A thread cannot be stopped: if the wait ends early, the work goes on.

    Args:
        timeout: seconds; None for no limit.
        on_late: called with the result if the work succeeds after the wait has ended by timeout or
            cancellation.

    Raises:
        TimeoutError: the work takes longer.
        Exception: as the work raises it.
    """
    try:
        async with asyncio.timeout(timeout):
            return await asyncio.shield(work)
    except (TimeoutError, asyncio.CancelledError):
        if on_late is not None:
            work.add_done_callback(lambda done: _hand_over(done, on_late))
        raise


def _hand_over(work: asyncio.Future[T], on_late: Callable[[T], object]) -> None:
    if not work.cancelled() and work.exception() is None:
        on_late(work.result())
