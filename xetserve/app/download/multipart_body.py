"""Several ranges of a file in one body (multipart/byteranges), opened one after the other."""

from xetserve.app.download.content import Content
from xetserve.errors import IntegrityError, UpstreamRefused
from xetserve.http.messages import Block, Body
from xetserve.http.multipart import ByteRanges


class MultipartBody(Body):
    """The parts with their heads, and the closing delimiter.

    Args:
        content: opens the parts.
        first: the first part, already opened.
    """

    def __init__(self, frame: ByteRanges, content: Content, first: Body) -> None:
        self._frame = frame
        self._content = content
        self._part: Body | None = first
        self._number = 0
        self._left = frame.spans[0].size
        self._head = frame.make_part_head(0)

    async def __anext__(self) -> Block:
        while True:
            if self._part is None:
                if self._number == len(self._frame.spans):
                    raise StopAsyncIteration
                await self._open_part()
            assert self._part is not None
            block = await anext(self._part, None)
            if block is not None:
                return self._frame_block(block)
            if self._left:
                raise IntegrityError(f"a part of the file is {self._left} bytes short")
            await self._part.aclose()
            self._part = None
            self._number += 1
            if self._number == len(self._frame.spans):
                return [self._frame.make_tail()]

    async def aclose(self) -> None:
        self._number = len(self._frame.spans)
        part, self._part = self._part, None
        if part is not None:
            await part.aclose()

    async def _open_part(self) -> None:
        span = self._frame.spans[self._number]
        opened = await self._content.open(span, has_begun=True)
        self._part = opened.body
        self._left = span.size
        self._head = self._frame.make_part_head(self._number)
        if opened.span != span:
            raise UpstreamRefused("the Hub sent one range of the file, then the whole file")

    def _frame_block(self, block: Block) -> Block:
        self._left -= sum(map(len, block))
        if self._left < 0:
            raise IntegrityError("a part of the file is longer than its range")
        head, self._head = self._head, b""
        return [head, *block] if head else block
