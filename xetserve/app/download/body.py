"""Bodies: started before the head is sent, so that a failure still has a status."""

from collections.abc import AsyncGenerator, Callable

from xetserve.http.messages import Block, Body


class StartedBody(Body):
    """The blocks of a generator, the first one of which is here already.

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

    async def __anext__(self) -> Block:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        return await anext(self._rest)

    async def aclose(self) -> None:
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
