"""Limit how long a response waits for the upstream, retries included."""

import asyncio
import time
from collections.abc import Awaitable

from xetserve.errors import UpstreamTimeout
from xetserve.pipeline.flow.pacing import Pacer


class StallDeadline:
    """The time by which one response must have its next block.

    Args:
        gap_timeout: seconds between two blocks for the client.
        pacer: the waiting times are recorded there.
    """

    def __init__(self, gap_timeout: float, pacer: Pacer) -> None:
        self._gap_timeout = gap_timeout
        self._pacer = pacer
        self._deadline = 0.0

    def renew(self, now: float) -> None:
        """Set the deadline anew, after a block was sent; now: seconds of the monotonic clock."""
        self._deadline = now + self._gap_timeout

    async def wait(self, waiting: Awaitable[None]) -> None:
        """Wait for the upstream until the deadline.

        Raises:
            UpstreamTimeout: the deadline has passed.
        """
        before = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline - before):
                await waiting
        except TimeoutError:
            raise UpstreamTimeout(
                f"no data from upstream for {self._gap_timeout:g} seconds"
            ) from None
        self._pacer.note_starved(time.monotonic() - before)
