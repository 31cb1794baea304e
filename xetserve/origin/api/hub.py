"""The reading part of the Hub's API: repositories, revisions, listings, CAS tokens.

Source: huggingface_hub hf_api.py and utils/_xet.py; hub-docs api.md, xet/auth.md.
"""

import asyncio
import base64
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError
from xetserve.http.messages import Request, Response, json_response
from xetserve.origin.api.auth import hub_error
from xetserve.origin.faults import Misbehaviour
from xetserve.origin.store.commits import Commit, Entry
from xetserve.origin.store.git_ids import make_pointer
from xetserve.origin.store.names import is_valid_ref_name
from xetserve.origin.store.repos import Repo
from xetserve.origin.store.signing import Grant, Signer
from xetserve.xet.hashes import format_hash

MAX_PAGE_SIZE: Final = 1000  # entries of a tree listing, as on the Hub
MAX_JSON_SIZE: Final = 4 * 1024 * 1024  # bytes of a request's JSON or form

T = TypeVar("T")


def format_time(seconds: int) -> str:
    """Return a time in the form of the Hub's JSON."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def is_true(text: str | None) -> bool:
    """Parse a boolean of a query or form; clients spell it in several ways."""
    return (text or "").lower() in ("1", "true")


async def find_commit(repo: Repo, revision: str) -> Commit:
    """Return the commit of a revision.

    Raises:
        RequestError: 404 RevisionNotFound.
    """
    commit = await repo.get_commit(revision)
    if commit is None:
        raise hub_error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


async def read_json(request: Request) -> dict[str, Any]:
    """Read a request's JSON object; an empty body counts as an empty object.

    Raises:
        RequestError: 400.
    """
    body = await request.body.read(MAX_JSON_SIZE)
    try:
        value = parse_json(body or b"{}")
    except FormatError:
        raise hub_error(400, "the request body is not JSON") from None
    if not isinstance(value, dict):
        raise hub_error(400, "the request body is not a JSON object")
    return value


def describe_repo(repo: Repo, commit: Commit) -> dict[str, Any]:
    """Return the JSON of a repository at a commit, without its files."""
    value: dict[str, Any] = {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.namespace or repo.owner,
        "sha": commit.id,
        "lastModified": format_time(commit.date),
        "createdAt": format_time(repo.created),
        "private": repo.private,
        "gated": repo.gated or False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
    }
    return value | {"modelId": repo.id} if repo.type.name == "model" else value


class HubApi:
    """The calls about repositories and their content."""

    def __init__(
        self,
        signer: Signer,
        *,
        token_lifetime: float,
        misbehaviour: Callable[[], Misbehaviour],
    ) -> None:
        self._signer = signer
        self._token_lifetime = token_lifetime
        self._misbehaviour = misbehaviour

    async def info(self, request: Request, repo: Repo, revision: str) -> Response:
        """Answer GET .../{id} and .../{id}/revision/{rev}."""
        commit = await find_commit(repo, revision)
        with_blobs = is_true(request.query.get("blobs"))
        siblings = [_sibling(entry, with_blobs) for entry in commit.entries.values()]
        return json_response(200, describe_repo(repo, commit) | {"siblings": siblings})

    def refs(self, request: Request, repo: Repo) -> Response:
        """Answer GET .../{id}/refs."""

        def under(prefix: str) -> list[dict[str, str]]:
            return [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit}
                for ref, commit in repo.refs.items()
                if ref.startswith(prefix)
            ]

        value = {
            "branches": under("refs/heads/"),
            "converts": under("refs/convert/"),
            "tags": under("refs/tags/"),
        }
        if is_true(request.query.get("include_prs")):
            value["pullRequests"] = under("refs/pr/")
        return json_response(200, value)

    async def commits(self, repo: Repo, revision: str) -> Response:
        """Answer GET .../{id}/commits/{rev}."""
        commit_id: str | None = (await find_commit(repo, revision)).id
        found = []
        while commit_id is not None:
            info = await repo.load_commit_info(commit_id)
            found.append(
                {
                    "id": commit_id,
                    "title": info["title"],
                    "message": info["message"],
                    "authors": [{"user": info["author"]}],
                    "date": format_time(info["date"]),
                }
            )
            commit_id = info["parent"]
        return json_response(200, found)

    async def tree(self, request: Request, repo: Repo, revision: str, folder: str) -> Response:
        """Answer GET .../{id}/tree/{rev}[/{path}], a page of it."""
        commit = await find_commit(repo, revision)
        query = request.query
        recursive = is_true(query.get("recursive"))
        await asyncio.to_thread(getattr, commit, "trees")  # hashes every folder, once
        items = list_folder(commit, folder.strip("/"), recursive)
        if not items and folder.strip("/"):
            raise hub_error(404, f"{folder} does not exist", "EntryNotFound", commit.id)
        items, headers = take_page(request, items, _path_of)
        expand = is_true(query.get("expand"))
        value = [await self._describe(repo, commit, item, expand) for item in items]
        return json_response(200, value, headers)

    async def paths_info(self, request: Request, repo: Repo, revision: str) -> Response:
        """Answer POST .../{id}/paths-info/{rev}, a form or JSON; unknown paths are left out."""
        commit = await find_commit(repo, revision)
        await asyncio.to_thread(getattr, commit, "trees")
        body = await request.body.read(MAX_JSON_SIZE)
        paths, expand = _parse_paths(body)
        found = []
        for path in paths:
            path = path.strip("/")
            item: Entry | str | None = commit.entries.get(path)
            if item is None and path in commit.trees:
                item = path
            if item is not None and path:
                found.append(await self._describe(repo, commit, item, expand))
        return json_response(200, found)

    async def token(self, request: Request, repo: Repo, revision: str, scope: str) -> Response:
        """Answer GET .../{id}/xet-{read|write}-token/{rev}; headers and JSON say the same."""
        if scope == "read":  # uploads for a new pull request name "None" as their revision
            await find_commit(repo, revision)
        lifetime = self._misbehaviour().faults.token_lifetime
        expires = self._signer.get_expiry(self._token_lifetime if lifetime is None else lifetime)
        token = self._signer.make_token(Grant(repo.type.name, repo.id, scope, expires))
        url = request.base_url
        headers = [
            ("X-Xet-Cas-Url", url),
            ("X-Xet-Access-Token", token),
            ("X-Xet-Token-Expiration", str(expires)),
        ]
        value = {"casUrl": url, "accessToken": token, "exp": expires}
        return json_response(200, value, headers)

    async def add_branch(self, request: Request, repo: Repo, branch: str) -> Response:
        """Answer POST .../{id}/branch/{name}."""
        value = await read_json(request)
        start = await find_commit(repo, str(value.get("startingPoint") or "main"))
        return await self._add_ref(repo, f"refs/heads/{branch}", branch, start)

    async def add_tag(self, request: Request, repo: Repo, revision: str) -> Response:
        """Answer POST .../{id}/tag/{rev}."""
        tag = str((await read_json(request)).get("tag"))
        target = await find_commit(repo, revision)
        return await self._add_ref(repo, f"refs/tags/{tag}", tag, target)

    async def _add_ref(self, repo: Repo, ref: str, name: str, target: Commit) -> Response:
        if not is_valid_ref_name(name):
            raise hub_error(400, f"{name} is not a valid name")
        async with repo.lock:
            if ref in repo.refs:
                raise hub_error(409, f"Reference already exists: {ref}")
            await repo.set_ref(ref, target.id)
        return json_response(201, {"ref": ref, "targetCommit": target.id})

    async def delete_ref(self, repo: Repo, ref: str) -> Response:
        """Answer DELETE .../{id}/branch/{name} and .../{id}/tag/{name}."""
        async with repo.lock:
            if ref == "refs/heads/main":
                raise hub_error(403, "the main branch cannot be deleted")
            if ref not in repo.refs:
                raise hub_error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
            await repo.delete_ref(ref)
        return json_response(200, {})

    async def _describe(
        self, repo: Repo, commit: Commit, item: Entry | str, expand: bool
    ) -> dict[str, Any]:
        """Return the JSON of a file or folder, as listings have it."""
        if isinstance(item, str):
            value: dict[str, Any] = {"type": "directory", "oid": commit.trees[item], "size": 0}
            value["path"] = item
        else:
            value = {"type": "file", "oid": item.oid, "size": item.size}
            if item.file_hash is not None:
                value["lfs"] = _describe_lfs(item)
                value["xetHash"] = format_hash(item.file_hash)
            value["path"] = item.path
        if expand:
            value["lastCommit"] = await _last_commit(repo, commit, item)
            if not isinstance(item, str):
                value["securityFileStatus"] = None
        return value


def take_page(
    request: Request, items: list[T], key: Callable[[T], str]
) -> tuple[list[T], list[tuple[str, str]]]:
    """Return the requested page, and the Link to the next one.

    Args:
        items: all items, in order of their keys.

    Raises:
        RequestError: 400: not a limit, or not a cursor of ours.
    """
    query = request.query
    limit = _parse_limit(query.get("limit"))
    after = _parse_cursor(query.get("cursor"))
    if after is not None:
        items = [item for item in items if key(item) > after]
    if len(items) <= limit:
        return items, []
    items = items[:limit]
    cursor = base64.urlsafe_b64encode(key(items[-1]).encode()).decode()
    again = urlencode({**query, "limit": limit, "cursor": cursor})
    url = f"{request.base_url}{request.raw_path}?{again}"
    return items, [("Link", f'<{url}>; rel="next"')]


def _describe_lfs(entry: Entry) -> dict[str, Any]:
    pointer_size = len(make_pointer(entry.sha256 or "", entry.size))
    return {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer_size}


def _sibling(entry: Entry, with_blobs: bool) -> dict[str, Any]:
    value: dict[str, Any] = {"rfilename": entry.path}
    if with_blobs:
        value |= {"size": entry.size, "blobId": entry.oid}
        if entry.sha256 is not None:
            lfs = _describe_lfs(entry)
            value["lfs"] = {"sha256": lfs.pop("oid"), **lfs}
    return value


async def _last_commit(repo: Repo, commit: Commit, item: Entry | str) -> dict[str, Any]:
    if isinstance(item, str):
        inside = (e for e in commit.entries.values() if e.path.startswith(f"{item}/"))
        ids = {entry.changed_in for entry in inside}
    else:
        ids = {item.changed_in}
    infos = [(commit_id, await repo.load_commit_info(commit_id)) for commit_id in ids]
    commit_id, info = max(infos, key=lambda pair: int(pair[1]["date"]))
    return {"id": commit_id, "title": info["title"], "date": format_time(info["date"])}


def list_folder(commit: Commit, folder: str, recursive: bool) -> list[Entry | str]:
    """Return the files in a folder, and its folders by their paths, in order of their paths."""
    prefix = f"{folder}/" if folder else ""
    items: list[Entry | str] = [
        path
        for path in commit.trees
        if path.startswith(prefix) and path and (recursive or "/" not in path[len(prefix) :])
    ]
    items += (
        entry
        for path, entry in commit.entries.items()
        if path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])
    )
    items.sort(key=_path_of)
    return items


def _path_of(item: Entry | str) -> str:
    return item if isinstance(item, str) else item.path


def _parse_limit(text: str | None) -> int:
    if text is None:
        return MAX_PAGE_SIZE
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise hub_error(400, "limit must be a number above 0")
    return min(int(text), MAX_PAGE_SIZE)


def _parse_cursor(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, b"-_", validate=True).decode()
    except ValueError:
        raise hub_error(400, "the cursor is not one of ours") from None


def check_paths(value: dict[str, Any]) -> list[str]:
    """Return the paths that a request's JSON object names; one alone may be a string.

    Raises:
        RequestError: 400, they are no strings.
    """
    paths = value.get("paths", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not (isinstance(paths, list) and all(isinstance(path, str) for path in paths)):
        raise hub_error(400, "paths must be a list of strings")
    return paths


def _parse_paths(body: bytes) -> tuple[Iterable[str], bool]:
    if body.lstrip().startswith(b"{"):
        try:
            value = parse_json(body)
        except FormatError:
            raise hub_error(400, "the request body is not JSON") from None
        return check_paths(value), value.get("expand") is True
    pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
    expand = any(name == "expand" and is_true(text) for name, text in pairs)
    return [text for name, text in pairs if name == "paths"], expand
