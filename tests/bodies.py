"""Pulling a response's body as a connection does, without one."""

from collections.abc import AsyncIterator

from xetserve.http.messages import Block, Response


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
