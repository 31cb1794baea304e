"""Requests below a path, and the links in their answers."""

import pytest

from xetserve.app.middleware.base_path import serve_below
from xetserve.http.messages import Headers, Request, Response


async def show(request: Request) -> Response:
    return Response(200, [("X-Target", request.target), ("X-Base", request.base_url)])


def request(target: str, prefix: str = "") -> Request:
    return Request("GET", target, Headers([("host", "h")]), prefix=prefix)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("/a/b/o/n?x=/a/b/", "/o/n?x=/a/b/", id="below it"),
        pytest.param("/a/b/", "/", id="the page"),
        pytest.param("/a/b//x", "//x", id="two slashes"),
        pytest.param("/a/b/a/b/x", "/a/b/x", id="twice"),
        pytest.param("/o/n", "/o/n", id="a proxy has removed it"),
        pytest.param("/a/bc", "/a/bc", id="it is not a whole segment"),
        pytest.param("/a", "/a", id="a part of it"),
        pytest.param("/", "/", id="the root"),
        pytest.param("*", "*", id="OPTIONS *"),
    ],
)
async def test_the_path_is_removed(target: str, expected: str) -> None:
    response = await serve_below(show, "/a/b")(request(target))
    assert response.headers == [("X-Target", expected), ("X-Base", "http://h/a/b")]


async def test_what_a_proxy_has_removed_is_not_removed_again() -> None:
    response = await serve_below(show, "/a/b")(request("/a/b/resolve/main/f", prefix="/p"))
    assert response.headers == [("X-Target", "/a/b/resolve/main/f"), ("X-Base", "http://h/p")]


@pytest.mark.parametrize("query", ["", "?x=1"])
async def test_the_path_alone_leads_to_the_page(query: str) -> None:
    response = await serve_below(show, "/a/b")(request(f"/a/b{query}"))
    assert response.status == 308
    assert Headers(response.headers).get("location") == f"/a/b/{query}"


def test_without_a_path_nothing_changes() -> None:
    assert serve_below(show, "") is show
