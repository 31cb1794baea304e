"""Wake a task that waits on a future for another object to change its state."""

import asyncio


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Wake the task that waits for a future; None: no task waits.

    A future that is cancelled, or has a result already, is not changed.
    """
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class TimedWait:
    """Waits for one future after another, each with a time limit.

    One timer stays for all of them, and is set anew only when it has run out. A stream waits
    thousands of times a second, and asyncio.timeout would make and cancel a timer each time.
    """

    __slots__ = ("_deadline", "_timer", "_timer_end", "_waiter")

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._deadline = 0.0  # of the waiter, seconds of the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._timer_end = 0.0

    async def wait(self, waiter: asyncio.Future[None], timeout: float) -> None:
        """Wait for a future that belongs to the caller; one at a time.

        Raises:
            TimeoutError: timeout seconds have passed.
        """
        loop = waiter.get_loop()
        self._waiter = waiter
        self._deadline = deadline = loop.time() + timeout
        if self._timer is None or deadline < self._timer_end:
            self._set_timer(loop)
        try:
            await waiter
        finally:
            self._waiter = None

    def close(self) -> None:
        """Cancel the timer. A later wait sets another one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer_end = self._deadline
        self._timer = loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        loop = waiter.get_loop()
        if loop.time() < self._deadline:
            self._set_timer(loop)
        else:
            waiter.set_exception(TimeoutError())
