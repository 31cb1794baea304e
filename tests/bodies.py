"""Bodies in memory, and pulling them as a connection does, without one."""

from collections.abc import AsyncIterator

from xetserve.http.messages import Block, Body, Response


async def next_block(response: Response) -> Block | None:
    """Return the next block, the observer told of it; None: the body has ended."""
    assert not isinstance(response.body, bytes)
    observer = response.observer
    if observer is not None:
        await observer.before_block()
    block = await anext(response.body, None)
    if block is not None and observer is not None:
        observer.on_block(sum(map(len, block)))
    return block


async def iter_blocks(response: Response) -> AsyncIterator[Block]:
    """Yield all blocks, the observer told of each."""
    while (block := await next_block(response)) is not None:
        yield block


class CountedBody(Body):
    """A body in memory that counts how often it was closed."""

    def __init__(self, *blocks: bytes, error: Exception | None = None) -> None:
        self._blocks = list(blocks)
        self._error = error
        self.num_closed = 0

    async def __anext__(self) -> Block:
        if self._blocks:
            return [self._blocks.pop(0)]
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.num_closed += 1
        self._blocks.clear()
