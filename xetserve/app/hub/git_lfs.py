"""Git LFS, downloads only: the Hub says which objects exist and who may read them; we serve them.

Source: git-lfs, docs/api/batch.md and docs/api/authentication.md.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from xetserve.app.auth import unauthorized
from xetserve.app.download.service import head_timeout
from xetserve.app.errors import from_error
from xetserve.app.hub.by_sha256 import ObjectService, is_sha256
from xetserve.app.hub.paths import ObjectPath
from xetserve.app.hub.writes import UPLOADS_REFUSED
from xetserve.app.paths import check_revision
from xetserve.app.route_table import Call
from xetserve.base.json_text import parse_json
from xetserve.errors import (
    FormatError,
    RequestError,
    UpstreamError,
    UpstreamMissing,
    XetserveError,
)
from xetserve.http.messages import Headers, Request, Response, json_response
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.hub.client import FileEntry, HubClient, RepoRef
from xetserve.upstream.requests import make_url, read_document

MAX_OBJECTS: Final = 1000  # of a batch; git-lfs asks for 100
MEDIA_TYPE: Final = "application/vnd.git-lfs+json"
_MAX_BATCH_SIZE: Final = 256 * 1024  # bytes; MAX_OBJECTS are 100 KB
_MAX_ANSWER_SIZE: Final = 4 * 1024 * 1024  # bytes; signed URLs are long
MAX_LINKS_SIZE: Final = 512 * 1024  # characters of all URLs in an answer; MAX_OBJECTS need half
_MAX_SIZE: Final = 10**18
_SIZE: Final = re.compile(r"[0-9]{1,18}")
_FIELDS: Final = (
    ("Content-Type", MEDIA_TYPE), ("Accept", MEDIA_TYPE), ("Accept-Encoding", "gzip"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """The objects that a client wants to download.

    objects: (sha256 in hex, size in bytes).
    ref: as the client names it.
    """

    objects: tuple[tuple[str, int], ...]
    ref: str | None

    @property
    def revision(self) -> str:
        """The Hub's name of the ref."""
        return (self.ref or "main").removeprefix("refs/heads/").removeprefix("refs/tags/")

    def to_json(self) -> bytes:
        """Return the body of the batch request to the Hub."""
        value: dict[str, Any] = {
            "operation": "download",
            "transfers": ["basic"],
            "hash_algo": "sha256",
            "objects": [{"oid": oid, "size": size} for oid, size in self.objects],
        }
        if self.ref is not None:
            value["ref"] = {"name": self.ref}
        return json.dumps(value).encode()


class LfsApi:
    """Answers /{id}.git/info/lfs/objects/batch and, for the URLs in its answers,
    .../objects/{sha256}.
    """

    def __init__(self, hub: HubClient, objects: ObjectService, limits: ReadLimits) -> None:
        self._hub = hub
        self._objects = objects
        self._limits = limits

    async def answer_batch(self, call: Call[ObjectPath]) -> Response:
        """Answer a batch request with the URLs of the objects on this server.

        Raises:
            RequestError: the request is not valid, or the Hub refuses it.
            UpstreamError: the Hub fails or does not answer.
        """
        request, repo = call.request, call.target.repo
        batch = read_batch(await request.body.read(_MAX_BATCH_SIZE))
        base = f"{request.base_url}{repo.url_prefix}.git/info/lfs/objects"
        links = [f"{base}/{oid}?{_make_query(batch, size)}" for oid, size in batch.objects]
        if sum(map(len, links)) > MAX_LINKS_SIZE:
            raise RequestError(413, "the batch has too many objects for one answer: ask for fewer")
        hub = self._hub.on_behalf(request.headers, names_agent=True)
        async with head_timeout(self._limits):
            found = await self._ask(hub, repo, batch, call.token)
        objects = [
            _describe(oid, size, found.get(oid), link)
            for (oid, size), link in zip(batch.objects, links, strict=True)
        ]
        answer = {"transfer": "basic", "hash_algo": "sha256", "objects": objects}
        return _make_response(200, answer)

    async def _ask(
        self, hub: HubClient, repo: RepoRef, batch: Batch, token: str | None
    ) -> dict[str, dict[str, Any]]:
        """Send a batch request to the Hub, and return the objects of its answer by sha256.

        Raises:
            RequestError: the Hub refuses the request.
            UpstreamError: the Hub fails or does not answer.
        """
        target = f"{repo.url_prefix}.git/info/lfs/objects/batch"
        async with hub.forward("POST", target, _FIELDS, token, batch.to_json()) as answer:
            body = await read_document(
                answer, "the Hub", _MAX_ANSWER_SIZE, self._limits.gap_timeout
            )
        try:
            value = parse_json(body)
        except FormatError:
            value = None
        if answer.status != 200:
            raise _make_refusal(answer.status, answer.headers, value)
        objects = value.get("objects") if isinstance(value, dict) else None
        if not isinstance(objects, list):
            raise UpstreamError("the Hub's answer to an LFS batch has no list of objects")
        return {item["oid"]: item for item in objects if isinstance(item, dict) and "oid" in item}

    async def answer_object(self, call: Call[ObjectPath]) -> Response:
        """Answer GET and HEAD for an object.

        Raises:
            RequestError: 404, the name is not a sha256, or the object is not found.
            UpstreamError: the Hub or the CAS fails or refuses.
            IntegrityError: the data is damaged.
        """
        request, token = call.request, call.token
        repo, digest = call.target
        if not is_sha256(digest):
            raise RequestError(404, "an LFS object is named by its sha256")
        revision = check_revision(request.query.get("revision", "main"))
        size = request.query.get("size", "")

        async def look_up(hub: HubClient) -> FileEntry:
            if not _SIZE.fullmatch(size):
                raise RequestError(404, "the revision has no such object, and ?size= is missing")
            batch = Batch(((digest, int(size)),), None)
            found = (await self._ask(hub, repo, batch, token)).get(digest) or {}
            return _make_entry(digest, int(size), found)

        return await self._objects.get(request, repo, revision, digest, token, look_up)


def read_batch(body: bytes) -> Batch:
    """Parse the body of a batch request.

    Raises:
        RequestError: 403, it is for uploads; 409, it names another hash; 413, it has too many
            objects; 422, it is malformed.
    """
    try:
        value = parse_json(body)
    except FormatError:
        raise RequestError(422, "the batch is not JSON") from None
    if not isinstance(value, dict) or not isinstance(value.get("objects"), list):
        raise RequestError(422, "a batch must have an operation and a list of objects")
    if value.get("operation") == "upload":
        raise RequestError(403, f"{UPLOADS_REFUSED}, or push to the Hub's own URL")
    if value.get("operation") != "download":
        raise RequestError(422, "the operation must be download")
    if value.get("hash_algo", "sha256") != "sha256":
        raise RequestError(409, "hash_algo must be sha256")
    transfers = value.get("transfers") or ["basic"]
    if not isinstance(transfers, list) or "basic" not in transfers:
        raise RequestError(422, "the transfer must be basic")
    if len(value["objects"]) > MAX_OBJECTS:
        raise RequestError(413, f"a batch may have at most {MAX_OBJECTS} objects")
    ref = value.get("ref")
    name = ref.get("name") if isinstance(ref, dict) else None
    if name is not None:
        if not isinstance(name, str):
            raise RequestError(422, "the name of a ref must be a string")
        check_revision(name)
    return Batch(tuple(map(_read_object, value["objects"])), name)


def _read_object(item: object) -> tuple[str, int]:
    oid, size = (item.get("oid"), item.get("size")) if isinstance(item, dict) else (None, None)
    if not isinstance(oid, str) or not is_sha256(oid):
        raise RequestError(422, "an object's oid must be a sha256 in hex")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise RequestError(422, "an object's size must be a number of bytes")
    return oid, size


def _make_query(batch: Batch, size: int) -> str:
    """Return the query of an object's URL: its size, and the revision unless it is main."""
    if batch.revision == "main":
        return f"size={size}"
    return f"size={size}&revision={quote(batch.revision, safe='')}"


def _describe(oid: str, size: int, found: dict[str, Any] | None, href: str) -> dict[str, Any]:
    """Return the JSON form of an object in the answer.

    It holds no token, since clients send their own one to the same host.
    """
    value: dict[str, Any] = {"oid": oid, "size": size}
    error = (found or {}).get("error")
    if isinstance(error, dict):
        code = error.get("code")
        message = str(error.get("message") or "the Hub has no such object")
        return value | {"error": {"code": code if type(code) is int else 404, "message": message}}
    if _find_action(found) is None:
        return value | {"error": {"code": 404, "message": "the Hub has no such object"}}
    return value | {"actions": {"download": {"href": href}}}


def _find_action(found: dict[str, Any] | None) -> dict[str, Any] | None:
    actions = (found or {}).get("actions")
    action = actions.get("download") if isinstance(actions, dict) else None
    return action if isinstance(action, dict) and isinstance(action.get("href"), str) else None


def _make_entry(digest: str, size: int, found: dict[str, Any]) -> FileEntry:
    """Make the entry of an object that the Hub serves at the URL of its download action.

    Raises:
        UpstreamMissing: the Hub names no such URL.
    """
    action = _find_action(found)
    if action is None:
        raise UpstreamMissing("the Hub has no such object")
    return FileEntry(
        size=size,
        etag=digest,
        sha256=digest,
        commit=None,
        last_modified=None,
        content_type=None,
        file_hash=None,
        token_url=None,
        url=make_url(action["href"], "the Hub's LFS URL"),
    )


def _make_refusal(status: int, headers: Headers, value: object) -> XetserveError:
    """Make the error for the Hub's refusal of a batch, with the Hub's message."""
    said = value if isinstance(value, dict) else {}
    message = headers.get("x-error-message") or said.get("message") or said.get("error")
    text = str(message or f"the Hub answered {status}")
    if status == 401:
        return unauthorized(text)
    if 400 <= status < 500:
        return RequestError(status, text)
    return UpstreamError(f"the Hub answered {status}")


def _make_response(status: int, value: object) -> Response:
    response = json_response(status, value)
    response.headers = [("Content-Type", MEDIA_TYPE), ("Cache-Control", "no-store")]
    return response


def refuse(error: XetserveError, request: Request) -> Response:
    """Return the response to an error in the form that LFS clients expect."""
    plain = from_error(error, request)
    response = _make_response(plain.status, {"message": str(error)})
    response.headers += [field for field in plain.headers if field[0] != "Content-Type"]
    if plain.status == 401:
        response.headers.append(("LFS-Authenticate", 'Basic realm="xetserve"'))
    return response
