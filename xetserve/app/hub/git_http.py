"""Pass git's smart HTTP protocol on to the Hub, for clones and fetches.

    GET  /{id}/info/refs?service=git-upload-pack     refs, or what the server can do (version 2)
    POST /{id}/git-upload-pack                       refs, negotiation, the pack

The Hub has the history, so nothing is cached: a pack is made for each client. Large files are LFS
objects, which the clone then downloads from this server, see git_lfs.py. Pushes are refused.

Requests and answers are streamed: a fetch may ask for hundreds of thousands of objects, and its
pack may have gigabytes. Errors are plain text, because git prints nothing else of an answer.

Source: git, Documentation/gitprotocol-http.txt and http.c.
"""

from collections.abc import AsyncIterator
from typing import Final

from xetserve.app.download.body import start_body
from xetserve.app.download.service import head_timeout
from xetserve.app.errors import from_error
from xetserve.app.hub.json_bodies import Page, stream_blocks
from xetserve.app.hub.passthrough import make_answer_fields
from xetserve.app.hub.paths import ObjectPath
from xetserve.app.hub.writes import UPLOADS_REFUSED
from xetserve.app.route_table import Call
from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, RequestError, XetserveError
from xetserve.http.messages import Headers, Request, Response
from xetserve.http.relay import select_request_fields
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.requests import read_document

# Seconds until the Hub must begin an answer, and until each next byte: git itself has no limits,
# and counting the objects of a large repository takes a while.
TIMEOUT: Final = 60.0
WHOLE_SIZE: Final = 16 * 1024  # bytes; a smaller request is read first, and can be sent again
_MAX_ERROR_SIZE: Final = 64 * 1024
_UPLOAD_PACK: Final = "git-upload-pack"
_FIELDS: Final = ("Git-Protocol", "Content-Encoding")
_CHALLENGE: Final = ("WWW-Authenticate", 'Basic realm="xetserve"')
_PUSH_REFUSED: Final = f"{UPLOADS_REFUSED}, or push to the Hub's own URL"


class GitApi:
    """Answers the requests above.

    Args:
        limits: see head_timeout.
    """

    def __init__(self, hub: HubClient, limits: ReadLimits) -> None:
        self._hub = hub
        self._limits = limits

    async def answer_refs(self, call: Call[ObjectPath]) -> Response:
        """Answer with the refs of a repository, or with the abilities of the Hub's git server.

        Raises:
            RequestError: 400, the service is unknown; 403, it is for a push.
            UpstreamError: the Hub fails or does not answer.
        """
        service = call.request.query.get("service")
        if service == "git-receive-pack":
            raise RequestError(403, _PUSH_REFUSED)
        if service != _UPLOAD_PACK:
            raise RequestError(400, f"the only service is {_UPLOAD_PACK}: use git 1.6.6 or later")
        # Made from what was checked: another server may read another one of several values.
        target = f"{call.request.raw_path}?service={_UPLOAD_PACK}"
        return await self._pass_on(call, target, b"")

    async def answer_pack(self, call: Call[ObjectPath]) -> Response:
        """Answer a command of a fetch.

        Raises:
            RequestError: the body is malformed or too slow.
            UpstreamError: the Hub fails or does not answer.
        """
        return await self._pass_on(call, call.request.raw_path, await _read_start(call.request))

    async def refuse_push(self, call: Call[ObjectPath]) -> Response:
        """Refuse a push.

        Raises:
            RequestError: 403, always.
        """
        raise RequestError(403, _PUSH_REFUSED)

    async def _pass_on(
        self, call: Call[ObjectPath], target: str, body: bytes | AsyncIterator[bytes]
    ) -> Response:
        request = call.request
        request.record.repo = call.target.repo.id
        hub = self._hub.on_behalf(request.headers, names_agent=True, timeout=TIMEOUT)
        given = ((name, request.headers.get(name)) for name in _FIELDS)
        fields = [
            *select_request_fields(request.headers),
            *((name, value) for name, value in given if value is not None),
            ("Accept-Encoding", "identity"),
        ]
        # git follows redirects by itself: so it learns the new name of a repository.
        opened = hub.forward(
            request.method, target, fields, call.token, body, follows_redirects=False
        )
        if isinstance(body, bytes):
            async with head_timeout(self._limits, TIMEOUT):
                answer = await opened.__aenter__()
        else:  # the rate of the request is limited where it is read
            answer = await opened.__aenter__()
        headers = make_answer_fields(hub, request, answer.headers)
        if answer.status >= 400:
            try:
                document = await read_document(answer, "the Hub", _MAX_ERROR_SIZE, TIMEOUT)
            finally:
                await opened.__aexit__(None, None, None)
            return _make_refusal(answer.status, answer.headers, document, headers)
        length = None if "content-encoding" in answer.headers else answer.content_length
        blocks = stream_blocks(Page(opened, answer), TIMEOUT)
        return Response(answer.status, headers, await start_body(blocks), length=length)


async def _read_start(request: Request) -> bytes | AsyncIterator[bytes]:
    """Return the body of a request if it is small, else an iterator of its pieces."""
    pieces = aiter(request.body)
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) > WHOLE_SIZE:
            return _chain(bytes(held), pieces)
    return bytes(held)


async def _chain(start: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for piece in pieces:
        yield piece


def _make_refusal(
    status: int, answered: Headers, document: bytes, headers: list[tuple[str, str]]
) -> Response:
    """Make the response to an error of the Hub, with the Hub's words in a form that git prints.

    Args:
        answered: the fields of the Hub's answer.
        headers: those that may go to the client.
    """
    text = answered.get("x-error-message") or _find_text(
        document, answered.get("content-type") or ""
    )
    dropped = ("Content-Type", "Cache-Control", "WWW-Authenticate", "ETag")
    kept = [field for field in headers if field[0] not in dropped]
    return _make_text(status, text or f"the Hub answered {status}", kept)


def _find_text(body: bytes, media_type: str) -> str:
    """Return the message of the Hub's error document; "": it has none."""
    if "text/plain" in media_type:
        return body.decode("utf-8", "replace").strip()
    try:
        value = parse_json(body)
    except FormatError:
        return ""
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, str) else ""


def _make_text(status: int, text: str, headers: list[tuple[str, str]]) -> Response:
    fields = [*headers, ("Content-Type", "text/plain; charset=utf-8")]
    fields.append(("Cache-Control", "no-store"))
    if status == 401:
        fields.append(_CHALLENGE)  # git asks for a password only then
    return Response(status, fields, f"{text}\n".encode())


def refuse(error: XetserveError, request: Request) -> Response:
    """Return the response to an error in the form that git prints."""
    plain = from_error(error, request)
    kept = [
        field for field in plain.headers if field[0] not in ("Content-Type", "WWW-Authenticate")
    ]
    return _make_text(plain.status, str(error), kept)
