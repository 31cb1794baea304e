"""Limit how long a response waits for the upstream, retries included."""

import asyncio
import time

from xetserve.base.waiters import TimedWait
from xetserve.errors import UpstreamTimeout
from xetserve.pipeline.flow.pacing import Pacer


class StallDeadline:
    """The time by which one response must have its next block.

    Args:
        gap_timeout: seconds until the first block for the client.
        outage_patience: seconds between two blocks, if that is more.
        pacer: the waiting times are recorded there.
    """

    def __init__(self, gap_timeout: float, outage_patience: float, pacer: Pacer) -> None:
        self._limit = gap_timeout
        self._patience = max(gap_timeout, outage_patience)
        self._pacer = pacer
        self._deadline = 0.0
        self._waiting = TimedWait()

    def renew(self, now: float) -> None:
        """Set the deadline anew; now: seconds of the monotonic clock."""
        self._deadline = now + self._limit

    def begin_body(self) -> None:
        """Be patient from now on: the client has the head, and gives up no sooner than we do."""
        self._limit = self._patience

    def get_left(self, now: float) -> float:
        """Return the seconds that are left at a time of the monotonic clock."""
        return self._deadline - now

    def close(self) -> None:
        """Drop the timer, at the end of the response."""
        self._waiting.close()

    async def wait(self, waiter: asyncio.Future[None]) -> None:
        """Wait for the upstream until the deadline.

        Args:
            waiter: belongs to the caller, and is done once the upstream has answered.

        Raises:
            UpstreamTimeout: the deadline has passed.
        """
        before = time.monotonic()
        try:
            await self._waiting.wait(waiter, self._deadline - before)
        except TimeoutError:
            raise UpstreamTimeout(f"no data from upstream for {self._limit:g} seconds") from None
        self._pacer.note_starved(time.monotonic() - before)
