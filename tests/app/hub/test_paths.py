"""Paths of the Hub."""

import pytest

from tests.routes import TABLE
from xetserve.app.hub.paths import (
    find_api_verb,
    find_kept_question,
    is_lasting_question,
    normalize_tree,
)
from xetserve.errors import RequestError
from xetserve.upstream.hub.client import RepoRef

COMMIT = "c" * 40
NOTHING = "nothing"
KINDS = {f"/api/{kind}s": kind for kind in ("model", "dataset", "space", "kernel")}


def name_route(path: str) -> str:
    """The name of the route that a path has."""
    try:
        return TABLE.match(path)[0].name
    except RequestError:
        return NOTHING


def read_path(path: str) -> object:
    """What the route of a path makes of it."""
    route, matched = TABLE.match(path)
    return route.read(matched)


@pytest.mark.parametrize(
    ("path", "kind", "repo", "revision", "file"),
    [
        ("/gpt2/resolve/main/config.json", "model", "gpt2", "main", "config.json"),
        ("/o/n/resolve/main/a/b%20c.bin", "model", "o/n", "main", "a/b c.bin"),
        ("/o/n/resolve/v1.0/%C3%BC+%2B%25.bin", "model", "o/n", "v1.0", "ü++%.bin"),
        ("/datasets/squad/resolve/main/a", "dataset", "squad", "main", "a"),
        ("/datasets/o/n/resolve/main/a", "dataset", "o/n", "main", "a"),
        ("/spaces/o/n/resolve/main/app.py", "space", "o/n", "main", "app.py"),
        ("/o/n/resolve/refs%2Fpr%2F1/a", "model", "o/n", "refs/pr/1", "a"),
        ("/o/n/resolve/refs/pr/1/d/a", "model", "o/n", "refs/pr/1", "d/a"),
        ("/o/n/resolve/refs/convert/parquet/a", "model", "o/n", "refs/convert/parquet", "a"),
        ("/o/n/resolve/refs/a", "model", "o/n", "refs", "a"),
        ("/o/n/resolve/feature%2Fone/a", "model", "o/n", "feature/one", "a"),
        (f"/o/n/resolve/{COMMIT}/resolve/main/a", "model", "o/n", COMMIT, "resolve/main/a"),
        ("/resolve/resolve/main/a", "model", "resolve", "main", "a"),
        (f"/api/resolve-cache/models/gpt2/{COMMIT}/a/b", "model", "gpt2", COMMIT, "a/b"),
        (f"/api/resolve-cache/models/o/n/{COMMIT}/a", "model", "o/n", COMMIT, "a"),
        (f"/api/resolve-cache/datasets/o/n/{COMMIT}/a", "dataset", "o/n", COMMIT, "a"),
        ("/api/resolve-cache/spaces/o/n/main/a", "space", "o/n", "main", "a"),
        (f"/api/resolve-cache/kernels/o/n/{COMMIT}/a", "kernel", "o/n", COMMIT, "a"),
        ("/kernels/o/n/resolve/v1/build/a.py", "kernel", "o/n", "v1", "build/a.py"),
        ("/datasets/o/n/resolve/~parquet/d/0.parquet", "dataset", "o/n", "~parquet", "d/0.parquet"),
        ("/datasets/n/resolve/%7Educkdb/a", "dataset", "n", "~duckdb", "a"),
        ("/o/n/resolve/main/a%2Fb", "model", "o/n", "main", "a/b"),
        ("/o/n/resolve/refs%2Fpr%2F1/d%2fa%20b/c", "model", "o/n", "refs/pr/1", "d/a b/c"),
        ("/o/n/resolve/refs/pr/1/d%2Fa", "model", "o/n", "refs/pr/1", "d/a"),
        (f"/api/resolve-cache/models/o/n/{COMMIT}/a%2Fb", "model", "o/n", COMMIT, "a/b"),
        (f"/api/resolve-cache/models/o%2Fn/{COMMIT}/a", "model", "o/n", COMMIT, "a"),
        ("/datasets/o%2Fn/resolve/main/x.parquet", "dataset", "o/n", "main", "x.parquet"),
        ("/o%2Fn/resolve/main/x", "model", "o/n", "main", "x"),
        ("/o%2fn/resolve/resolve/main/x", "model", "o/n", "resolve", "main/x"),
    ],
)
def test_a_file_is_found(path: str, kind: str, repo: str, revision: str, file: str) -> None:
    assert name_route(path) == "resolve"
    assert read_path(path) == ((kind, repo), revision, file)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/health", "/o/n", "/o/n/resolve", "/o/n/resolve/main", "/o/n/blob/main/a",
        "/download/o/resolve/main/a", "/a/b/c/resolve/main/a", "/api/models/o/n",
        "/api/resolve-cache/models/o/n/main", "/api/resolve-cache/others/o/n/main/a",
        "/api/resolve-cache", "//", "/resolve/main/a",
    ],
)  # fmt: skip
def test_other_paths(path: str) -> None:
    assert name_route(path) != "resolve"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/o/n/resolve/main/a%2F..%2Fb", 400),
        ("/o/n/resolve/main/%2E%2E%2Fb", 400),
        ("/o/n/resolve/main/a%2F", 404),
        ("/o/n/resolve/main/%2Fa", 404),
        ("/a%2Fo%2Fn/resolve/main/a", 404),
        ("/o%2F..%2Fn/resolve/main/a", 400),
        ("/o/a%2Fn/resolve/main/a", 404),
        ("/o/n/resolve/main/../a", 400),
        ("/o/n/resolve/..%2F..%2Fapi/a", 400),
        ("/o/n/resolve/a%2F..%2Fb/a", 400),
        ("/o/n/resolve/%2Fmain/a", 400),
        ("/o/n/resolve/main/a%0D%0A", 400),
        ("/o/n/resolve/main%0D/a", 400),
        ("/o/n/resolve/main/%", 400),
        ("/o/n/resolve/main/a//b", 404),
        ("/o/n/resolve/main/", 404),
        ("/o%20o/n/resolve/main/a", 404),
        ("/o/.n/resolve/main/a", 404),
    ],
)
def test_what_could_be_no_file(path: str, status: int) -> None:
    assert name_route(path) == "resolve"
    with pytest.raises(RequestError) as caught:
        read_path(path)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("path", "kind", "repo", "name"),
    [
        ("/gpt2.git/info/lfs/objects/batch", "model", "gpt2", "batch"),
        ("/o/n.x.git/info/lfs/objects/batch", "model", "o/n.x", "batch"),
        ("/datasets/o/n.git/info/lfs/objects/00", "dataset", "o/n", "00"),
        ("/spaces/n.git/info/lfs/objects/batch", "space", "n", "batch"),
    ],
)
def test_an_lfs_path(path: str, kind: str, repo: str, name: str) -> None:
    assert name_route(path) == "lfs"
    assert read_path(path) == ((kind, repo), name)


@pytest.mark.parametrize(
    "path",
    ["/o/n/info/lfs/objects/batch", "/info/lfs/objects/batch", "/datasets/info/lfs/objects/batch",
     "/o/n.git/info/lfs/locks", "/o/n.git/info/lfs/objects", "/",
     "/a/o/n.git/info/lfs/objects/batch", "/o/n/resolve/main/n.git/info/lfs/objects/batch"],
)  # fmt: skip
def test_no_lfs_path(path: str) -> None:
    assert name_route(path) != "lfs"


def test_a_registry_path() -> None:
    for path, name in (("manifests/Q4", "Q4"), ("blobs/sha256%3A0", "sha256:0")):
        assert name_route(f"/v2/o/n/{path}") == "registry"
        assert read_path(f"/v2/o/n/{path}") == (("model", "o/n"), name)
    for path in (
        "/v2/n/manifests/Q4",
        "/v2/reconstructions/00",
        "/v1/o/n/blobs/0",
        "/v2/o/n/tags/0",
    ):
        assert name_route(path) != "registry"


NAMES = ["tree", "resolve", "raw", "xet-read-token", "revision", "paths-info", "refs", "commits"]
VERBS = ["tree", "xet-read-token", "revision", "paths-info", "commits", "commit", "preupload"]


@pytest.mark.parametrize("prefix", ["/api/models", "/api/datasets", "/api/spaces", "/api/kernels"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", VERBS)
def test_no_name_is_taken_for_a_verb(prefix: str, name: str, verb: str) -> None:
    for owner, revision in (("acme", "main"), ("acme", name), (name, "main"), (name, name)):
        path = f"{prefix}/{owner}/{name}/{verb}/{revision}"
        assert find_api_verb(path) == verb
        assert find_kept_question(path) in (None, RepoRef(KINDS[prefix], f"{owner}/{name}"))
    # Nor is an owner for a way to a file, which would be fetched, passed on and kept.
    for owner in ("acme", name):
        path = f"{prefix}/{owner}/{name}/{verb}/main/resolve/raw"
        assert name_route(path) == "api"
    path = f"{prefix}/acme/repo/tree/{name}/{name}/{verb}/main"
    assert find_api_verb(path) == "tree"
    for token in ("xet-read-token", "xet-write-token", "Xet-Read-Token"):
        for path in (f"acme/{name}/{token}/main", f"{name}/{token}/main", f"acme/{token}/{name}"):
            assert find_kept_question(f"{prefix}/{path}") is None


@pytest.mark.parametrize("prefix", ["", "/datasets", "/spaces", "/kernels"])
@pytest.mark.parametrize("name", NAMES)
def test_no_name_is_taken_for_a_way_to_a_file(prefix: str, name: str) -> None:
    kind = KINDS[f"/api{prefix or '/models'}"]
    branch = "main" if name == "refs" else name  # refs/x/y is one revision
    for owner, revision in (("acme", "main"), ("acme", branch), (name, branch)):
        repo = f"{owner}/{name}"
        path = f"{prefix}/{repo}/resolve/{revision}/{name}/resolve/raw"
        assert name_route(path) == "resolve"
        assert read_path(path) == ((kind, repo), revision, f"{name}/resolve/raw")
        assert name_route(f"{prefix}/{repo}/raw/{revision}/{name}") == "raw"


@pytest.mark.parametrize(
    ("path", "verb"),
    [
        ("/api/models/o/n/tree/main", "tree"),
        ("/api/models/gpt2/tree/main/d", "tree"),
        ("/api/models/gpt2/paths-info/main", "paths-info"),
        ("/api/models/o/n/paths-info/refs/pr/1", "paths-info"),
        ("/api/models/o/tree/paths-info/main", "paths-info"),
        ("/api/models/o/paths-info/discussions", "discussions"),
        ("/api/models/gpt2/tree/xet-read-token", "tree"),
        ("/api/models/o/n/xet-write-token/main", "xet-write-token"),
        ("/api/models/o/n/XET-write-token/main/", "xet-write-token"),
        ("/api/buckets/o/n/xet-write-token", "xet-write-token"),
        ("/api/buckets/o/n/xet-read-token", "xet-read-token"),
        ("/api/buckets/o/xet-read-token/tree", "tree"),
        ("/api/buckets/o/n/tree/xet-read-token", "tree"),
        ("/api/buckets/o/n/paths-info", "paths-info"),
        ("/api/buckets/o", ""),
        ("/api/kernels/o/n/xet-read-token/main", "xet-read-token"),
        ("/api/anything/o/n/Xet-Read-Token", "xet-read-token"),
        ("/api/models/o/n/xet-read-token", "xet-read-token"),
        ("/api/models/o/xet-read-token", ""),
        ("/api/models/o/n/whatever/main", ""),
        ("/api/models/o/n", ""),
        ("/api/whoami-v2", ""),
        ("/o/n/tree/main", ""),
    ],
)
def test_what_is_asked_about_a_repository(path: str, verb: str) -> None:
    assert find_api_verb(path) == verb


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/models", RepoRef("model", "")),
        ("/api/models/o/n", RepoRef("model", "o/n")),
        ("/api/datasets/squad", RepoRef("dataset", "squad")),
        ("/api/models/gpt2/tree/main", RepoRef("model", "gpt2")),
        ("/api/spaces/o/n/revision/refs%2Fpr%2F1", RepoRef("space", "o/n")),
        ("/api/kernels/o/n/refs", RepoRef("kernel", "o/n")),
        ("/api/models/o/n/tree/main/a/b", RepoRef("model", "o/n")),
        ("/api/models/o/n/xet-read-token/main", None),
        ("/api/models/gpt2/xet-read-token/main", None),
        ("/api/spaces/o/n/logs/run", None),
        ("/api/models/o/n/auth-check", None),
        ("/api/models/acme/tree/xet-read-token/main", None),
        ("/api/models/acme/xet-read-token/tree/main", None),
        ("/api/models/gpt2/refs", RepoRef("model", "gpt2")),
        ("/api/models/o/n/refs", RepoRef("model", "o/n")),
        ("/api/whoami-v2", None),
        ("/api/others/o/n", None),
        ("/v2/o/n/manifests/Q4_K_M", RepoRef("model", "o/n")),
        ("/v2/o/n/blobs/sha256:00", None),
        ("/api/buckets/o/n", None),
        ("/api/buckets/o/n/tree/a", None),
        ("/o/n/resolve/main/a", None),
    ],
)
def test_which_answers_may_be_kept(path: str, expected: RepoRef | None) -> None:
    assert find_kept_question(path) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (f"/api/models/o/n/tree/{'c' * 40}?recursive=True", True),
        (f"/api/models/o/n/tree/{'c' * 40}/folder", True),
        (f"/api/models/o/n/tree/{'c' * 40}?expand=True", False),
        (f"/api/models/o/n/tree/{'c' * 40}?recursive=True&expand=False", True),
        (f"/api/kernels/o/n/tree/{'c' * 40}?recursive=true&expand=false&cursor=abc", True),
        (f"/api/models/o/n/tree/{'c' * 40}?expand=0", True),
        (f"/api/models/o/n/tree/{'c' * 40}?expand=", False),
        (f"/api/models/o/n/tree/{'c' * 40}?expand=false&expand=true", False),
        (f"/api/buckets/o/n/tree/{'c' * 40}", False),
        ("/api/buckets/o/n/tree", False),
        (f"/api/models/o/n/tree/{'c' * 41}", False),
        ("/api/models/o/n/tree/main", False),
        (f"/api/models/o/n/revision/{'c' * 40}", False),
        (f"/api/models/o/n/tree/main/tree/{'c' * 40}", False),
        (f"/api/models/o/tree/tree/main/{'c' * 40}", False),
        (f"/api/models/o/n/tree/{'c' * 40}?%65xpand=1", False),
        (f"/api/models/o/n?x=/tree/{'c' * 40}", False),
    ],
)
def test_which_never_change(target: str, expected: bool) -> None:
    assert is_lasting_question(target) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?recursive=True&expand=False", "?recursive=true&expand=false"),
        ("?expand=false&recursive=true", "?recursive=true&expand=false"),
        ("?recursive=true", "?recursive=true&expand=false"),
        ("?expand=1", "?recursive=false&expand=true"),
        ("", ""),
        ("?recursive=yes", "?recursive=yes"),
        ("?recursive=true&recursive=true", "?recursive=true&recursive=true"),
        ("?recursive=true&limit=5", "?recursive=true&limit=5"),
        ("?recursive=true&cursor=a", "?recursive=true&cursor=a"),
    ],
)
def test_a_tree_has_one_spelling(query: str, expected: str) -> None:
    for path in ("/api/models/o/n/tree/main", "/api/datasets/n/tree/refs%2Fpr%2F1/a%20b"):
        assert normalize_tree(path + query) == path + expected
    for path in ("/api/models/o/n/commits/main", "/api/models", "/api/buckets/o/n/tree"):
        assert normalize_tree(path + query) == path + query
