"""How long a response may wait for the upstream: retries included, until the gap towards its client
becomes too long.
"""

import asyncio
import time
from collections.abc import Awaitable

from xetserve.errors import UpstreamTimeout
from xetserve.pipeline.flow.pacing import Pacer


class StallDeadline:
    """The patience of one response.

    Args:
        gap_timeout: seconds without a block for the client.
        pacer: is told how long was waited.
    """

    def __init__(self, gap_timeout: float, pacer: Pacer) -> None:
        self._gap_timeout = gap_timeout
        self._pacer = pacer
        self._deadline = 0.0

    def renew(self, now: float) -> None:
        """A block has left, or none is due yet; now: of the monotonic clock."""
        self._deadline = now + self._gap_timeout

    async def wait(self, waiting: Awaitable[None]) -> None:
        """Wait for the upstream.

        Raises:
            UpstreamTimeout: it takes too long.
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
