"""Bodies that are started before the head is sent."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import Self

import pytest

from tests.peers import turn
from xetserve.app.download.body import (
    LEAST_BUFFER_SIZE,
    PLAIN_BUFFER_SIZE,
    plain_blocks,
    start_body,
)
from xetserve.app.download.content_digest import ContentDigest
from xetserve.errors import BrokenStream, IntegrityError, UpstreamError, UpstreamTimeout
from xetserve.http.messages import Block
from xetserve.pipeline.flow.budget import READER_COST, ByteBudget

CONTENT = bytes(range(256)) * 4096  # four receive buffers


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


class Source:
    """A plain answer in memory, and the context it came from."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self._content = content
        self._error = error
        self.num_exits = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.num_exits += 1

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        await asyncio.sleep(0)
        part = self._content[: len(view)]
        if not part and self._error is not None:
            raise self._error
        view[: len(part)] = part
        self._content = self._content[len(part) :]
        return len(part)


async def read(source: Source, digest: ContentDigest | None, into: bytearray) -> None:
    async for block in plain_blocks(source, source, digest, 1.0, ByteBudget(8 * PLAIN_BUFFER_SIZE)):
        into += b"".join(block)  # at once: the buffer is used again


def sha256(content: bytes) -> ContentDigest:
    return ContentDigest("sha256", hashlib.sha256(content).hexdigest())


class TestPlainBlocks:
    @pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, len(CONTENT)])
    async def test_the_content_passes(self, size: int) -> None:
        source, out = Source(CONTENT[:size]), bytearray()
        await read(source, sha256(CONTENT[:size]), out)
        assert out == CONTENT[:size]
        assert source.num_exits == 1

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(CONTENT[:-1], id="a byte short"),
            pytest.param(CONTENT[:-1] + b"x", id="a byte wrong"),
            pytest.param(CONTENT + b"x", id="a byte more"),
        ],
    )
    async def test_the_last_block_of_wrong_content_never_leaves(self, content: bytes) -> None:
        source, out = Source(content), bytearray()
        with pytest.raises(IntegrityError, match="sha256"):
            await read(source, sha256(CONTENT), out)
        assert len(out) <= max(0, len(content) - 1)
        assert source.num_exits == 1

    @pytest.mark.parametrize(
        ("error", "kind"),
        [(BrokenStream("reset"), UpstreamError), (TimeoutError(), UpstreamTimeout)],
    )
    async def test_what_breaks_is_the_upstreams_trouble(
        self, error: Exception, kind: type[Exception]
    ) -> None:
        source = Source(CONTENT, error)
        with pytest.raises(kind):
            await read(source, None, bytearray())
        assert source.num_exits == 1

    async def test_a_body_that_is_closed_early_leaves_its_context(self) -> None:
        source = Source(CONTENT)
        body = await start_body(plain_blocks(source, source, None, 1.0, ByteBudget(0)))
        await anext(body)
        await body.aclose()
        assert source.num_exits == 1

    async def test_buffers_count_against_the_budget_and_are_small_when_it_is_full(self) -> None:
        budget = ByteBudget(16 * PLAIN_BUFFER_SIZE)
        bodies = []
        for _ in range(20):
            source = Source(CONTENT)
            bodies.append(await start_body(plain_blocks(source, source, None, 1.0, budget)))
        sizes = [sum(map(len, body.first)) for body in bodies]
        assert sizes[0] == PLAIN_BUFFER_SIZE
        assert sizes[-1] == LEAST_BUFFER_SIZE
        least = 2 * LEAST_BUFFER_SIZE + READER_COST
        assert 2 * sum(sizes) <= budget.held <= budget.limit + len(bodies) * least
        assert budget.num_readers == len(bodies)
        for body in bodies:
            await body.aclose()
        assert (budget.held, budget.num_readers) == (0, 0)
