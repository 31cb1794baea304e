"""Buckets, to read: Xet files by name, without commits. Here a bucket is the main branch of a
repository of its own kind, which an import fills.

    GET  /api/buckets/{namespace}                 the buckets of a namespace
    GET  /api/buckets/{id}                        its size and number of files
    GET  /api/buckets/{id}/tree[/{prefix}]        its files; the slashes of the prefix are encoded
    POST /api/buckets/{id}/paths-info             {"paths": […]}: some of its files
    GET  /api/buckets/{id}/xet-read-token         a token for its data
    GET  /buckets/{id}/resolve/{path}             a file

Source: huggingface_hub hf_api.py and _buckets.py.
"""

from typing import Any

from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response, json_response
from xetserve.origin.api.auth import Gatekeeper
from xetserve.origin.api.hub import (
    HubApi,
    check_paths,
    find_commit,
    format_time,
    is_true,
    list_folder,
    read_json,
    take_page,
)
from xetserve.origin.store.commits import BUCKET, Commit, Entry
from xetserve.origin.store.repos import Repo, RepoStore
from xetserve.xet.hashes import format_hash


class BucketsApi:
    """The calls about buckets."""

    def __init__(self, gatekeeper: Gatekeeper, repos: RepoStore, hub: HubApi) -> None:
        self._gatekeeper = gatekeeper
        self._repos = repos
        self._hub = hub

    async def answer(self, request: Request, parts: list[str]) -> Response:
        """Answer a call; parts follow /api/buckets/."""
        match request.method, parts:
            case "GET", [namespace]:
                return await self._list(request, namespace)
            case "GET", [owner, name]:
                return json_response(200, await _describe(await self._open(request, owner, name)))
            case "GET", [owner, name, "tree", *prefix]:
                repo = await self._open(request, owner, name)
                return await self._list_files(request, repo, "/".join(prefix))
            case "POST", [owner, name, "paths-info"]:
                repo = await self._open(request, owner, name)
                paths = check_paths(await read_json(request))
                commit = await find_commit(repo, "main")
                found = [commit.entries[path] for path in paths if path in commit.entries]
                return json_response(200, [_describe_file(entry, commit) for entry in found])
            case "GET", [owner, name, "xet-read-token"]:
                repo = await self._open(request, owner, name)
                return await self._hub.token(request, repo, "main", "read")
        raise RequestError(404, "no such API call")

    async def _open(self, request: Request, owner: str, name: str) -> Repo:
        return await self._gatekeeper.open_repo(request.headers, BUCKET, f"{owner}/{name}")

    async def _list(self, request: Request, namespace: str) -> Response:
        caller = self._gatekeeper.identify(request.headers)
        namespace = caller.user or "" if namespace == "me" else namespace
        search = request.query.get("search", "").lower()
        found = [
            repo
            for repo in await self._repos.list_all(BUCKET)
            if repo.namespace == namespace
            and search in repo.id.lower()
            and self._gatekeeper.may_read(caller, repo)
        ]
        page, headers = take_page(request, found, lambda repo: repo.id)
        return json_response(200, [await _describe(repo) for repo in page], headers)

    async def _list_files(self, request: Request, repo: Repo, prefix: str) -> Response:
        commit = await find_commit(repo, "main")
        prefix = prefix.strip("/")
        if prefix in commit.entries:
            return json_response(200, [_describe_file(commit.entries[prefix], commit)])
        items = list_folder(commit, prefix, is_true(request.query.get("recursive")))
        page, headers = take_page(
            request, items, lambda item: item if isinstance(item, str) else item.path
        )
        value = [
            {"type": "directory", "path": item, "uploadedAt": format_time(commit.date)}
            if isinstance(item, str)
            else _describe_file(item, commit)
            for item in page
        ]
        return json_response(200, value, headers)


async def _describe(repo: Repo) -> dict[str, Any]:
    entries = (await find_commit(repo, "main")).entries.values()
    return {
        "id": repo.id,
        "author": repo.namespace,
        "private": repo.private,
        "createdAt": format_time(repo.created),
        "size": sum(entry.size for entry in entries),
        "totalFiles": len(entries),
    }


def _describe_file(entry: Entry, commit: Commit) -> dict[str, Any]:
    assert entry.file_hash is not None
    file_hash = format_hash(entry.file_hash)
    times = dict.fromkeys(("mtime", "uploadedAt"), format_time(commit.date))
    return {
        "type": "file", "path": entry.path, "size": entry.size, "xetHash": file_hash, **times
    }  # fmt: skip
