"""Repository arguments of commands."""

from typing import Final

from xetserve.app.paths import check_revision, parse_hub_repo
from xetserve.errors import ConfigError, RequestError
from xetserve.upstream.hub.entry import RepoRef

_PREFIXES: Final = {"models": "model", "datasets": "dataset", "spaces": "space"}


def parse_target(text: str, kind: str | None = None) -> tuple[RepoRef, str]:
    """Parse [models/|datasets/|spaces/]{id}[@{revision}] into repository and revision.

    The default revision is "main".

    Args:
        kind: type of the repository, from another flag; None: not given.

    Raises:
        ConfigError: the name is not valid, or it contradicts kind.
    """
    repo_id, at, revision = text.partition("@")
    prefix, _, rest = repo_id.partition("/")
    if prefix in _PREFIXES and rest:
        if kind not in (None, _PREFIXES[prefix]):
            raise ConfigError(f"{text!r} is not a {kind}")
        repo_id, kind = rest, _PREFIXES[prefix]
    try:
        repo = parse_hub_repo(repo_id.split("/"), kind or "model")
        return repo, check_revision(revision if at else "main")
    except RequestError as exc:
        raise ConfigError(f"{text!r}: {exc}") from None
