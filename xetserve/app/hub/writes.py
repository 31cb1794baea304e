"""Forward small requests that change something on the Hub. Each is sent once, never retried.

Uploads are refused at their first request, before anything has changed on the Hub. The official
client creates the repository first, if it is missing, and its request does not tell that an upload
follows. So Hub clients cannot create repositories here unless the operator allows it.
"""

import json
import math
from collections.abc import Sequence
from typing import Final

from xetserve.app.download.service import head_timeout
from xetserve.app.hub.passthrough import make_answer_fields
from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, RequestError, UpstreamBusy
from xetserve.http.messages import Request, Response, json_response
from xetserve.http.relay import move_url, select_request_fields
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.hub.token_guard import TokenGuard, check_fields, may_be_json
from xetserve.upstream.requests import read_document

# Values of the setting repo_management.
AUTO: Final = "auto"  # all but the Hub's own call to create a repository
OFF: Final = "off"
UPLOADS_REFUSED: Final = (
    "this server is for downloads; uploads go to the Hub itself: unset HF_ENDPOINT"
)
_CREATION: Final = "/api/repos/create"
_CREATION_REFUSED: Final = (
    "Hub clients cannot create repositories through this server ([hub] repo_management); "
    "uploads go to the Hub itself: unset HF_ENDPOINT"
)
_MANAGEMENT_REFUSED: Final = (
    "repositories cannot be changed through this server ([hub] repo_management); "
    "changes and uploads go to the Hub itself: unset HF_ENDPOINT"
)

MAX_COMMAND_SIZE: Final = 64 * 1024  # bytes of a request's body
_MAX_ANSWER_SIZE: Final = 256 * 1024
_JSON: Final = (("Content-Type", "application/json"), ("Accept", "application/json"))


class Commands:
    """Sends commands to the Hub with the client's token.

    Args:
        limits: gap_timeout bounds the wait for the answer.
        management: the setting repo_management.
    """

    def __init__(self, hub: HubClient, limits: ReadLimits, management: str = AUTO) -> None:
        self._hub = hub
        self._limits = limits
        self._management = management

    async def pass_on(self, request: Request, token: str | None) -> Response:
        """Forward a client's command unchanged, and return the Hub's answer.

        Raises:
            RequestError: 403, the operator does not allow it; 413, the body has more than
                MAX_COMMAND_SIZE bytes.
            UpstreamError: the Hub fails or does not answer.
        """
        if self._management == AUTO and request.raw_path == _CREATION:
            raise RequestError(403, _CREATION_REFUSED)
        self._check_allowed(request)
        body = await request.body.read(MAX_COMMAND_SIZE)
        fields = select_request_fields(request.headers)
        return await self._send(request, request.method, request.target, fields, token, body)

    async def pass_login(self, request: Request) -> Response:
        """Forward a step of a login (RFC 6749, RFC 8628, RFC 8693), and return the Hub's answer.

        Nothing of it is logged, cached or looked at: bodies hold tokens and codes.

        Raises:
            RequestError: 413, the body has more than MAX_COMMAND_SIZE bytes.
            UpstreamError: the Hub fails or does not answer.
        """
        body = await request.body.read(MAX_COMMAND_SIZE)
        fields = select_request_fields(request.headers)
        credentials = request.headers.get("authorization")  # of an application, or none
        if credentials is not None:
            fields.append(("Authorization", credentials))
        try:
            return await self._send(request, request.method, request.target, fields, None, body)
        except UpstreamBusy as exc:
            if exc.status != 429:
                raise
            # A client that polls takes any other error for the end of the login (RFC 8628, 3.5).
            value = {"error": "slow_down", "error_description": str(exc)}
            headers = [("Cache-Control", "no-store")]
            if exc.retry_after is not None:
                headers.append(("Retry-After", str(math.ceil(exc.retry_after))))
            return json_response(429, value, headers)

    async def send(
        self, request: Request, method: str, target: str, token: str, value: object = None
    ) -> Response:
        """Send a command of our own, and return the Hub's answer to the client.

        Args:
            target: of the Hub, percent-encoded.
            value: becomes the JSON body; None: no body.

        Raises:
            RequestError: 403, the operator does not allow it.
            UpstreamError: the Hub fails or does not answer.
        """
        self._check_allowed(request)
        body = b"" if value is None else json.dumps(value).encode()
        return await self._send(request, method, target, _JSON, token, body)

    def _check_allowed(self, request: Request) -> None:
        """Check that the operator lets clients change something.

        Raises:
            RequestError: 403, see above.
        """
        if self._management == OFF and request.method not in ("GET", "HEAD"):
            raise RequestError(403, _MANAGEMENT_REFUSED)

    async def _send(
        self,
        request: Request,
        method: str,
        target: str,
        fields: Sequence[tuple[str, str]],
        token: str | None,
        body: bytes,
    ) -> Response:
        hub = self._hub.on_behalf(request.headers, names_agent=True)
        fields = (*fields, ("Accept-Encoding", "gzip"))
        async with (
            head_timeout(self._limits),
            hub.forward(method, target, fields, token, body, once=method != "GET") as answer,
        ):
            check_fields(answer.headers)
            headers = make_answer_fields(hub, request, answer.headers)
            content = await read_document(
                answer, "the Hub", _MAX_ANSWER_SIZE, self._limits.gap_timeout
            )
        # Caches must not store the result of a command.
        headers = [field for field in headers if field[0] != "Cache-Control"]
        headers.append(("Cache-Control", "no-store"))
        if may_be_json(answer.headers):
            TokenGuard().check(content)
            content = _move_member(content, hub.bases, request.base_url)
        return Response(answer.status, headers, content)


def _move_member(content: bytes, bases: Sequence[str], base_url: str) -> bytes:
    """Replace the Hub in the "url" of a JSON object by this server.

    Clients read the id of a repository from this URL. Another content is returned unchanged.
    """
    try:
        value = parse_json(content)
    except FormatError:
        return content
    if not isinstance(value, dict) or not isinstance(value.get("url"), str):
        return content
    return json.dumps(value | {"url": move_url(value["url"], bases, base_url)}).encode()
