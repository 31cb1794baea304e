"""Waiting for a thread that may take longer than anybody waits."""

import asyncio

import pytest

from xetserve.pipeline.cache.io import run_io


async def test_the_result_comes_in_time() -> None:
    late: list[int] = []
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(run_io(work, None, on_late=late.append))
    await asyncio.sleep(0)
    work.set_result(7)
    assert await waiting == 7
    assert late == []


async def test_a_result_after_the_timeout_is_handed_over() -> None:
    late: list[int] = []
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await run_io(work, 0, on_late=late.append)
    work.set_result(7)
    await asyncio.sleep(0)
    assert late == [7]


async def test_so_is_one_after_the_caller_was_cancelled() -> None:
    late: list[int] = []
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.ensure_future(run_io(work, None, on_late=late.append))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not work.cancelled()
    work.set_result(7)
    await asyncio.sleep(0)
    assert late == [7]


@pytest.mark.parametrize("error", [OSError("the disk fails"), TimeoutError("the disk said so")])
async def test_an_error_of_the_work_is_raised_and_not_handed_over(error: OSError) -> None:
    late: list[int] = []
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work.set_exception(error)
    with pytest.raises(type(error)) as caught:
        await run_io(work, None, on_late=late.append)
    assert caught.value is error
    await asyncio.sleep(0)
    assert late == []


async def test_a_late_error_is_nobody_s() -> None:
    late: list[int] = []
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        await run_io(work, 0, on_late=late.append)
    work.set_exception(OSError("the disk fails"))
    await asyncio.sleep(0)
    assert late == []
