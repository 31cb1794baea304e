"""Paths of the Hub. Its ids may lack an owner, and its revisions have slashes, encoded or not."""

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from xetserve.app.paths import (
    ResolvePath,
    check_revision,
    decode_segment,
    join_file_path,
    parse_hub_repo,
)
from xetserve.errors import RequestError
from xetserve.upstream.hub.client import RepoRef

_PREFIXES: Final = {"datasets": "dataset", "spaces": "space"}
KINDS_BY_PLURAL: Final = {"models": "model", **_PREFIXES}
_TOKENS: Final = ("xet-read-token", "xet-write-token")
# What is asked about a repository: the verb, and how many segments may follow it. The Hub has more.
# Those that change something are here so that no name of a repository makes them pass for another.
_VERBS: Final = {
    **dict.fromkeys(_TOKENS, (1, _ANY := 100)),
    **dict.fromkeys(("revision", "paths-info", "commits", "preupload", "commit"), (1, 1)),
    **dict.fromkeys(("branch", "tag", "super-squash", "compare", "lfs-files"), (1, 1)),
    **dict.fromkeys(("refs", "settings", "auth-check", "duplicate"), (0, 0)),
    **dict.fromkeys(("tree", "treesize"), (1, _ANY)),
    **dict.fromkeys(("discussions", "logs", "events", "secrets", "variables"), (0, _ANY)),
}
_FILE_VERBS: Final = ("resolve", "raw")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# Questions whose answers are kept: what clients ask before they download. Never tokens, logs,
# events, settings.
_KEPT_VERBS: Final = ("", "revision", "tree", "paths-info", "refs", "commits")


def is_resolve_path(raw_path: str) -> bool:
    """Return whether a path is one for parse_resolve_path."""
    return _split_resolve(raw_path) is not None


def is_raw_path(raw_path: str) -> bool:
    """Return whether a path is for what git has of a file:
    /[datasets/|spaces/]{id}/raw/{revision}/{path}.
    """
    split = _split_file(raw_path[1:].split("/"))
    return split is not None and split[0] == "raw"


def parse_resolve_path(raw_path: str) -> ResolvePath | None:
    """Read the path of a file; None: it is of another kind.

        /[datasets/|spaces/]{id}/resolve/{revision}/{path}
        /api/resolve-cache/{models|datasets|spaces}/{id}/{revision}/{path}

    Raises:
        RequestError: it names no file that could be.
    """
    split = _split_resolve(raw_path)
    if split is None:
        return None
    kind, repo_id, rest = split
    # refs/pr/1 and refs/convert/parquet come with their slashes as they are, too.
    size = 3 if rest[0] == "refs" and len(rest) > 3 else 1
    revision = decode_segment("/".join(rest[:size]), may_have_slash=True)
    path = join_file_path([decode_segment(part) for part in rest[size:]])
    repo = parse_hub_repo([decode_segment(part) for part in repo_id], kind)
    return ResolvePath(repo, check_revision(revision), path)


class ObjectPath(NamedTuple):
    """Something of a repository that is not asked for by path: what follows /objects/, or
    /manifests/ and /blobs/.
    """

    repo: RepoRef
    name: str


def parse_lfs_path(raw_path: str) -> ObjectPath | None:
    """Read the path of an LFS call (git-lfs, docs/api); None: it is of another kind.

        /[datasets/|spaces/]{id}.git/info/lfs/objects/{name}

    Raises:
        RequestError: no repository can be named so.
    """
    parts = raw_path[1:].split("/")
    if parts[-4:-1] != ["info", "lfs", "objects"]:
        return None
    kind = _PREFIXES.get(parts[0], "model")
    repo_id = parts[:-4] if kind == "model" else parts[1:-4]
    if not repo_id or not repo_id[-1].endswith(".git"):
        return None
    decoded = [decode_segment(part) for part in repo_id]
    decoded[-1] = decoded[-1].removesuffix(".git")
    return ObjectPath(parse_hub_repo(decoded, kind), decode_segment(parts[-1]))


def parse_registry_path(raw_path: str) -> tuple[str, ObjectPath] | None:
    """Read a path of the OCI distribution API, as ollama asks for models; None: it is of another
    kind.

        /v2/{owner}/{name}/{manifests|blobs}/{tag or digest}

    Returns:
        "manifests" or "blobs", and what of which model.

    Raises:
        RequestError: no repository can be named so.
    """
    parts = raw_path[1:].split("/")
    if len(parts) != 5 or parts[0] != "v2" or parts[3] not in ("manifests", "blobs"):
        return None
    repo = parse_hub_repo([decode_segment(part) for part in parts[1:3]], "model")
    return parts[3], ObjectPath(repo, decode_segment(parts[4]))


def check_api_path(raw_path: str) -> None:
    """Check a path that goes to the Hub unchanged.

    Raises:
        RequestError: 400, its meaning depends on who reads it.
    """
    parts = raw_path[1:].split("/")
    if not all(parts[:-1]):
        raise RequestError(400, "the path has two slashes in a row")
    for part in parts:
        decode_segment(part, may_have_slash=True)


class ApiPath(NamedTuple):
    """A question about a repository, or about all of a kind.

    repo: with an empty id for listings.
    verb: in lower case; "": what the repository is.
    rest: the segments behind it, decoded; a revision refs/pr/1 is one of them.
    """

    repo: RepoRef
    verb: str
    rest: tuple[str, ...]


def list_api_readings(raw_path: str) -> list[ApiPath]:
    """Return what a path /api/{kind}s[/{id}[/{verb}/...]] may mean, most likely first.

    An id may lack its owner, and verbs are good names for repositories and branches, so there may
    be several: /api/models/acme/tree/xet-read-token/main asks for a token of acme/tree, or for a
    folder of acme. None: it is about no repository.
    """
    kind, rest = _split_api(raw_path)
    if kind is None:
        return []
    readings = []
    for size in (2, 1):
        if len(rest) > size:
            verb, behind = rest[size].lower(), rest[size + 1 :]
            if behind[:1] == ["refs"] and len(behind) > 2:
                behind = ["/".join(behind[:3]), *behind[3:]]
            least, most = _VERBS.get(verb, (1, 0))
            if least <= len(behind) <= most:
                repo = RepoRef(kind, "/".join(rest[:size]))
                readings.append(ApiPath(repo, verb, tuple(behind)))
    if len(rest) <= 2:
        readings.append(ApiPath(RepoRef(kind, "/".join(rest)), "", ()))
    return readings


def find_api_verb(raw_path: str) -> str:
    """Return the verb of a question about a repository; "" if there is none that is known here."""
    kind, rest = _split_api(raw_path)
    if kind is None:  # buckets and kernels have tokens, too
        return next((part.lower() for part in rest if part.lower() in _TOKENS), "")
    return next((reading.verb for reading in list_api_readings(raw_path)), "")


def is_token_verb(verb: str) -> bool:
    """Return whether the answer to a question is a token for the CAS."""
    return verb in _TOKENS


def find_kept_question(raw_path: str) -> RepoRef | None:
    """Return the repository that a question is about; None: its answer is not to be kept."""
    readings = list_api_readings(raw_path)
    if not readings or any(reading.verb not in _KEPT_VERBS for reading in readings):
        return None
    return readings[0].repo


def is_lasting_question(target: str) -> bool:
    """Return whether a question is about the tree of a full commit id: its answer never changes."""
    path, _, query = target.partition("?")
    readings = list_api_readings(path)
    return (
        bool(readings)
        and all(each.verb == "tree" and _COMMIT.fullmatch(each.rest[0]) for each in readings)
        and all(name != "expand" for name, _ in parse_qsl(query, keep_blank_values=True))
    )


def _split_api(raw_path: str) -> tuple[str | None, list[str]]:
    """Return the kind, None if it is none of repositories, and what follows, decoded."""
    parts = raw_path[1:].split("/")
    if parts[0] != "api":
        return None, []
    rest = [decode_segment(part, may_have_slash=True) for part in parts[2:]]
    while rest and not rest[-1]:
        rest.pop()
    return KINDS_BY_PLURAL.get("".join(parts[1:2])), rest


def _split_resolve(raw_path: str) -> tuple[str, list[str], list[str]] | None:
    """Return kind, id parts, and what follows: revision and path; None: no such path."""
    parts = raw_path[1:].split("/")
    if parts[:2] == ["api", "resolve-cache"]:
        kind, parts = KINDS_BY_PLURAL.get("".join(parts[2:3]), ""), parts[3:]
        # An id of one part shows by the commit behind it.
        size = 1 if _COMMIT.fullmatch("".join(parts[1:2])) else 2
        return (kind, parts[:size], parts[size:]) if kind and len(parts) > size + 1 else None
    split = _split_file(parts)
    return split[1:] if split is not None and split[0] == "resolve" else None


def _split_file(parts: list[str]) -> tuple[str, str, list[str], list[str]] | None:
    """Return verb, kind, id, and what follows."""
    if parts[0] in (
        "download",
        "api",
    ):  # a route of ours; one of the Hub, whatever an owner is called
        return None
    kind = _PREFIXES.get(parts[0], "model")
    parts = parts if kind == "model" else parts[1:]
    for size in (2, 1):
        if len(parts) > size + 2 and parts[size] in _FILE_VERBS:
            return parts[size], kind, parts[:size], parts[size + 1 :]
    return None
