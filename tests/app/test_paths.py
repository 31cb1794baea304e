"""From a request target to what is asked for."""

from urllib.parse import unquote_to_bytes

import pytest

from xetserve.app.paths import (
    get_revision,
    join_file_path,
    parse_repo,
    split_path,
)
from xetserve.errors import RequestError
from xetserve.http.messages import Request
from xetserve.upstream.hub.client import RepoRef


@pytest.mark.parametrize(
    ("raw", "segments"),
    [
        ("/", [""]),
        ("/a", ["a"]),
        ("/a/b", ["a", "b"]),
        ("/a//b/", ["a", "", "b", ""]),
        ("/a%20b/c+d", ["a b", "c+d"]),
        ("/%C3%A4/\u00e4".replace("\u00e4", "%c3%a4"), ["ä", "ä"]),
        ("/%2525", ["%25"]),
        ("/...", ["..."]),
        ("/.hidden", [".hidden"]),
        ("/a;b=c", ["a;b=c"]),
        ("/a%3Fb%23", ["a?b#"]),
        ("/%F0%9F%A4%97.bin", ["\U0001f917.bin"]),
        ("/%252e%252e/a", ["%2e%2e", "a"]),
        ("/..\\a", ["..\\a"]),
        ("/..%5Ca", ["..\\a"]),
        ("/..;/a", ["..;", "a"]),
        ("/a|b'c", ["a|b'c"]),
        ("/" + "a/" * 4000, ["a"] * 4000 + [""]),
    ],
)
def test_split_path(raw: str, segments: list[str]) -> None:
    assert split_path(raw) == segments


def test_only_segments_with_escapes_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def decode(raw: str) -> bytes:
        decoded.append(raw)
        return unquote_to_bytes(raw)

    monkeypatch.setattr("xetserve.app.paths.unquote_to_bytes", decode)
    assert split_path("/a" * 2000 + "/%20" + "/b" * 2000)[1999:2002] == ["a", " ", "b"]
    assert decoded == ["%20"]


@pytest.mark.parametrize(
    "raw",
    ["/a%", "/a%2", "/%zz", "/%2", "/a%2Fb", "/a%2f..%2fb", "/%00", "/%0D%0AX:%20y", "/a%0ab",
     "/%7F", "/%1b[2J", "/..", "/a/../b", "/%2e%2e/x", "/.", "/%2E", "/%FF", "/%C3", "/%ED%A0%80",
     "/%C0%AE%C0%AE", "/%E0%80%AE", "/.%2e/a", "/%2E./a", "/%u002e", "/%%32e", "/a/.", "/%80"],
)  # fmt: skip
def test_a_path_that_could_mean_two_things_is_400(raw: str) -> None:
    with pytest.raises(RequestError) as caught:
        split_path(raw)
    assert caught.value.status == 400


def test_join_file_path() -> None:
    assert join_file_path(["a", "b c", "d"]) == "a/b c/d"


def test_a_path_that_the_hub_could_not_be_asked_for_is_414() -> None:
    assert join_file_path(["a"] * 2048) == "/".join("a" * 2048)
    assert join_file_path(["|" * 1365]) == "|" * 1365
    for segments in (["a"] * 2049, ["|" * 1366], ["\u00e4" * 683]):
        with pytest.raises(RequestError) as caught:
            join_file_path(segments)
        assert caught.value.status == 414


@pytest.mark.parametrize("segments", [[], [""], ["a", ""], ["", "a"], ["a", "", "b"]])
def test_no_file_has_an_empty_name(segments: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        join_file_path(segments)
    assert caught.value.status == 404


@pytest.mark.parametrize("kind", ["model", "dataset", "space", "kernel"])
@pytest.mark.parametrize("repo_id", ["o/n", "Org-1/a.b_c-D", "0/_x", "a" * 96 + "/n"])
def test_parse_repo(kind: str, repo_id: str) -> None:
    assert parse_repo(repo_id, kind) == RepoRef(kind, repo_id)


@pytest.mark.parametrize(
    "repo_id",
    ["", "n", "/", "o/", "/n", "o/n/x", "o /n", "../n", "o/..", "o/.n", "-o/n", "ö/n", "o/n?x",
     "o/n%2F", "a" * 97 + "/n", "o/n\n"],
)  # fmt: skip
def test_a_repository_with_another_name_is_400(repo_id: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_repo(repo_id, "model")
    assert caught.value.status == 400


@pytest.mark.parametrize("kind", ["", "models", "Model", "bucket", "../"])
def test_another_type_is_400(kind: str) -> None:
    with pytest.raises(RequestError, match="model, dataset, space") as caught:
        parse_repo("o/n", kind)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("query", "revision"),
    [
        ("", "main"),
        ("?", "main"),
        ("?revision=dev", "dev"),
        ("?revision=a&revision=b", "b"),
        ("?revision=refs/pr/1", "refs/pr/1"),
        ("?revision=refs%2Fpr%2F1", "refs/pr/1"),
        ("?revision=" + "c" * 40, "c" * 40),
        ("?revision=v1.0-rc%2B1", "v1.0-rc+1"),
        ("?revision=%C3%A4", "ä"),
        ("?revision=~parquet", "~parquet"),
        ("?revision=%7Educkdb", "~duckdb"),
    ],
)
def test_get_revision(query: str, revision: str) -> None:
    assert get_revision(Request("GET", f"/x{query}")) == revision


@pytest.mark.parametrize(
    "value",
    ["", "..", "a..b", "/a", "a/", "-x", ".x", "a%20b", "a%0Ab", "a%00", "a~1", "~", "~~a",
     "a^", "a:b", "a?", "a*", "a[", "a%5C", "%7F", "x" * 256, "a%C2%A0b", "%FF", "%C0%AE", "%zz",
     "%", "a%2"],
)  # fmt: skip
def test_a_revision_that_git_would_not_allow_is_400(value: str) -> None:
    with pytest.raises(RequestError) as caught:
        get_revision(Request("GET", f"/x?revision={value}"))
    assert caught.value.status == 400
