"""Bodies made of generators. Their first block is read before the head is sent, so that a failure
still has a status.
"""

from collections.abc import AsyncGenerator

from xetserve.http.messages import Block, Body


class StartedBody(Body):
    """The blocks of a generator that has been started."""

    def __init__(self, first: Block | None, rest: AsyncGenerator[Block, None]) -> None:
        self._first = first
        self._rest = rest

    async def __anext__(self) -> Block:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
        self._first = None
        await self._rest.aclose()


async def no_blocks() -> AsyncGenerator[Block, None]:
    """Yield nothing: the body of an empty file, or of an answer to HEAD without a length."""
    return
    yield []


async def start_body(blocks: AsyncGenerator[Block, None]) -> StartedBody:
    """Wait for the first block. If it fails, the generator is closed and the error raised."""
    try:
        first = await anext(blocks, None)
    except BaseException:
        await blocks.aclose()
        raise
    return StartedBody(first, blocks)


async def hold_body(blocks: AsyncGenerator[Block, None], limit: int) -> bytes | StartedBody:
    """Return a body of at most limit bytes as a whole, else a body whose beginning was read.

    If reading fails, the generator is closed and the error raised.
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
