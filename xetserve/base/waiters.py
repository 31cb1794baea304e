"""Wake a task that waits on a future for another object to change its state."""

import asyncio


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Wake the task that waits for a future; None: no task waits.

    A future that is cancelled, or has a result already, is not changed.
    """
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
