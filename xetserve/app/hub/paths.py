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
from xetserve.app.route_table import MatchedPath
from xetserve.errors import RequestError
from xetserve.upstream.hub.client import RepoRef

_KINDS_BY_PLURAL: Final = {"models": "model", "datasets": "dataset", "spaces": "space"}
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
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# Questions whose answers are kept: what clients ask before they download. Never tokens, logs,
# events, settings.
_KEPT_VERBS: Final = ("", "revision", "tree", "paths-info", "refs", "commits")


class ObjectPath(NamedTuple):
    """Something of a repository that is not asked for by path: what follows /objects/, or
    /manifests/ and /blobs/.
    """

    repo: RepoRef
    name: str


def read_file_path(path: MatchedPath) -> ResolvePath:
    """Read the path of a file.

    Raises:
        RequestError: it names no file that could be.
    """
    values = path.values
    rest = [values.get("commit") or values["revision"], *values["path"].split("/")]
    # refs/pr/1 and refs/convert/parquet come with their slashes as they are, too.
    size = 3 if rest[0] == "refs" and len(rest) > 3 else 1
    revision = decode_segment("/".join(rest[:size]), may_have_slash=True)
    file_path = join_file_path([decode_segment(part) for part in rest[size:]])
    repo = _read_repo(path)
    return ResolvePath(repo, check_revision(revision), file_path)


def read_object_path(path: MatchedPath) -> ObjectPath:
    """Read the path of a call of git-lfs or ollama; its last segment is the name.

    Raises:
        RequestError: no repository can be named so.
    """
    return ObjectPath(_read_repo(path), decode_segment(path.raw.rpartition("/")[2]))


def read_hub_path(path: MatchedPath) -> str:
    """Return a path that goes to the Hub unchanged.

    Raises:
        RequestError: 400, its meaning depends on who reads it.
    """
    parts = path.raw[1:].split("/")
    if not all(parts[:-1]):
        raise RequestError(400, "the path has two slashes in a row")
    for part in parts:
        decode_segment(part, may_have_slash=True)
    return path.raw


def _read_repo(path: MatchedPath) -> RepoRef:
    """Read the repository of a path: a kind, without it a model; an owner, if there is one; a name.

    Raises:
        RequestError: 400, 404, none can be named so.
    """
    parts = [path.decode(part)[0] for part in ("owner", "name") if part in path.values]
    return parse_hub_repo(parts, _KINDS_BY_PLURAL[path.values.get("kind", "models")])


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
    return _KINDS_BY_PLURAL.get("".join(parts[1:2])), rest
