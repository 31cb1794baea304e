"""Our own small API to manage repositories, translated to the Hub's API.

    GET    /api/account                                       show the user of the token
    POST   /api/repo   {"type", "name", "private"}            create a repository
    PUT    /api/repo   {"type", "namespace", "private"}       make owner/name public or private
    DELETE /api/repo   {"type", "name"}                       delete a repository

All requests need a token. The client gets the Hub's answer.
"""

from typing import Any, Final

from xetserve.app.hub.writes import Commands
from xetserve.app.paths import REPO_PART
from xetserve.app.route_table import Call
from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, RequestError
from xetserve.http.messages import Request, Response
from xetserve.upstream.hub.entry import KINDS, RepoRef

MAX_BODY_SIZE: Final = 4 * 1024  # bytes; a name has at most 193 characters
# The members of each method's body, and whether they are required.
_MEMBERS: Final[dict[str, dict[str, bool]]] = {
    "POST": {"type": True, "name": True, "private": False},
    "PUT": {"type": True, "namespace": True, "private": True},
    "DELETE": {"type": True, "name": True},
}


class ManagementApi:
    """Answers the requests above."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def answer_account(self, call: Call[None]) -> Response:
        """Answer with the user of the token.

        Raises:
            UpstreamError: the Hub fails or does not answer.
        """
        return await self._send(call, "GET", "/api/whoami-v2")

    async def answer_repo(self, call: Call[None]) -> Response:
        """Create, change or delete a repository.

        Raises:
            RequestError: 400, the body is not JSON; 413, it is too long; 415, it has another media
                type; 422, a member is missing, unknown or not valid.
            UpstreamError: the Hub fails or does not answer.
        """
        request = call.request
        value = await _read_body(request)
        kind, private = value["type"], value.get("private")
        visibility = {} if private is None else {"visibility": "private" if private else "public"}
        if request.method == "PUT":
            repo = RepoRef(kind, value["namespace"])
            target = f"{repo.api_prefix}/settings"
            return await self._send(call, "PUT", target, visibility)
        owner, _, name = value["name"].rpartition("/")
        command = {"type": kind, "name": name, "organization": owner or None}
        if request.method == "DELETE":
            return await self._send(call, "DELETE", "/api/repos/delete", command)
        # The Hub requires an SDK for a space; static is the one that runs nothing.
        sdk = {"sdk": "static"} if kind == "space" else {}
        command |= visibility | sdk
        return await self._send(call, "POST", "/api/repos/create", command)

    async def _send(
        self, call: Call[None], method: str, target: str, value: object = None
    ) -> Response:
        assert call.token is not None  # its routes require one
        return await self._commands.send(call.request, method, target, call.token, value)


async def _read_body(request: Request) -> dict[str, Any]:
    """Read the body, and check it against the members of the method.

    Raises:
        RequestError: see ManagementApi.answer_repo.
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
    """Make an object from its members.

    Raises:
        ValueError: two members have the same name.
    """
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has two members of the same name")
    return value


def _check_id(value: object, member: str, form: str, sizes: tuple[int, ...]) -> None:
    parts = value.split("/") if isinstance(value, str) else []
    if len(parts) not in sizes or not all(map(_is_name, parts)):
        raise RequestError(422, f"{member} must be {form}")


def _is_name(part: str) -> bool:
    """Return whether a name has the form of the Hub's names; the Hub decides in the end."""
    return (
        REPO_PART.fullmatch(part) is not None
        and "--" not in part
        and ".." not in part
        and not part.endswith((".git", ".ipynb", "-", "."))
    )
