"""Paths under /api/{type}s/: the repository, the verb, and the rest."""

from typing import Final, NamedTuple

# The verbs that may follow a repository's id, and how many parts each needs after it.
_VERBS: Final = {
    "revision": 1,
    "tree": 1,
    "paths-info": 1,
    "refs": 0,
    "auth-check": 0,
    "commits": 1,
    "settings": 0,
    "user-access-request": 1,
    "preupload": 1,
    "commit": 1,
    "branch": 1,
    "tag": 1,
    "xet-read-token": 1,
    "xet-write-token": 1,
}
WRITES: Final = frozenset(
    (
        "preupload",
        "commit",
        "branch",
        "tag",
        "xet-write-token",
        "settings",
        "user-access-request",
    )
)
READS: Final = frozenset(("auth-check", "xet-read-token"))  # of the content of files


class ApiPath(NamedTuple):
    """A path under /api/{type}s/: the repository, a verb or "", and the parts after it."""

    repo_id: str
    verb: str
    rest: tuple[str, ...]


def parse_api_path(parts: list[str]) -> ApiPath | None:
    """Find the repository's id, of one part or two, in a path under /api/{type}s/.

    A verb counts only if the parts that it needs follow: a repository may have the name of a verb.
    """
    for id_size in (2, 1):
        verb, rest = "".join(parts[id_size : id_size + 1]), tuple(parts[id_size + 1 :])
        if verb in _VERBS and len(rest) >= _VERBS[verb] and all(parts[:id_size]):
            return ApiPath("/".join(parts[:id_size]), verb, rest)
    return ApiPath("/".join(parts), "", ()) if len(parts) in (1, 2) else None
