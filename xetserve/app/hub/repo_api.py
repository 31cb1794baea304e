"""A small API of ours for repositories, mapped to the Hub's.

    GET    /api/account                                       who the token is
    POST   /api/repo   {"type", "name", "private"}            makes a repository
    PUT    /api/repo   {"type", "namespace", "private"}       changes who may see owner/name
    DELETE /api/repo   {"type", "name"}                       removes it

All of them need a token. What the Hub says of them is the answer.
"""

import re
from typing import Any, Final

from xetserve.app.auth import unauthorized
from xetserve.app.hub.writes import Commands
from xetserve.app.paths import KINDS, check_method
from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, RequestError
from xetserve.http.cors import METHODS
from xetserve.http.messages import Request, Response
from xetserve.upstream.hub.client import RepoRef

MAX_BODY_SIZE: Final = 4 * 1024  # bytes; a name has at most 193 characters
ACCOUNT: Final = "/api/account"
REPO: Final = "/api/repo"

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
# The members of each method's body, and whether they must be there.
_MEMBERS: Final[dict[str, dict[str, bool]]] = {
    "POST": {"type": True, "name": True, "private": False},
    "PUT": {"type": True, "namespace": True, "private": True},
    "DELETE": {"type": True, "name": True},
}


class ManagementApi:
    """Answers the requests above."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    def is_for(self, request: Request) -> bool:
        """Return whether a request is one of them."""
        return request.raw_path in (ACCOUNT, REPO)

    async def answer(self, request: Request, token: str | None) -> Response:
        """Answer a request.

        Raises:
            RequestError: 401, 405; 400, 413, 415, 422: its body is not what it should be.
            UpstreamError: the Hub is in trouble.
        """
        is_account = request.raw_path == ACCOUNT
        check_method(request, METHODS if is_account else (*_MEMBERS, "OPTIONS"))
        if token is None:
            raise unauthorized("send a Hub token: Authorization: Bearer hf_...")
        if is_account:
            return await self._commands.send(request, "GET", "/api/whoami-v2", token)
        value = await _read_body(request)
        kind, private = value["type"], value.get("private")
        visibility = {} if private is None else {"visibility": "private" if private else "public"}
        if request.method == "PUT":
            repo = RepoRef(kind, value["namespace"])
            target = f"{repo.api_prefix}/settings"
            return await self._commands.send(request, "PUT", target, token, visibility)
        owner, _, name = value["name"].rpartition("/")
        command = {"type": kind, "name": name, "organization": owner or None}
        if request.method == "DELETE":
            return await self._commands.send(request, "DELETE", "/api/repos/delete", token, command)
        # A space has to have an SDK; static is the one that runs nothing.
        sdk = {"sdk": "static"} if kind == "space" else {}
        command |= visibility | sdk
        return await self._commands.send(request, "POST", "/api/repos/create", token, command)


async def _read_body(request: Request) -> dict[str, Any]:
    """Read and check the body that goes with the method.

    Raises:
        RequestError: see ManagementApi.answer.
    """
    media_type = (request.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            415, "send JSON: Content-Type: application/json", [("Accept", "application/json")]
        )
    body = await request.body.read(MAX_BODY_SIZE)
    try:
        value = parse_json(body, _make_object)
    except FormatError as exc:
        raise RequestError(400, f"the body is not JSON: {exc}") from None
    if not isinstance(value, dict):
        raise RequestError(422, "the body must be a JSON object")
    members = _MEMBERS[request.method]
    for name, is_needed in members.items():
        if is_needed and name not in value:
            raise RequestError(422, f"{name} is missing")
    unknown = [name for name in value if name not in members]
    if unknown:
        raise RequestError(422, f"members are {', '.join(members)}, not {unknown[0]!r}")
    if value["type"] not in KINDS:
        raise RequestError(422, f"type must be one of {', '.join(KINDS)}")
    if not isinstance(value.get("private", False), bool):
        raise RequestError(422, "private must be true or false")
    if request.method == "PUT":
        _check_id(value["namespace"], "namespace", "owner/name", (2,))
    else:
        _check_id(value["name"], "name", "owner/name, or the name of one of your own", (1, 2))
    return value


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object whose members mean one thing only."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has two members of the same name")
    return value


def _check_id(value: object, member: str, form: str, sizes: tuple[int, ...]) -> None:
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) not in sizes or not all(map(_is_name, parts)):
        raise RequestError(422, f"{member} must be {form}")


def _is_name(part: str) -> bool:
    """Return whether this may be a name on the Hub, which has the last word."""
    return (
        _NAME.fullmatch(part) is not None
        and "--" not in part
        and ".." not in part
        and not part.endswith((".git", ".ipynb", "-", "."))
    )
