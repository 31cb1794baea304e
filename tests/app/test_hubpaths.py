"""Paths of the Hub."""

import pytest

from xetserve.app.hubpaths import (
    find_api_verb,
    find_kept_question,
    is_lasting_question,
    is_resolve_path,
    is_tree_path,
    parse_lfs_path,
    parse_registry_path,
    parse_resolve_path,
)
from xetserve.errors import RequestError
from xetserve.upstream.hub import RepoRef

COMMIT = "c" * 40


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
    ],
)
def test_a_file_is_found(path: str, kind: str, repo: str, revision: str, file: str) -> None:
    assert is_resolve_path(path)
    assert parse_resolve_path(path) == ((kind, repo), revision, file)


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
    assert not is_resolve_path(path)
    assert parse_resolve_path(path) is None


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/o/n/resolve/main/a%2Fb", 400),
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
    with pytest.raises(RequestError) as caught:
        parse_resolve_path(path)
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
    assert parse_lfs_path(path) == ((kind, repo), name)


@pytest.mark.parametrize(
    "path",
    ["/o/n/info/lfs/objects/batch", "/info/lfs/objects/batch", "/datasets/info/lfs/objects/batch",
     "/o/n.git/info/lfs/locks", "/o/n.git/info/lfs/objects", "/"],
)  # fmt: skip
def test_no_lfs_path(path: str) -> None:
    assert parse_lfs_path(path) is None


def test_a_registry_path() -> None:
    assert parse_registry_path("/v2/o/n/manifests/Q4") == ("manifests", (("model", "o/n"), "Q4"))
    assert parse_registry_path("/v2/o/n/blobs/sha256%3A0") == (
        "blobs",
        (("model", "o/n"), "sha256:0"),
    )
    for path in (
        "/v2/n/manifests/Q4",
        "/v2/reconstructions/00",
        "/v1/o/n/blobs/0",
        "/v2/o/n/tags/0",
    ):
        assert parse_registry_path(path) is None


@pytest.mark.parametrize(
    ("path", "is_tree", "verb"),
    [
        ("/api/models/o/n/tree/main", True, ""),
        ("/api/models/gpt2/tree/main/d", True, ""),
        ("/api/models/o/tree", False, ""),
        ("/api/models/o/tree/paths-info/main", True, "paths-info"),
        ("/api/models/o/tree/xet-read-token/main", True, "xet-read-token"),
        ("/o/n/tree/main", False, ""),
    ],
)
def test_what_is_asked_about_a_repository(path: str, is_tree: bool, verb: str) -> None:
    assert (is_tree_path(path), find_api_verb(path)) == (is_tree, verb)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/models", RepoRef("model", "")),
        ("/api/models/o/n", RepoRef("model", "o/n")),
        ("/api/datasets/squad", RepoRef("dataset", "squad")),
        ("/api/models/gpt2/tree/main", RepoRef("model", "gpt2")),
        ("/api/spaces/o/n/revision/refs%2Fpr%2F1", RepoRef("space", "o/n")),
        ("/api/models/o/n/tree/main/a/b", RepoRef("model", "o/n")),
        ("/api/models/o/n/xet-read-token/main", None),
        ("/api/models/gpt2/xet-read-token/main", None),
        ("/api/spaces/o/n/logs/run", None),
        ("/api/models/o/n/auth-check", None),
        ("/api/whoami-v2", None),
        ("/api/others/o/n", None),
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
        (f"/api/models/o/n/tree/{'c' * 41}", False),
        ("/api/models/o/n/tree/main", False),
        (f"/api/models/o/n/revision/{'c' * 40}", False),
        (f"/api/models/o/n?x=/tree/{'c' * 40}", False),
    ],
)
def test_which_never_change(target: str, expected: bool) -> None:
    assert is_lasting_question(target) == expected
