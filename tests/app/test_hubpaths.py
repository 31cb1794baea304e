"""Paths of the Hub."""

import pytest

from xetserve.app.hubpaths import is_resolve_path, parse_resolve_path
from xetserve.errors import RequestError

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
