"""Who asks, and what they may do; and the Hub's way of saying no.

With no tokens configured the origin is open: everybody may read and write everything. Otherwise a
repository belongs to the user who made it and to the user whose name is its namespace; one that was
imported into a namespace that is no user's belongs to every user. Public repositories can be read
by everybody.

Clients read X-Error-Code and X-Error-Message, not the status alone: a private repository looks like
a missing one to whoever may not read it.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from xetserve.errors import RequestError
from xetserve.http.messages import Headers
from xetserve.origin.store.commits import RepoType
from xetserve.origin.store.repos import Repo, RepoStore

ANYBODY: Final = "user"  # the name of whoever asks an open origin

# Clients tell a wrong token from a missing repository by this very sentence.
INVALID_CREDENTIALS: Final = "Invalid credentials in Authorization header"


class Caller(NamedTuple):
    """Who asks. user None: nobody that is known; has_token: but somebody who showed a token."""

    user: str | None
    has_token: bool


def hub_error(
    status: int, message: str, code: str | None = None, commit: str | None = None
) -> RequestError:
    """Make an error as the Hub words it.

    Args:
        code: X-Error-Code, for example "RepoNotFound".
        commit: the commit in which an entry was not found; clients remember the absence under it.
    """
    text = "".join(c if " " <= c <= "~" else "?" for c in message)  # fit for a header field
    headers = [("X-Error-Message", text)]
    if code is not None:
        headers.append(("X-Error-Code", code))
    if commit is not None:
        headers.append(("X-Repo-Commit", commit))
    return RequestError(status, message, headers)


def get_bearer(headers: Headers) -> str | None:
    """Return the token of an Authorization header; "" for one of another scheme."""
    value = headers.get("authorization")
    if value is None:
        return None
    scheme, _, token = value.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class Gatekeeper:
    """Knows the users and their tokens."""

    def __init__(self, tokens: Mapping[str, str], repos: RepoStore) -> None:
        self._users = dict(tokens)
        self._names = set(tokens.values())
        self._repos = repos

    @property
    def is_open(self) -> bool:
        """Whether everybody may do everything."""
        return not self._users

    def identify(self, headers: Headers) -> Caller:
        """Tell who asks."""
        token = get_bearer(headers)
        if self.is_open:
            return Caller(ANYBODY, token is not None)
        return Caller(self._users.get(token or ""), token is not None)

    def require_user(self, headers: Headers) -> str:
        """Return the name of the user who asks.

        Raises:
            RequestError: 401, nobody that is known.
        """
        caller = self.identify(headers)
        if caller.user is None:
            raise _unauthorized(caller)
        return caller.user

    async def open_repo(
        self, headers: Headers, repo_type: RepoType, repo_id: str, *, write: bool = False
    ) -> Repo:
        """Return a repository that the caller may read, or write.

        Raises:
            RequestError: 401 or 404 RepoNotFound, 401 for a wrong token, 403 for one that may only
                read.
        """
        caller = self.identify(headers)
        repo = await self._repos.get(repo_type, repo_id)
        if repo is None or not self.may_read(caller, repo):
            raise self._not_found(caller)
        if caller.user is None and (caller.has_token or write):
            raise _unauthorized(caller)
        if write and not self._owns(caller, repo):
            raise hub_error(403, f"{caller.user} may not write to {repo.id}")
        return repo

    def check_namespace(self, user: str, namespace: str) -> None:
        """Refuse a namespace that is another user's name.

        Raises:
            RequestError: 403.
        """
        if namespace != user and namespace in self._names:
            raise hub_error(403, f"{user} may not create a repository under {namespace}")

    def may_read(self, caller: Caller, repo: Repo) -> bool:
        """Return whether a repository is there for a caller."""
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


def _unauthorized(caller: Caller) -> RequestError:
    message = INVALID_CREDENTIALS if caller.has_token else "Invalid username or password."
    return hub_error(401, message)
