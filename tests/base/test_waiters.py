"""Futures on which a task waits, and waiting with a time limit, over one timer."""

import asyncio

import pytest

from tests.waiting import PATIENCE
from xetserve.base.waiters import TimedWait, wake

SHORT = 0.01  # seconds


def make_waiter() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_waking_is_harmless_at_any_time() -> None:
    waiter = make_waiter()
    wake(None)
    wake(waiter)
    wake(waiter)
    await waiter
    cancelled = make_waiter()
    cancelled.cancel()
    wake(cancelled)
    assert cancelled.cancelled()


async def test_a_wait_ends_with_its_limit() -> None:
    timed, waiter = TimedWait(), make_waiter()
    with pytest.raises(TimeoutError):
        await timed.wait(waiter, SHORT)
    wake(waiter)  # too late, but allowed


@pytest.mark.parametrize("limit", [SHORT, 0.0, -1.0])
async def test_a_short_limit_counts_after_a_long_one(limit: float) -> None:
    timed, waiter = TimedWait(), make_waiter()
    asyncio.get_running_loop().call_soon(wake, waiter)
    await timed.wait(waiter, 1000 * PATIENCE)
    with pytest.raises(TimeoutError):
        await timed.wait(make_waiter(), limit)


async def test_the_limit_of_an_earlier_wait_does_not_count() -> None:
    timed, waiter = TimedWait(), make_waiter()
    wake(waiter)
    await timed.wait(waiter, SHORT)
    later = make_waiter()
    asyncio.get_running_loop().call_later(5 * SHORT, wake, later)
    await timed.wait(later, PATIENCE)


async def test_a_limit_that_runs_out_while_nobody_waits_does_nothing() -> None:
    timed, waiter = TimedWait(), make_waiter()
    wake(waiter)
    await timed.wait(waiter, SHORT)
    passed = make_waiter()
    asyncio.get_running_loop().call_later(5 * SHORT, wake, passed)
    await passed
    with pytest.raises(TimeoutError):
        await timed.wait(make_waiter(), SHORT)


async def test_a_cancelled_wait_leaves_no_timer_once_it_is_closed() -> None:
    timed = TimedWait()
    waiting = asyncio.ensure_future(timed.wait(make_waiter(), PATIENCE))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    timed.close()
    assert timed._timer is None
    with pytest.raises(TimeoutError):
        await timed.wait(make_waiter(), SHORT)
