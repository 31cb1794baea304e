"""Repository arguments of commands."""

from xetserve.app.paths import check_revision, parse_hub_repo
from xetserve.errors import ConfigError, RequestError
from xetserve.upstream.hub.entry import KINDS_BY_PLURAL, RepoRef


def parse_target(text: str, kind: str | None = None) -> tuple[RepoRef, str]:
    """Parse [models/|datasets/|spaces/|kernels/]{id}[@{revision}] into repository and revision.

    The default revision is "main".

    Args:
        kind: type of the repository, from another flag; None: not given.

    Raises:
        ConfigError: the name is not valid, or it contradicts kind.
    """
    repo_id, at, revision = text.partition("@")
    prefix, _, rest = repo_id.partition("/")
    if prefix in KINDS_BY_PLURAL and rest:
        if kind not in (None, KINDS_BY_PLURAL[prefix]):
            raise ConfigError(f"{text!r} is not a {kind}")
        repo_id, kind = rest, KINDS_BY_PLURAL[prefix]
    try:
        repo = parse_hub_repo(repo_id.split("/"), kind or "model")
        return repo, check_revision(revision if at else "main")
    except RequestError as exc:
        raise ConfigError(f"{text!r}: {exc}") from None
