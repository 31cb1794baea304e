"""Parse paths of the Hub. Ids may lack an owner, and revisions have slashes, encoded or not."""

import re
from collections.abc import Sequence
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
from xetserve.upstream.hub.entry import BUCKET, KINDS_BY_PLURAL, RepoRef

_TOKENS: Final = ("xet-read-token", "xet-write-token")
# The verbs of API paths, and how many segments may follow each: at least and at most. The Hub has
# more verbs. Verbs that change something are listed so that a repository with such a name cannot
# make a path look like that of another verb.
_VERBS: Final = {
    **dict.fromkeys(_TOKENS, (1, _ANY := 100)),
    **dict.fromkeys(("revision", "paths-info", "commits", "preupload", "commit"), (1, 1)),
    **dict.fromkeys(("branch", "tag", "super-squash", "compare", "lfs-files"), (1, 1)),
    **dict.fromkeys(("refs", "settings", "auth-check", "duplicate"), (0, 0)),
    **dict.fromkeys(("tree", "treesize"), (1, _ANY)),
    **dict.fromkeys(("discussions", "logs", "events", "secrets", "variables"), (0, _ANY)),
}
_API_KINDS: Final = KINDS_BY_PLURAL | {"buckets": BUCKET}
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_MANIFEST: Final = re.compile(r"/v2/([^/]+)/([^/]+)/manifests/[^/]+")
_TREE_PARAMETERS: Final = {"recursive": None, "expand": None}.keys()  # in order
_BOOLEANS: Final = {"true": True, "false": False, "1": True, "0": False}
# Verbs whose answers are cached: those that clients need before a download. Tokens, logs, events
# and settings are never cached.
_KEPT_VERBS: Final = ("", "revision", "tree", "paths-info", "refs", "commits")


class ObjectPath(NamedTuple):
    """An object of a repository that has no file path: the name after /objects/, /manifests/ or
    /blobs/.
    """

    repo: RepoRef
    name: str


def read_file_path(path: MatchedPath) -> ResolvePath:
    """Parse the repository, the revision and the path of a file.

    Raises:
        RequestError: 400, 404, 414, one of them is not valid.
    """
    values = path.values
    rest = [values.get("commit") or values["revision"], *values["path"].split("/")]
    # Clients may also send refs/pr/1 and refs/convert/parquet with unencoded slashes.
    size = 3 if rest[0] == "refs" and len(rest) > 3 else 1
    revision = decode_segment("/".join(rest[:size]), may_have_slash=True)
    file_path = _read_folders(rest[size:])
    repo = _read_repo(path)
    return ResolvePath(repo, check_revision(revision), file_path)


def read_bucket_path(path: MatchedPath) -> ResolvePath:
    """Parse the bucket and the path of a file in it, whose slashes may be encoded.

    Raises:
        RequestError: 400, 404, 414, one of them is not valid.
    """
    repo = parse_hub_repo([path.decode(part)[0] for part in ("owner", "name")], BUCKET)
    return ResolvePath(repo, "", _read_folders(path.values["path"].split("/")))


def read_object_path(path: MatchedPath) -> ObjectPath:
    """Parse a path of git-lfs or ollama; the last segment is the name of the object.

    Raises:
        RequestError: 400, a segment is malformed; 404, the id of the repository is not valid.
    """
    return ObjectPath(_read_repo(path), decode_segment(path.raw.rpartition("/")[2]))


def read_git_path(path: MatchedPath) -> ObjectPath:
    """Parse a path of git's smart HTTP protocol; the name is its last segment.

    Raises:
        RequestError: 400, a segment is malformed; 404, the id of the repository is not valid.
    """
    repo, name = read_object_path(path)
    return ObjectPath(RepoRef(repo.kind, repo.id.removesuffix(".git")), name)


def read_hub_path(path: MatchedPath) -> str:
    """Check a path, and return it unchanged for the Hub.

    Raises:
        RequestError: 400, it is ambiguous: other servers may read it differently.
    """
    parts = path.raw[1:].split("/")
    if not all(parts[:-1]):
        raise RequestError(400, "the path has two slashes in a row")
    for part in parts:
        decode_segment(part, may_have_slash=True)
    return path.raw


def _read_folders(parts: Sequence[str]) -> str:
    """Return the path of a file; an encoded slash separates folders as another one does.

    Raises:
        RequestError: 400, a part is malformed; 404, 414, see join_file_path.
    """
    decoded = [decode_segment(part, may_have_slash=True) for part in parts]
    return join_file_path("/".join(decoded).split("/"))


def _read_repo(path: MatchedPath) -> RepoRef:
    """Parse the repository of a path: an optional kind (default: model), an optional owner, a name.

    Raises:
        RequestError: 400, a segment is malformed; 404, the id is not valid.
    """
    parts = [path.values[part] for part in ("owner", "name") if part in path.values]
    # A name alone may be owner%2Fname, as polars writes it.
    decoded = [decode_segment(part, may_have_slash=True) for part in parts]
    return parse_hub_repo(
        "/".join(decoded).split("/"), KINDS_BY_PLURAL[path.values.get("kind", "models")]
    )


class ApiPath(NamedTuple):
    """A parsed API path about one repository, or about all of a kind.

    repo: has an empty id if the path is about all repositories.
    verb: in lower case; "": the path describes the repository itself.
    rest: the decoded segments after the verb; a revision such as refs/pr/1 is one item.
    """

    repo: RepoRef
    verb: str
    rest: tuple[str, ...]


def list_api_readings(raw_path: str) -> list[ApiPath]:
    """Return the possible readings of a path /api/{kind}s[/{id}[/{verb}/...]], most likely first.

    An id may lack its owner, and a repository or branch may have the name of a verb, so a path may
    have several readings. For example, /api/models/acme/tree/xet-read-token/main requests a token
    for acme/tree, or the folder main in the branch xet-read-token of acme. The list is empty if the
    path is not about repositories.
    """
    kind, rest = _split_api(raw_path)
    if kind is None:
        return []
    if kind == BUCKET:  # with an owner, and its verbs need nothing behind them
        verb = rest[2].lower() if len(rest) > 2 else ""
        return [ApiPath(RepoRef(kind, "/".join(rest[:2])), verb, tuple(rest[3:]))]
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
    if len(rest) == 3 and rest[2].lower() in _TOKENS:  # without a revision
        readings.append(ApiPath(RepoRef(kind, "/".join(rest[:2])), rest[2].lower(), ()))
    return readings


def find_api_verb(raw_path: str) -> str:
    """Return the verb of an API path; "": it has no known verb."""
    kind, rest = _split_api(raw_path)
    if kind is None:  # there may be other kinds with tokens
        return next((part.lower() for part in rest if part.lower() in _TOKENS), "")
    return next((reading.verb for reading in list_api_readings(raw_path)), "")


def find_kept_question(raw_path: str) -> RepoRef | None:
    """Return the repository of a path whose answer may be cached; None: it may not.

    Besides some of the API, these are the manifests for ollama. Buckets change without a commit, so
    nothing about their names is cached.
    """
    manifest = _MANIFEST.fullmatch(raw_path)
    if manifest is not None:
        return RepoRef("model", "/".join(decode_segment(part) for part in manifest.groups()))
    readings = [] if is_about_bucket(raw_path) else list_api_readings(raw_path)
    if not readings or any(reading.verb not in _KEPT_VERBS for reading in readings):
        return None
    return readings[0].repo


def is_about_bucket(raw_path: str) -> bool:
    """Return whether a path is of a bucket, its files or its API."""
    return raw_path.startswith(("/api/buckets/", "/buckets/"))


def is_lasting_question(target: str) -> bool:
    """Return whether an answer never changes: a tree of a full commit id, without expand=true.

    Only expand=true adds members that change: the last commit, and what a scan has found.
    """
    path, _, query = target.partition("?")
    readings = [] if is_about_bucket(path) else list_api_readings(path)
    return (
        bool(readings)
        and all(each.verb == "tree" and _COMMIT.fullmatch(each.rest[0]) for each in readings)
        and all(
            name != "expand" or _BOOLEANS.get(value.lower()) is False
            for name, value in parse_qsl(query, keep_blank_values=True)
        )
    )


def normalize_tree(target: str) -> str:
    """Return the target of a list of files in one spelling, so that all clients share the answer.

    huggingface_hub sends recursive=true&expand=false, or True and False, llama.cpp recursive=true.
    A target that says something else is returned unchanged.
    """
    path, _, query = target.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    told = {name: _BOOLEANS.get(value.lower()) for name, value in pairs}
    is_plain = 0 < len(told) == len(pairs) and told.keys() <= _TREE_PARAMETERS
    if not is_plain or None in told.values() or is_about_bucket(path):
        return target
    if {reading.verb for reading in list_api_readings(path)} != {"tree"}:
        return target
    words = (f"{name}={str(told.get(name, False)).lower()}" for name in _TREE_PARAMETERS)
    return f"{path}?{'&'.join(words)}"


def _split_api(raw_path: str) -> tuple[str | None, list[str]]:
    """Return the kind of repository, None for another path, and the decoded segments after it."""
    parts = raw_path[1:].split("/")
    if parts[0] != "api":
        return None, []
    rest = [decode_segment(part, may_have_slash=True) for part in parts[2:]]
    while rest and not rest[-1]:
        rest.pop()
    return _API_KINDS.get("".join(parts[1:2])), rest
