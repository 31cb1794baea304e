"""The part of the Hub's API about whole repositories: the user, listing, creating, deleting.

Source: huggingface_hub hf_api.py.
"""

import time
from typing import Any, Final

from xetserve.http.messages import Request, Response, json_response
from xetserve.origin.api.auth import Gatekeeper, hub_error
from xetserve.origin.api.hub import describe_repo, find_commit, format_time, read_json, take_page
from xetserve.origin.store.commits import BUCKET, REPO_TYPES, RepoType
from xetserve.origin.store.names import is_valid_id
from xetserve.origin.store.repos import Repo, RepoStore

_VISIBILITIES: Final = {"public": False, "private": True}


class ManagementApi:
    """The calls that are about no revision of a repository."""

    def __init__(self, gatekeeper: Gatekeeper, repos: RepoStore) -> None:
        self._gatekeeper = gatekeeper
        self._repos = repos

    def whoami(self, request: Request) -> Response:
        """Answer GET /api/whoami-v2."""
        if "authorization" not in request.headers:
            raise hub_error(401, "Invalid username or password.")
        user = self._gatekeeper.require_user(request.headers)
        token = {"displayName": "origin", "role": "write", "createdAt": format_time(0)}
        value = {
            "type": "user",
            "id": user,
            "name": user,
            "fullname": user,
            "isPro": False,
            "canPay": False,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
        return json_response(200, value)

    async def list_repos(self, request: Request, repo_type: RepoType) -> Response:
        """Answer GET /api/{type}s?search=&author=&limit= with a page of the caller's repositories,
        by id.
        """
        caller = self._gatekeeper.identify(request.headers)
        search, author = request.query.get("search", "").lower(), request.query.get("author")
        found = [
            repo
            for repo in await self._repos.list_all(repo_type)
            if search in repo.id.lower()
            and author in (None, repo.namespace)
            and self._gatekeeper.may_read(caller, repo)
        ]
        page, headers = take_page(request, found, lambda repo: repo.id)
        value = [describe_repo(repo, await find_commit(repo, "main")) for repo in page]
        return json_response(200, value, headers)

    async def create(self, request: Request) -> Response:
        """Answer POST /api/repos/create."""
        user = self._gatekeeper.require_user(request.headers)
        value = await read_json(request)
        repo_type, name = self._read_repo(value, user)
        if not is_valid_id(name):
            raise hub_error(400, f"{name} is not a valid repository id")
        if repo_type.name == "space" and not isinstance(value.get("sdk"), str):
            raise hub_error(400, "a space needs an sdk")
        self._gatekeeper.check_namespace(user, name.rpartition("/")[0])
        answer = {"url": request.base_url + repo_type.url_prefix + name, "name": name}
        try:
            owner = None if self._gatekeeper.is_open else user
            private = _read_private(value)
            repo = await self._repos.create(repo_type, name, owner=owner, private=private is True)
        except FileExistsError:
            error = f"You already created this {repo_type.name} repo"
            return json_response(409, {**answer, "error": error}, [("X-Error-Message", error)])
        return json_response(200, {**answer, "id": repo.id})

    async def delete(self, request: Request) -> Response:
        """Answer DELETE /api/repos/delete."""
        user = self._gatekeeper.require_user(request.headers)
        repo_type, name = self._read_repo(await read_json(request), user)
        repo = await self._gatekeeper.open_repo(request.headers, repo_type, name, write=True)
        async with repo.lock:
            await self._repos.delete(repo)
        return Response(200, [("Content-Type", "text/plain; charset=utf-8")], b"OK")

    async def change_settings(self, request: Request, repo: Repo) -> Response:
        """Answer PUT .../{id}/settings."""
        value = await read_json(request)
        changes: dict[str, Any] = {}
        private = _read_private(value)
        if private is not None:
            changes["private"] = private
        if "gated" in value:
            if value["gated"] not in ("auto", "manual", False):
                raise hub_error(400, "gated is auto, manual or false")
            changes["gated"] = value["gated"] or None
        if not changes:
            raise hub_error(400, "nothing to change")
        async with repo.lock:
            await repo.change_info(**changes)
        return json_response(200, {"private": repo.private, "gated": repo.gated or False})

    def list_access(self, repo: Repo, status: str) -> Response:
        """Answer GET .../{id}/user-access-request/{status}; nobody can ask, so none are pending."""
        granted = repo.granted.items() if status == "accepted" else ()
        value = [
            {
                "requestId": user,
                "user": {"user": user, "fullname": user},
                "status": status,
                "timestamp": format_time(since),
            }
            for user, since in granted
        ]
        return json_response(200, value)

    async def change_access(self, request: Request, repo: Repo, action: str) -> Response:
        """Answer POST .../{id}/user-access-request/{grant|handle}."""
        value = await read_json(request)
        user = value.get("user") or value.get("requestId")
        status = "accepted" if action == "grant" else value.get("status")
        if not repo.gated:
            raise hub_error(400, f"{repo.id} is not gated")
        if not isinstance(user, str) or status not in ("accepted", "rejected", "pending"):
            raise hub_error(400, "a user, and accepted, rejected or pending, are needed")
        if status == "accepted" and not self._gatekeeper.knows(user):
            raise hub_error(404, f"no token has the user {user}")
        async with repo.lock:
            granted = {name: since for name, since in repo.granted.items() if name != user}
            if status == "accepted":
                granted[user] = int(time.time())
            await repo.change_info(granted=granted)
        return json_response(200, {})

    def _read_repo(self, value: dict[str, Any], user: str) -> tuple[RepoType, str]:
        """Return the type and the id of the repository that a request names."""
        repo_type = REPO_TYPES.get(str(value.get("type") or "model"))
        name, organization = value.get("name"), value.get("organization")
        if repo_type is None or repo_type is BUCKET or not isinstance(name, str):
            raise hub_error(
                400, "a repository has a name and a type: model, dataset, space or kernel"
            )
        if "/" not in name:
            # A user's repositories are the user's by name; an open origin has no users to name.
            namespace = organization or ("" if self._gatekeeper.is_open else user)
            name = f"{namespace}/{name}" if namespace else name
        return repo_type, name


def _read_private(value: dict[str, Any]) -> bool | None:
    """Return whether a repository is to be private, as old or new clients name it; None: unset."""
    visibility, private = value.get("visibility"), value.get("private")
    if visibility is not None:
        if not isinstance(visibility, str) or visibility not in _VISIBILITIES:
            raise hub_error(400, "visibility is public or private")
        return _VISIBILITIES[visibility]
    if private is not None and not isinstance(private, bool):
        raise hub_error(400, "private is true or false")
    return private
