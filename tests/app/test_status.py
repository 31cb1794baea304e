"""/health, /ready and the page at /."""

import json

import pytest

from xetserve import __version__
from xetserve.app.status import Readiness, get_health, get_ready, get_usage
from xetserve.http.messages import Headers, Request


def page(host: str, *, secure: bool = False) -> str:
    request = Request("GET", "/", Headers([("Host", host)]), secure=secure)
    response = get_usage(request)
    assert response.status == 200
    assert isinstance(response.body, bytes)
    return response.body.decode()


def test_health() -> None:
    response = get_health(Request("GET", "/health"))
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {"status": "ok", "version": __version__}


def test_ready_until_the_server_drains() -> None:
    readiness = Readiness()
    request = Request("GET", "/ready")
    response = get_ready(request, readiness)
    assert (response.status, response.body) == (200, b'{"status": "ready"}\n')
    readiness.is_draining = True
    response = get_ready(request, readiness)
    assert (response.status, response.body) == (503, b'{"status": "draining"}\n')
    assert ("Retry-After", "1") in response.headers


def test_no_cache_answers_in_our_place() -> None:
    request = Request("GET", "/")
    draining = get_ready(request, Readiness(is_draining=True))
    for response in (get_health(request), get_ready(request, Readiness()), draining):
        assert dict(response.headers)["Cache-Control"] == "no-store"
    assert dict(get_usage(request).headers)["Cache-Control"] == "no-cache"


def test_the_page_uses_the_words_of_the_host_that_was_asked_for() -> None:
    assert "http://files.test:8080/download/OWNER/REPO" in page("files.test:8080")
    assert "https://files.test/download-hash/HASH" in page("files.test", secure=True)
    assert "http://localhost/download/" in get_text(Request("GET", "/"))


def get_text(request: Request) -> str:
    body = get_usage(request).body
    assert isinstance(body, bytes)
    return body.decode()


@pytest.mark.parametrize(
    "host", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "'onload='x", "a&amp;<b"]
)
def test_a_host_that_is_markup_is_shown_as_text(host: str) -> None:
    text = page(host)
    assert host not in text
    assert text.count("<") == page("h").count("<")
    assert text.count('"') == page("h").count('"')


def test_nothing_may_run_on_the_page() -> None:
    headers = dict(get_usage(Request("GET", "/")).headers)
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Content-Type"] == "text/html; charset=utf-8"


def test_no_placeholder_is_left_over() -> None:
    assert "{base}" not in page("h")
    assert "{{" not in page("h")
    assert "{owner}/{repo}/{path}" in page("h")
