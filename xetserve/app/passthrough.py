"""The Hub's API, passed on: questions to the Hub, answers to the client, made to look as if they were ours."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Final

from xetserve.app.answers import no_blocks
from xetserve.app.bodies import StartedBody
from xetserve.app.files import head_timeout
from xetserve.app.pieces import HubAnswer, Page, Pieces, join_pages, make_blocks, read_pieces
from xetserve.errors import UpstreamRefused
from xetserve.http.cors import add_vary
from xetserve.http.entryfilter import EntryFilter
from xetserve.http.forwarding import move_url, select_answer_fields, select_request_fields
from xetserve.http.jsonfilter import MemberFilter
from xetserve.http.messages import Block, Headers, Request, Response
from xetserve.pipeline.reader import ReadLimits
from xetserve.upstream.hub import HubClient

MAX_QUESTION_SIZE: Final = 4 * 1024 * 1024  # bytes of a request body: a list of paths
HELD_SIZE: Final = 256 * 1024  # bytes; a smaller answer is sent as a whole, with its length
_XET_MEMBERS: Final = ("xetHash", "xetEnabled")


class PassThrough:
    """Passes requests on to the Hub.

    Args:
        limits: gap_timeout bounds the wait for the head, and for each piece of the body.
    """

    def __init__(self, hub: HubClient, limits: ReadLimits) -> None:
        self._hub = hub
        self._limits = limits

    async def answer(
        self,
        request: Request,
        token: str | None,
        *,
        native_above: int | None,
        joins_pages: bool = False,
    ) -> Response:
        """Give the Hub's answer.

        Args:
            native_above: members of JSON that tell of Xet are left out, except in entries of files larger than so many
                bytes; None: everywhere.
            joins_pages: a list comes as a whole.

        Raises:
            RequestError: 413.
            UpstreamError: the Hub is in trouble.
        """
        body = await request.body.read(MAX_QUESTION_SIZE) if request.method == "POST" else b""
        fields = [*select_request_fields(request.headers), ("Accept-Encoding", "gzip")]
        hub = self._hub.on_behalf(request.headers, names_agent=True)
        async with head_timeout(self._limits):
            page = await _open(hub.forward(request.method, request.target, fields, token, body))
            status, headers = page.status, make_answer_fields(hub, request, page.headers)
            if status >= 400:
                headers = [field for field in headers if field[0] != "Cache-Control"]
                headers.append(("Cache-Control", "no-store"))
            if request.method == "HEAD" or status in (204, 304):
                await page.opened.__aexit__(None, None, None)
                # The length of what we would send is not known: that of the Hub's answer may be of a coded one.
                return Response(status, headers, no_blocks())
            is_json = "json" in (page.headers.get("content-type") or "").lower()
            members = _make_filter(native_above) if is_json else None
            if joins_pages and status == 200 and page.following is not None:
                # What follows is of the first page alone.
                headers = [field for field in headers if field[0] not in ("Link", "ETag")]
                pieces = self._join(hub, page, fields, token)
            else:
                pieces = read_pieces(page, self._limits.gap_timeout)
            return Response(status, headers, await _start(make_blocks(pieces, members)))

    def _join(
        self, hub: HubClient, page: Page, fields: list[tuple[str, str]], token: str | None
    ) -> Pieces:
        """Join a list's pages; further ones are asked for as the first one was, but for its conditions."""
        fields = [field for field in fields if not field[0].startswith("If-")]

        async def open_page(url: str) -> Page:
            target = move_url(url, hub.bases, "")
            if not target.startswith("/"):
                raise UpstreamRefused("the Hub's list goes on elsewhere")
            async with head_timeout(self._limits):
                following = await _open(hub.forward("GET", target, fields, token))
            if following.status != 200:
                await following.opened.__aexit__(None, None, None)
                raise UpstreamRefused(
                    f"the Hub answered {following.status} in the middle of a list"
                )
            return following

        return join_pages(page, self._limits.gap_timeout, open_page)


def make_answer_fields(hub: HubClient, request: Request, headers: Headers) -> list[tuple[str, str]]:
    """Give the fields of an answer of the Hub's as they go to the client."""
    fields = select_answer_fields(headers, hub.bases, request.base_url)
    fields.append(hub.make_via(headers))
    vary = [name.strip() for value in headers.get_all("vary") for name in value.split(",")]
    fields = [field for field in fields if field[0] != "Vary"]
    add_vary(fields, *vary, "Authorization")
    return fields


async def _open(opened: AbstractAsyncContextManager[HubAnswer]) -> Page:
    """Wait for the head of an answer."""
    return Page(opened, await opened.__aenter__())


def _make_filter(native_above: int | None) -> MemberFilter | EntryFilter | None:
    """Give what takes the words of Xet out of an answer; None: they stay."""
    if native_above is None:
        return MemberFilter(_XET_MEMBERS)
    return None if native_above < 0 else EntryFilter(_XET_MEMBERS, native_above)


async def _start(blocks: AsyncGenerator[Block, None]) -> bytes | StartedBody:
    """Read a body as far as it may be held: all of it, or its beginning; failures are raised."""
    held: list[bytes] = []
    size = 0
    try:
        async for block in blocks:
            held += [bytes(part) for part in block]
            size += sum(map(len, block))
            if size > HELD_SIZE:
                return StartedBody(held, blocks)
    except BaseException:
        await blocks.aclose()
        raise
    return b"".join(held)
