"""Files that are not Xet, as they pass: whole, compared with their digest, in few buffers."""

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Self, cast

import pytest

from tests.peers import turn
from xetserve.app.download.blob_body import BUFFER_SIZE, LEAST_BUFFER_SIZE, BlobBody
from xetserve.app.download.content_digest import ContentDigest
from xetserve.errors import BrokenStream, IntegrityError, UpstreamError, UpstreamTimeout
from xetserve.http.messages import Block
from xetserve.pipeline.cache.blobs import BlobWriter
from xetserve.pipeline.flow.budget import READER_COST, ByteBudget

CONTENT = bytes(range(256)) * 4096  # four receive buffers


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


async def read(body: BlobBody, into: bytearray) -> None:
    await body.start()
    async for block in body:
        into += b"".join(block)  # at once: the buffer is used again


def sha256(content: bytes) -> ContentDigest:
    return ContentDigest("sha256", hashlib.sha256(content).hexdigest())


class Writer:
    """Records what is stored, as late as it may be."""

    def __init__(self) -> None:
        self.stored = b""
        self.num_closed = 0
        self._block: Block = ()

    async def write(self, block: Block) -> None:
        assert not self._block, "the last block was not waited for"
        self._block = block

    async def finish(self) -> None:
        self.stored += b"".join(self._block)
        self._block = ()

    def close(self) -> None:
        self.num_closed += 1


@pytest.fixture
def budget() -> Iterator[ByteBudget]:
    """A budget that must have everything back in the end."""
    made = ByteBudget(16 * BUFFER_SIZE)
    yield made
    assert (made.held, made.num_readers) == (0, 0)


class TestBlobBodies:
    @pytest.mark.parametrize("size", [0, 1, 262_144, 262_145, len(CONTENT)])
    async def test_the_content_passes(self, size: int, budget: ByteBudget) -> None:
        source, out = Source(CONTENT[:size]), bytearray()
        await read(BlobBody(source, source, sha256(CONTENT[:size]), 1.0, budget), out)
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
    async def test_the_last_block_of_wrong_content_never_leaves(
        self, content: bytes, budget: ByteBudget
    ) -> None:
        source, out = Source(content), bytearray()
        reported: list[int] = []

        async def report(error: IntegrityError) -> None:
            reported.append(source.num_exits)

        body = BlobBody(source, source, sha256(CONTENT), 1.0, budget, on_damage=report)
        with pytest.raises(IntegrityError, match="sha256"):
            await read(body, out)
        assert len(out) <= max(0, len(content) - 1)
        assert source.num_exits == 1
        assert reported == [1], "once, and after the file was closed"

    @pytest.mark.parametrize(
        ("error", "kind"),
        [(BrokenStream("reset"), UpstreamError), (TimeoutError(), UpstreamTimeout)],
    )
    async def test_what_breaks_is_the_upstreams_trouble(
        self, error: Exception, kind: type[Exception], budget: ByteBudget
    ) -> None:
        source = Source(CONTENT, error)
        with pytest.raises(kind):
            await read(BlobBody(source, source, None, 1.0, budget), bytearray())
        assert source.num_exits == 1

    @pytest.mark.parametrize("num_taken", [None, 0, 1, 2], ids=lambda n: f"{n} taken")
    async def test_a_body_that_is_closed_early_releases_everything(
        self, num_taken: int | None, budget: ByteBudget
    ) -> None:
        source, writer = Source(CONTENT), Writer()
        body = BlobBody(source, source, None, 1.0, budget, writer=cast(BlobWriter, writer))
        if num_taken is not None:
            await body.start()
            for _ in range(num_taken):
                await anext(body)
        await body.aclose()
        await body.aclose()
        assert (source.num_exits, writer.num_closed) == (1, 1)
        assert [block async for block in body] == []

    async def test_a_start_that_is_cancelled_releases_everything(self, budget: ByteBudget) -> None:
        source = Source(CONTENT)
        body = BlobBody(source, source, None, 1.0, budget)
        task = asyncio.ensure_future(body.start())
        await turn()
        assert budget.num_readers == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.num_exits == 1

    async def test_blocks_are_stored_before_their_memory_is_used_again(
        self, budget: ByteBudget
    ) -> None:
        source, writer, out = Source(CONTENT), Writer(), bytearray()
        await read(
            BlobBody(source, source, None, 1.0, budget, writer=cast(BlobWriter, writer)), out
        )
        assert writer.stored == out == CONTENT
        assert writer.num_closed == 1

    async def test_buffers_count_against_the_budget_and_are_small_when_it_is_full(
        self, budget: ByteBudget
    ) -> None:
        bodies = []
        for _ in range(20):
            source = Source(CONTENT)
            bodies.append(BlobBody(source, source, None, 1.0, budget))
            await bodies[-1].start()
        sizes = [sum(map(len, body.first)) for body in bodies]
        assert sizes[0] == BUFFER_SIZE
        assert sizes[-1] == LEAST_BUFFER_SIZE
        least = 2 * LEAST_BUFFER_SIZE + READER_COST
        assert 2 * sum(sizes) <= budget.held <= budget.limit + len(bodies) * least
        assert budget.num_readers == len(bodies)
        for body in bodies:
            await body.aclose()
