"""Bodies of the Hub's API on their way to the client: decoded, pages joined, members removed."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Final, NamedTuple

from xetserve.app.download.hub_answer import HubAnswer
from xetserve.app.hub.json_entry_filter import EntryFilter
from xetserve.app.hub.json_filter import MemberFilter
from xetserve.app.hub.json_join import ArrayJoiner
from xetserve.errors import BrokenStream, FormatError, UpstreamError, UpstreamTimeout
from xetserve.http.encoding import StreamDecoder
from xetserve.http.messages import Block, Headers
from xetserve.http.relay import find_link
from xetserve.upstream.hub.token_guard import TokenGuard
from xetserve.upstream.slices import Slices

MAX_PAGES: Final = 1000  # of a list that is joined: the Hub puts 1,000 entries on a page
_BUFFER_SIZE: Final = 64 * 1024

Pieces = AsyncGenerator[bytes, None]


class Page(NamedTuple):
    """An answer whose head has arrived.

    opened: the context that source came from; it is entered, and left after the body.
    """

    opened: AbstractAsyncContextManager[object]
    source: HubAnswer

    @property
    def status(self) -> int:
        """Return the answer's status."""
        return self.source.status

    @property
    def headers(self) -> Headers:
        """Return the answer's fields."""
        return self.source.headers

    @property
    def following(self) -> str | None:
        """Return the URL of the next page; None: this is the last one."""
        return find_following(self.headers)


def find_following(headers: Headers) -> str | None:
    """Return the URL of the page that follows an answer; None: it is the last one."""
    return find_link(", ".join(headers.get_all("link")), "next")


async def read_pieces(page: Page, timeout: float, buffer_size: int = _BUFFER_SIZE) -> Pieces:
    """Yield a decoded body. The page is closed when the body ends or the iterator is closed.

    Args:
        timeout: seconds without a byte.
        buffer_size: bytes that are received at a time.

    Raises:
        UpstreamError: the body broke off, stalled, or does not have its content coding.
    """
    try:
        decoder = StreamDecoder(page.headers.get("content-encoding"))
        buffer = bytearray(buffer_size)
        slices = Slices()
        while count := await page.source.receive_into(memoryview(buffer), timeout):
            for piece in decoder.decode(bytes(memoryview(buffer)[:count])):
                await slices.add(len(piece))
                yield piece
        decoder.finish()
    except BrokenStream as exc:
        raise UpstreamError(f"the Hub's answer broke off: {exc}") from exc
    except TimeoutError as exc:
        raise UpstreamTimeout("the Hub's answer stalled") from exc
    except FormatError as exc:
        raise UpstreamError(f"the Hub: {exc}") from exc
    finally:
        await page.opened.__aexit__(None, None, None)


async def stream_blocks(
    page: Page, timeout: float, buffer_size: int = _BUFFER_SIZE
) -> AsyncGenerator[Block, None]:
    """Yield an empty block at once, then a decoded body as it comes; close the page in the end.

    Args, Raises: as read_pieces.
    """
    async with aclosing(read_pieces(page, timeout, buffer_size)) as pieces:
        try:
            yield []
            async for piece in pieces:
                yield [piece]
        finally:
            # Closing pieces does not do this if none was asked for.
            await page.opened.__aexit__(None, None, None)


class Part(NamedTuple):
    """A page of a list that is joined.

    pieces: its body, decoded. following: the URL of the next page; None: this is the last one.
    """

    pieces: Pieces
    following: str | None


async def join_pages(part: Part, open_part: Callable[[str], Awaitable[Part]]) -> Pieces:
    """Yield all pages of a list as one array.

    Args:
        open_part: fetches the page at a URL.

    Raises:
        UpstreamError: a page is not an array, or there are more than MAX_PAGES.
    """
    joiner = ArrayJoiner()
    for _ in range(MAX_PAGES):
        async with aclosing(part.pieces) as pieces:
            try:
                async for piece in pieces:
                    yield joiner.feed(piece)
                yield joiner.end_page()
            except FormatError as exc:
                raise UpstreamError(f"the Hub: {exc}") from exc
        if part.following is None:
            yield joiner.finish()
            return
        part = await open_part(part.following)
    raise UpstreamError(f"the Hub's list has more than {MAX_PAGES} pages")


async def make_blocks(
    pieces: Pieces, members: MemberFilter | EntryFilter | None, guard: TokenGuard | None = None
) -> AsyncGenerator[Block, None]:
    """Yield the blocks of a body, without the members that a filter removes.

    Raises:
        UpstreamRefused: the guard finds a token for the CAS.
    """
    async with aclosing(pieces):
        async for piece in pieces:
            if guard is not None:
                guard.check(piece)
            yield [piece if members is None else members.feed(piece)]
        if members is not None:
            yield [members.finish()]
