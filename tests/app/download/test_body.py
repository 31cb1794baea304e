"""Bodies that are started before the head is sent."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tests.peers import turn
from xetserve.app.download.body import start_body
from xetserve.errors import IntegrityError, UpstreamError
from xetserve.http.messages import Block


class Blocks:
    """A generator of blocks that tells whether it was closed."""

    def __init__(self, *blocks: bytes, error: BaseException | None = None) -> None:
        self._blocks = blocks
        self._error = error
        self.is_closed = False

    async def generate(self) -> AsyncGenerator[Block, None]:
        try:
            for block in self._blocks:
                await asyncio.sleep(0)
                yield [block]
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


class TestStartedBodies:
    async def test_the_first_block_is_not_lost(self) -> None:
        source = Blocks(b"a", b"b")
        body = await start_body(source.generate())
        assert [block async for block in body] == [[b"a"], [b"b"]]
        assert source.is_closed

    async def test_an_empty_body(self) -> None:
        body = await start_body(Blocks().generate())
        assert [block async for block in body] == []

    @pytest.mark.parametrize("error", [UpstreamError("x"), asyncio.CancelledError()])
    async def test_a_failure_before_the_first_block_is_raised_at_once(
        self, error: BaseException
    ) -> None:
        source = Blocks(error=error)
        with pytest.raises(type(error)):
            await start_body(source.generate())
        assert source.is_closed

    async def test_a_failure_after_it_comes_where_it_belongs(self) -> None:
        body = await start_body(Blocks(b"a", error=IntegrityError("x")).generate())
        assert await anext(body) == [b"a"]
        with pytest.raises(IntegrityError):
            await anext(body)

    @pytest.mark.parametrize("num_taken", [0, 1, 2])
    async def test_closing_closes_what_it_wraps_at_any_time(self, num_taken: int) -> None:
        source = Blocks(b"a", b"b", b"c")
        body = await start_body(source.generate())
        for _ in range(num_taken):
            await anext(body)
        await body.aclose()
        await body.aclose()
        assert source.is_closed
        assert [block async for block in body] == []

    async def test_a_start_that_is_cancelled_closes_what_it_wraps(self) -> None:
        source = Blocks(b"a")
        task = asyncio.ensure_future(start_body(source.generate()))
        await turn()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.is_closed
