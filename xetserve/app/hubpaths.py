"""Paths of the Hub. Its ids may lack an owner, and its revisions have slashes, encoded or not."""

import re
from typing import Final, NamedTuple

from xetserve.app.router import (
    check_revision,
    decode_segment,
    join_file_path,
    parse_hub_repo,
)
from xetserve.upstream.hub import RepoRef

_PREFIXES: Final = {"datasets": "dataset", "spaces": "space"}
KINDS_BY_PLURAL: Final = {"models": "model", **_PREFIXES}
# What is more than a question that is passed on as it is.
VERBS: Final = ("paths-info", "xet-read-token", "xet-write-token")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_COMMIT_TREE: Final = re.compile(r"/tree/[0-9a-f]{40}(/|\Z)")
# Questions whose answers are kept: what clients ask before they download. Never tokens, logs, events, settings.
_KEPT_VERBS: Final = ("revision", "tree", "paths-info", "refs", "commits")


class ResolvePath(NamedTuple):
    """A file of a repository; revision and path decoded."""

    repo: RepoRef
    revision: str
    path: str


def is_resolve_path(raw_path: str) -> bool:
    """Tell whether a path is one for parse_resolve_path."""
    return _split_resolve(raw_path) is not None


def is_raw_path(raw_path: str) -> bool:
    """Tell whether a path is for what git has of a file: /[datasets/|spaces/]{id}/raw/{revision}/{path}."""
    return _split_file(raw_path[1:].split("/"), "raw") is not None


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
    """Something of a repository that is not asked for by path: what follows /objects/, or /manifests/ and /blobs/."""

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
    """Read a path of the OCI distribution API, as ollama asks for models; None: it is of another kind.

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
    """Look at a path that goes to the Hub as it is.

    Raises:
        RequestError: 400, its meaning depends on who reads it.
    """
    for part in raw_path[1:].split("/"):
        decode_segment(part, may_have_slash=True)


def is_tree_path(raw_path: str) -> bool:
    """Tell whether a path, without one of VERBS, is for a list of files: /api/{kind}s/{id}/tree/{revision}..."""
    parts = raw_path[1:].split("/")
    return parts[0] == "api" and "tree" in parts[3:5] and len(parts) > 4


def find_api_verb(raw_path: str) -> str:
    """Give what is asked about a repository in a path /api/{kind}s/{id}/{verb}/...; "": none of VERBS."""
    parts = raw_path[1:].split("/")
    if parts[0] != "api" or "".join(parts[1:2]) not in KINDS_BY_PLURAL:
        return ""
    return next((part for part in parts[3:5] if part in VERBS), "")


def find_kept_question(raw_path: str) -> RepoRef | None:
    """Tell whether the answer to a path /api/{kind}s[/{id}[/{verb}/...]] may be kept, and what it is about.

    Gives the repository, with an empty id for listings; None: it is not kept.
    """
    parts = raw_path[1:].split("/")
    kind = KINDS_BY_PLURAL.get("".join(parts[1:2]))
    if parts[0] != "api" or kind is None:
        return None
    rest = [decode_segment(part, may_have_slash=True) for part in parts[2:]]
    for size in (2, 1):
        if len(rest) > size and rest[size] in _KEPT_VERBS:
            return RepoRef(kind, "/".join(rest[:size]))
    return RepoRef(kind, "/".join(rest)) if len(rest) <= 2 else None


def is_lasting_question(target: str) -> bool:
    """Tell whether a question is about the tree of a commit, named by its full id: its answer never changes."""
    path, _, query = target.partition("?")
    return _COMMIT_TREE.search(path) is not None and "expand" not in query


def _split_resolve(raw_path: str) -> tuple[str, list[str], list[str]] | None:
    """Give kind, id, and what follows: revision and path."""
    parts = raw_path[1:].split("/")
    if parts[:2] == ["api", "resolve-cache"]:
        kind, parts = KINDS_BY_PLURAL.get("".join(parts[2:3]), ""), parts[3:]
        # An id of one part shows by the commit behind it.
        size = 1 if _COMMIT.fullmatch("".join(parts[1:2])) else 2
        return (kind, parts[:size], parts[size:]) if kind and len(parts) > size + 1 else None
    return _split_file(parts, "resolve")


def _split_file(parts: list[str], verb: str) -> tuple[str, list[str], list[str]] | None:
    if parts[0] == "download":  # a route of ours
        return None
    kind = _PREFIXES.get(parts[0], "model")
    parts = parts if kind == "model" else parts[1:]
    for size in (2, 1):
        if parts[size : size + 1] == [verb] and len(parts) > size + 2:
            return kind, parts[:size], parts[size + 1 :]
    return None
