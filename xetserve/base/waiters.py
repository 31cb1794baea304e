"""Futures on which a task waits for a change of somebody else's state."""

import asyncio


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Let the task go on that waits for this future; None: no task waits.

    A future that was cancelled, or was woken before, stays as it is.
    """
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
