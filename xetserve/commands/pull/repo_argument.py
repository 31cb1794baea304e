"""Repositories as they are named on command lines."""

from typing import Final

from xetserve.app.paths import check_revision, parse_hub_repo
from xetserve.errors import ConfigError, RequestError
from xetserve.upstream.hub.entry import RepoRef

_PREFIXES: Final = {"models": "model", "datasets": "dataset", "spaces": "space"}


def parse_target(text: str, kind: str | None = None) -> tuple[RepoRef, str]:
    """Read [models/|datasets/|spaces/]{id}[@{revision}]; gives repository and revision, "main"
    without one.

    Args:
        kind: type of the repository, as another flag names it.

    Raises:
        ConfigError: no repository has such a name, or its type is named in two ways.
    """
    repo_id, at, revision = text.partition("@")
    prefix, _, rest = repo_id.partition("/")
    if prefix in _PREFIXES and rest:
        if kind not in (None, _PREFIXES[prefix]):
            raise ConfigError(f"{text!r} is no {kind}")
        repo_id, kind = rest, _PREFIXES[prefix]
    try:
        repo = parse_hub_repo(repo_id.split("/"), kind or "model")
        return repo, check_revision(revision if at else "main")
    except RequestError as exc:
        raise ConfigError(f"{text!r}: {exc}") from None
