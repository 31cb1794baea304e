"""Identify callers and check their rights; make errors in the Hub's form.

Without configured tokens the origin is open: anyone may read and write everything. Otherwise a
repository belongs to the user who made it and to the user whose name is its namespace. A repository
that was imported into another namespace belongs to every user. Anyone may read public repositories.
Anyone may list the files of a gated one, but only its owners and users who were granted access may
read them.

Clients read X-Error-Code and X-Error-Message, not only the status: a private repository looks like
a missing one to a caller that may not read it.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from xetserve.errors import RequestError
from xetserve.http.messages import Headers
from xetserve.origin.store.commits import RepoType
from xetserve.origin.store.repos import Repo, RepoStore

ANYBODY: Final = "user"  # the name of every caller of an open origin

# Clients recognize a wrong token by exactly this sentence.
INVALID_CREDENTIALS: Final = "Invalid credentials in Authorization header"


class Caller(NamedTuple):
    """The caller. user None: unknown. has_token: whether it sent a token, valid or not."""

    user: str | None
    has_token: bool


def hub_error(
    status: int, message: str, code: str | None = None, commit: str | None = None
) -> RequestError:
    """Return an error in the Hub's form.

    Args:
        code: X-Error-Code, for example "RepoNotFound".
        commit: the commit that lacks an entry; clients cache the absence under it.
    """
    text = "".join(c if " " <= c <= "~" else "?" for c in message)  # valid in a header field
    headers = [("X-Error-Message", text)]
    if code is not None:
        headers.append(("X-Error-Code", code))
    if commit is not None:
        headers.append(("X-Repo-Commit", commit))
    return RequestError(status, message, headers)


def get_bearer(headers: Headers) -> str | None:
    """Return the token of an Authorization header; "" for another scheme."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class Gatekeeper:
    """Identify users by their tokens, and check their rights."""

    def __init__(self, tokens: Mapping[str, str], repos: RepoStore) -> None:
        self._repos = repos
        self.set_tokens(tokens)

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """Replace the tokens, token -> user name."""
        self._users = dict(tokens)
        self._names = set(tokens.values())

    @property
    def is_open(self) -> bool:
        """Whether anyone may do everything."""
        return not self._users

    def identify(self, headers: Headers) -> Caller:
        """Return the caller of a request."""
        token = get_bearer(headers)
        if self.is_open:
            return Caller(ANYBODY, token is not None)
        return Caller(self._users.get(token or ""), token is not None)

    def require_user(self, headers: Headers) -> str:
        """Return the name of the calling user.

        Raises:
            RequestError: 401: the caller is unknown.
        """
        caller = self.identify(headers)
        if caller.user is None:
            raise _unauthorized(caller)
        return caller.user

    async def open_repo(
        self,
        headers: Headers,
        repo_type: RepoType,
        repo_id: str,
        *,
        write: bool = False,
        content: bool = False,
    ) -> Repo:
        """Return a repository that the caller may read, or write.

        Args:
            content: the caller wants the content of files.

        Raises:
            RequestError: 401 or 404 RepoNotFound; 401 for a wrong token; 403 for a user that may
                only read; 401 or 403 GatedRepo.
        """
        caller = self.identify(headers)
        repo = await self._repos.get(repo_type, repo_id)
        if repo is None or not self.may_read(caller, repo):
            raise self._not_found(caller)
        if caller.user is None and (caller.has_token or write):
            raise _unauthorized(caller)
        if write and not self._owns(caller, repo):
            raise hub_error(403, f"{caller.user} may not write to {repo.id}")
        if content and repo.gated and not self._owns(caller, repo):
            _check_access(caller, repo)
        return repo

    def knows(self, user: str) -> bool:
        """Return whether a user has a token."""
        return self.is_open or user in self._names

    def check_namespace(self, user: str, namespace: str) -> None:
        """Check that a namespace is not another user's name.

        Raises:
            RequestError: 403: it is.
        """
        if namespace != user and namespace in self._names:
            raise hub_error(403, f"{user} may not create a repository under {namespace}")

    def may_read(self, caller: Caller, repo: Repo) -> bool:
        """Return whether a caller may read a repository."""
        return not repo.private or self._owns(caller, repo)

    def _owns(self, caller: Caller, repo: Repo) -> bool:
        if self.is_open:
            return True
        if caller.user is None:
            return False
        if caller.user in (repo.owner, repo.namespace):
            return True
        return repo.owner is None and repo.namespace not in self._names

    def _not_found(self, caller: Caller) -> RequestError:
        if caller.user is not None:
            return hub_error(404, "Repository not found", "RepoNotFound")
        message = INVALID_CREDENTIALS if caller.has_token else "Invalid username or password."
        return hub_error(401, message, "RepoNotFound")


def _check_access(caller: Caller, repo: Repo) -> None:
    restricted = f"Access to {repo.type.name} {repo.id} is restricted"
    if caller.user is None:
        raise hub_error(401, f"{restricted}. Please log in.", "GatedRepo")
    if caller.user not in repo.granted:
        message = f"{restricted} and you are not in the authorized list. Ask its owner for access."
        raise hub_error(403, message, "GatedRepo")


def _unauthorized(caller: Caller) -> RequestError:
    message = INVALID_CREDENTIALS if caller.has_token else "Invalid username or password."
    return hub_error(401, message)
