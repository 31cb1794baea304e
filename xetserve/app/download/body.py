"""Bodies: started before the head is sent, so that a failure still has a status."""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final, Protocol

from xetserve.app.download.content_digest import ContentDigest
from xetserve.errors import BrokenStream, UpstreamError, UpstreamTimeout
from xetserve.http.messages import Block
from xetserve.pipeline.flow.budget import ByteBudget

PLAIN_BUFFER_SIZE: Final = 256 * 1024  # bytes of each of the two that a plain file passes through
LEAST_BUFFER_SIZE: Final = 32 * 1024  # bytes of each where the budget has no room for these


class StartedBody:
    """An iterator of blocks whose first one is here already.

    Args:
        on_close: called once it is closed.
    """

    def __init__(
        self,
        first: Block | None,
        rest: AsyncGenerator[Block, None],
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._first = first
        self._rest = rest
        self._on_close = on_close

    @property
    def first(self) -> Block:
        """The block that is here already; it is given out like the others. Empty once it was."""
        return self._first or ()

    def __aiter__(self) -> "StartedBody":
        return self

    async def __anext__(self) -> Block:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        """Release what the body holds."""
        self._first = None
        on_close, self._on_close = self._on_close, None
        await self._rest.aclose()
        if on_close is not None:
            on_close()


async def no_blocks() -> AsyncGenerator[Block, None]:
    """A body without bytes: of an empty file, or to a HEAD request that does not tell the
    length.
    """
    return
    yield []


async def start_body(
    blocks: AsyncGenerator[Block, None], on_close: Callable[[], None] | None = None
) -> StartedBody:
    """Wait for the first block; whatever keeps it from coming is raised here."""
    try:
        first = await anext(blocks, None)
    except BaseException:
        await blocks.aclose()
        raise
    return StartedBody(first, blocks, on_close)


async def hold_body(blocks: AsyncGenerator[Block, None], limit: int) -> bytes | StartedBody:
    """Read a body as far as it may be held: all of it, or its beginning; failures are raised here.

    Args:
        limit: bytes; a smaller body is returned whole.
    """
    held: list[bytes] = []
    size = 0
    try:
        async for block in blocks:
            held += [bytes(part) for part in block]
            size += sum(map(len, block))
            if size > limit:
                return StartedBody(held, blocks)
    except BaseException:
        await blocks.aclose()
        raise
    return b"".join(held)


class BlobSource(Protocol):
    """An upstream answer whose body is passed on; made in net, which app does not know."""

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive body bytes; 0 at the end."""
        ...


async def plain_blocks(
    opened: AbstractAsyncContextManager[object],
    source: BlobSource,
    digest: ContentDigest | None,
    timeout: float,
    budget: ByteBudget,
) -> AsyncGenerator[Block, None]:
    """Pass a body on, a block behind, so that the last one leaves only if the digest is right.

    Args:
        opened: the entered context that source came from; left when the body ends or is closed.
        digest: what the whole content must hash to; None for a part of it.
        budget: what the buffers count against.
    """
    try:
        with _lend_buffers(budget) as (filled, free):
            count = await _receive(source, filled, timeout)
            if not count and digest is not None:
                digest.check()
            while count:
                if digest is not None:
                    digest.update(memoryview(filled)[:count])
                following = await _receive(source, free, timeout)
                if not following and digest is not None:
                    digest.check()
                yield [memoryview(filled)[:count]]
                filled, free, count = free, filled, following
    finally:
        await opened.__aexit__(None, None, None)


@contextmanager
def _lend_buffers(budget: ByteBudget) -> Iterator[tuple[bytearray, bytearray]]:
    """Lend two buffers of a size, a small one where others hold what there is."""
    budget.open_reader()
    size = PLAIN_BUFFER_SIZE
    if 2 * size > budget.share or not budget.try_take(2 * size):
        size = LEAST_BUFFER_SIZE
        budget.take(2 * size)
    try:
        yield bytearray(size), bytearray(size)
    finally:
        budget.give(2 * size)
        budget.close_reader()


async def _receive(source: BlobSource, buffer: bytearray, timeout: float) -> int:
    try:
        return await source.receive_into(memoryview(buffer), timeout)
    except BrokenStream as exc:
        raise UpstreamError(f"the Hub's file broke off: {exc}") from exc
    except TimeoutError as exc:
        raise UpstreamTimeout("the Hub's file stalled") from exc
