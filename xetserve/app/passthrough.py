"""The Hub's API, passed on: questions to the Hub, answers to the client, made to look as if they were ours."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Final

from xetserve.app.answers import no_blocks
from xetserve.app.bodies import PlainSource, StartedBody
from xetserve.app.files import head_timeout
from xetserve.errors import BrokenStream, FormatError, UpstreamError, UpstreamTimeout
from xetserve.http.cors import add_vary
from xetserve.http.encoding import StreamDecoder
from xetserve.http.forwarding import select_answer_fields, select_request_fields
from xetserve.http.jsonfilter import MemberFilter
from xetserve.http.messages import Block, Headers, Request, Response
from xetserve.pipeline.reader import ReadLimits
from xetserve.upstream.hub import HubClient

MAX_QUESTION_SIZE: Final = 4 * 1024 * 1024  # bytes of a request body: a list of paths
HELD_SIZE: Final = 256 * 1024  # bytes; a smaller answer is sent as a whole, with its length
_BUFFER_SIZE: Final = 64 * 1024
_XET_MEMBERS: Final = ("xetHash", "xetEnabled")


class PassThrough:
    """Passes requests on to the Hub.

    Args:
        limits: gap_timeout bounds the wait for the head, and for each piece of the body.
    """

    def __init__(self, hub: HubClient, limits: ReadLimits) -> None:
        self._hub = hub
        self._limits = limits

    async def answer(self, request: Request, token: str | None, *, hides_xet: bool) -> Response:
        """Give the Hub's answer.

        Args:
            hides_xet: members of JSON that tell of Xet are left out, too.

        Raises:
            RequestError: 413.
            UpstreamError: the Hub is in trouble.
        """
        body = await request.body.read(MAX_QUESTION_SIZE) if request.method == "POST" else b""
        fields = [*select_request_fields(request.headers), ("Accept-Encoding", "gzip")]
        hub = self._hub.on_behalf(request.headers, names_agent=True)
        async with head_timeout(self._limits):
            opened = hub.forward(request.method, request.target, fields, token, body)
            source = await opened.__aenter__()
            status, headers = source.status, make_answer_fields(hub, request, source.headers)
            if status >= 400:
                headers = [field for field in headers if field[0] != "Cache-Control"]
                headers.append(("Cache-Control", "no-store"))
            if request.method == "HEAD" or status in (204, 304):
                await opened.__aexit__(None, None, None)
                # The length of what we would send is not known: that of the Hub's answer may be of a coded one.
                return Response(status, headers, no_blocks())
            is_json = "json" in (source.headers.get("content-type") or "").lower()
            members = MemberFilter(_XET_MEMBERS) if hides_xet and is_json else None
            blocks = _pass_blocks(opened, source, source.headers, members, self._limits.gap_timeout)
            return Response(status, headers, await _start(blocks))


def make_answer_fields(hub: HubClient, request: Request, headers: Headers) -> list[tuple[str, str]]:
    """Give the fields of an answer of the Hub's as they go to the client."""
    fields = select_answer_fields(headers, hub.bases, request.base_url)
    fields.append(hub.make_via(headers))
    vary = [name.strip() for value in headers.get_all("vary") for name in value.split(",")]
    fields = [field for field in fields if field[0] != "Vary"]
    add_vary(fields, *vary, "Authorization")
    return fields


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


async def _pass_blocks(
    opened: AbstractAsyncContextManager[object],
    source: PlainSource,
    headers: Headers,
    members: MemberFilter | None,
    timeout: float,
) -> AsyncGenerator[Block, None]:
    """Pass a body on, decoded, and without some members.

    Args:
        opened: the entered context that source came from; left when the body ends or is closed.
        timeout: seconds without a byte.
    """
    try:
        decoder = StreamDecoder(headers.get("content-encoding"))
        buffer = bytearray(_BUFFER_SIZE)
        while count := await source.receive_into(memoryview(buffer), timeout):
            for piece in decoder.decode(bytes(memoryview(buffer)[:count])):
                yield [piece if members is None else members.feed(piece)]
        decoder.finish()
        if members is not None:
            yield [members.finish()]
    except BrokenStream as exc:
        raise UpstreamError(f"the Hub's answer broke off: {exc}") from exc
    except TimeoutError as exc:
        raise UpstreamTimeout("the Hub's answer stalled") from exc
    except FormatError as exc:
        raise UpstreamError(f"the Hub: {exc}") from exc
    finally:
        await opened.__aexit__(None, None, None)
