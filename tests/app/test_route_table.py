"""From a path to its route."""

from unittest.mock import AsyncMock

import pytest

from xetserve.app.route_table import (
    Auth,
    MatchedPath,
    Route,
    RouteTable,
    check_method,
    no_target,
)
from xetserve.errors import RequestError
from xetserve.http.messages import Request

COMMIT = "c" * 40


def make_route(pattern: str) -> Route[None]:
    return Route("page", "GET", pattern, Auth.NONE, no_target, AsyncMock())


def find_verb(raw_path: str) -> str:
    """The verb of a path; one with a % has none that could be."""
    if "%" in raw_path:
        raise RequestError(400, "malformed")
    return raw_path.rpartition("/")[2]


def make_table(*patterns: str) -> RouteTable:
    return RouteTable([make_route(pattern) for pattern in patterns], find_verb)


def match(table: RouteTable, path: str) -> tuple[str, dict[str, str]] | None:
    """The pattern that a path matches, and its values."""
    try:
        route, matched = table.match(path)
    except RequestError:
        return None
    assert matched.raw == path
    return route.pattern, dict(matched.values)


@pytest.mark.parametrize(
    ("pattern", "path", "values"),
    [
        pytest.param("/", "/", {}, id="the root"),
        pytest.param("/", "//", None, id="two slashes are not the root"),
        pytest.param("/a/b", "/a/b", {}, id="fixed"),
        pytest.param("/a/b", "/a/b/", None, id="a slash behind is another path"),
        pytest.param("/a/b", "/A/b", None, id="case counts"),
        pytest.param("/a/b", "/a", None, id="too short"),
        pytest.param("/a/{x}", "/a/b%2Fc", {"x": "b%2Fc"}, id="values stay encoded"),
        pytest.param("/a/{x}", "/a/", {"x": ""}, id="a segment may be empty"),
        pytest.param("/a/{x+}", "/a/", None, id="one with a plus may not"),
        pytest.param("/a/{x+}", "/a/b", {"x": "b"}, id="filled"),
        pytest.param("/a/{commit}", f"/a/{COMMIT}", {"commit": COMMIT}, id="a commit"),
        pytest.param("/a/{commit}", "/a/main", None, id="a branch is no commit"),
        pytest.param("/a/{x...}", "/a/b/c/", {"x": "b/c/"}, id="the rest"),
        pytest.param("/a/{x...}", "/a/", {"x": ""}, id="an empty rest"),
        pytest.param("/a/{x...}", "/a", None, id="no rest"),
        pytest.param("/{id}/x", "/o/n/x", {"owner": "o", "name": "n"}, id="an id with an owner"),
        pytest.param("/{id}/x", "/n/x", {"name": "n"}, id="an id without one"),
        pytest.param("/{id}/x", "/a/o/n/x", None, id="an id has two parts at most"),
        pytest.param("/{id}.git/x", "/o/n.git/x", {"owner": "o", "name": "n"}, id="a suffix"),
        pytest.param("/{id}.git/x", "/o/n/x", None, id="no suffix"),
        pytest.param("/{id}/x", "/api/x", None, id="api is no name"),
        pytest.param("/{id}/x", "/download/n/x", None, id="download is no owner"),
        pytest.param("/{id}/x", "/datasets/x", None, id="datasets is no name"),
        pytest.param("/a/{b|c}", "/a/b", {"kind": "b"}, id="one of two words"),
        pytest.param("/a/{b|c}", "/a/d", None, id="another word"),
        pytest.param("/[b/|c/]{x}/y", "/b/a/y", {"kind": "b", "x": "a"}, id="an optional word"),
        pytest.param("/[b/|c/]{x}/y", "/a/y", {"x": "a"}, id="without it"),
        pytest.param(
            "/[datasets/|spaces/]{id}/raw/{revision}/{path...}",
            "/datasets/squad/raw/main/a/b%20c",
            {"kind": "datasets", "name": "squad", "revision": "main", "path": "a/b%20c"},
            id="the example of the docstring",
        ),
    ],
)
def test_a_pattern(pattern: str, path: str, values: dict[str, str] | None) -> None:
    expected = None if values is None else (pattern, values)
    assert match(make_table(pattern), path) == expected


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        pytest.param(("/a/{x}", "/a/b"), "/a/b", "/a/{x}", id="the first one"),
        pytest.param(("/{x}/b", "/a/b"), "/a/b", "/{x}/b", id="whether it is fixed or not"),
        pytest.param(
            ("/{id}/x/{y...}", "/{id}/z/{y...}"), "/o/x/z/y", "/{id}/z/{y...}",
            id="an owner before a name alone",
        ),
        pytest.param(
            ("/{id}/x/{y...}", "/{id}/z/{y...}"), "/o/x/y", "/{id}/x/{y...}",
            id="a name alone where there is no other reading",
        ),
        pytest.param(("/api/...", "/api/x"), "/api/x", "/api/x", id="a question comes last"),
    ],
)  # fmt: skip
def test_the_order_counts(patterns: tuple[str, ...], path: str, expected: str) -> None:
    found = match(make_table(*patterns), path)
    assert found is not None
    assert found[0] == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/a/refs", "/api/.../refs/{revision}"),
        ("/api/refs/a", "/api/..."),
        ("/api/", "/api/..."),
        ("/api/%/refs", "/api/..."),
        ("/api", None),
        ("/apis/refs", None),
    ],
)
def test_a_question_has_the_route_of_its_verb(path: str, expected: str | None) -> None:
    found = match(make_table("/api/...", "/api/.../refs/{revision}"), path)
    assert found == (None if expected is None else (expected, {}))


@pytest.mark.parametrize(
    ("path", "status"), [("/b", 404), ("/", 404), ("/a/b", 404), ("/%", 400), ("/..", 400)]
)
def test_a_path_without_a_route(path: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        make_table("/a").match(path)
    assert caught.value.status == status


def test_values_are_decoded_one_by_one() -> None:
    path = MatchedPath("/a%20b/c%2525", {"path": "a%20b/c%2525", "other": "a%2Fb"})
    assert path.decode("path") == ["a b", "c%25"]
    with pytest.raises(RequestError):
        path.decode("other")


def test_what_a_route_allows() -> None:
    assert make_route("/").allowed == ("GET", "OPTIONS")


def test_check_method() -> None:
    check_method(Request("GET", "/"))
    check_method(Request("HEAD", "/"))
    check_method(Request("PUT", "/"), ["PUT"])
    with pytest.raises(RequestError) as caught:
        check_method(Request("POST", "/"))
    assert (caught.value.status, caught.value.headers) == (405, (("Allow", "GET, HEAD"),))


@pytest.mark.parametrize("method", ["get", "Head", "FOO", "PROPFIND", "G" * 32])
def test_what_is_no_method_is_501(method: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_method(Request(method, "/"))
    assert (caught.value.status, caught.value.headers) == (501, ())
