"""The tasks that wait for chunks of one fetch."""

import asyncio
from collections import deque
from typing import Final

from xetserve.base.waiters import wake
from xetserve.pipeline.flow.stall_deadline import StallDeadline

WOKEN_AT_ONCE: Final = 16  # in one turn of the event loop


class ChunkWaiters:
    """Tasks that check for their chunk again whenever data has arrived.

    Only a few are woken in each turn of the event loop, because a thousand would delay all other
    tasks.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self._waking: deque[asyncio.Future[None]] = deque()  # their turn comes

    def __bool__(self) -> bool:
        return bool(self._waiting or self._waking)

    async def wait(self, deadline: StallDeadline | None = None) -> None:
        """Wait until data has arrived.

        Raises:
            UpstreamTimeout: the deadline has passed.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            if deadline is None:
                await waiter
            else:
                await deadline.wait(waiter)
        finally:
            self._waiting.discard(waiter)

    def wake_all(self) -> None:
        """Wake all tasks that wait now."""
        is_waking = bool(self._waking)
        self._waking += self._waiting
        self._waiting.clear()
        if not is_waking:
            self._wake_some()

    def _wake_some(self) -> None:
        for _ in range(min(WOKEN_AT_ONCE, len(self._waking))):
            wake(self._waking.popleft())
        if self._waking:
            asyncio.get_running_loop().call_soon(self._wake_some)
