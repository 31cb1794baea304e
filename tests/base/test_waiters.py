"""Futures on which a task waits."""

import asyncio

from xetserve.base.waiters import wake


async def test_waking_is_harmless_at_any_time() -> None:
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wake(None)
    wake(waiter)
    wake(waiter)
    await waiter
    cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    wake(cancelled)
    assert cancelled.cancelled()
