"""The body of a file that is not Xet: one buffer receives while the other one is sent."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from typing import Final

from xetserve.app.download.content_digest import ContentDigest
from xetserve.app.download.hub_answer import BlobSource
from xetserve.errors import BrokenStream, IntegrityError, UpstreamError, UpstreamTimeout
from xetserve.http.messages import Block, Body
from xetserve.pipeline.cache.blobs import BlobWriter
from xetserve.pipeline.flow.budget import ByteBudget

BUFFER_SIZE: Final = 256 * 1024  # bytes of each of the two buffers
LEAST_BUFFER_SIZE: Final = 32 * 1024  # bytes of each if the budget has no room for BUFFER_SIZE


class BlobBody(Body):
    """Passes on the bytes of a source, one block late: the last block leaves only if the digest is
    right.

    Args:
        opened: the entered context of source; exited when the body ends or is closed.
        digest: the expected hash of the whole content; None: the body is a part of the file.
        timeout: seconds without a byte.
        budget: counts the buffers.
        writer: stores the content as it passes; None: it is not stored.
        on_damage: called when the content has another digest.

    first: the block that start() waited for; empty once it was returned.
    """

    def __init__(
        self,
        opened: AbstractAsyncContextManager[object],
        source: BlobSource,
        digest: ContentDigest | None,
        timeout: float,
        budget: ByteBudget,
        *,
        writer: BlobWriter | None = None,
        on_damage: Callable[[IntegrityError], Awaitable[None]] | None = None,
    ) -> None:
        self._opened = opened
        self._source = source
        self._digest = digest
        self._timeout = timeout
        self._budget = budget
        self._writer = writer
        self._on_damage = on_damage
        self._lent = ExitStack()
        self._filled = self._free = bytearray()
        self._count = 0  # bytes in _filled that were not returned yet
        self._is_closed = False
        self.first: Block = ()

    async def start(self) -> None:
        """Wait for the first block. If that fails, the body is closed.

        Raises:
            UpstreamError: the source broke off or stalled.
            IntegrityError: the content ends with this block, and has another digest.
        """
        self._filled, self._free = self._lent.enter_context(_lend_buffers(self._budget))
        try:
            self._count = await self._receive(self._filled)
            self.first = await self._take_block() or ()
        except BaseException as exc:
            await self._fail(exc)
            raise

    async def __anext__(self) -> Block:
        first, self.first = self.first, ()
        if first:
            return first
        if self._is_closed:
            raise StopAsyncIteration
        try:
            if self._writer is not None:
                await self._writer.finish()  # the next bytes overwrite its memory
            block = await self._take_block()
        except BaseException as exc:
            await self._fail(exc)
            raise
        if block is None:
            await self.aclose()
            raise StopAsyncIteration
        return block

    async def aclose(self) -> None:
        self.first = ()
        if self._is_closed:
            return
        self._is_closed = True
        self._lent.close()
        try:
            await self._opened.__aexit__(None, None, None)
        finally:
            if self._writer is not None:
                self._writer.close()

    async def _fail(self, error: BaseException) -> None:
        """Close after a failure, and report damage."""
        await self.aclose()
        if self._on_damage is not None and isinstance(error, IntegrityError):
            await self._on_damage(error)

    async def _take_block(self) -> Block | None:
        """Receive the next block, then return the one before it; None: there is none."""
        if not self._count:
            return None
        block = [memoryview(self._filled)[: self._count]]
        if self._digest is not None:
            self._digest.update(block[0])
        self._count = await self._receive(self._free)
        self._filled, self._free = self._free, self._filled
        if self._writer is not None:
            await self._writer.write(block)
        return block

    async def _receive(self, buffer: bytearray) -> int:
        """Receive bytes into buffer; return how many, 0 at the end, after checking the digest."""
        try:
            count = await self._source.receive_into(memoryview(buffer), self._timeout)
        except BrokenStream as exc:
            raise UpstreamError(f"the Hub's file broke off: {exc}") from exc
        except TimeoutError as exc:
            raise UpstreamTimeout("the Hub's file stalled") from exc
        if not count and self._digest is not None:
            self._digest.check()
        return count


@contextmanager
def _lend_buffers(budget: ByteBudget) -> Iterator[tuple[bytearray, bytearray]]:
    """Lend two buffers of equal size; small ones if the budget is used up."""
    budget.open_reader()
    size = BUFFER_SIZE
    if 2 * size > budget.share or not budget.try_take(2 * size):
        size = LEAST_BUFFER_SIZE
        budget.take(2 * size)
    try:
        yield bytearray(size), bytearray(size)
    finally:
        budget.give(2 * size)
        budget.close_reader()
