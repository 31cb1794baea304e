"""What tells of the server itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from tests.fakes import FakeBody
from xetserve import __version__
from xetserve.app.route_table import Call, check_method
from xetserve.app.routes import list_status_routes
from xetserve.app.status.active_streams import StreamTable
from xetserve.app.status.operator import COOKIE, Operator
from xetserve.app.status.readiness import CACHE, HUB, Readiness
from xetserve.app.status.service import StatusService, wants_html
from xetserve.app.status.snapshot import PLACE_SIZE, Snapshot
from xetserve.errors import RequestError
from xetserve.http.messages import Headers, Request, Response
from xetserve.metrics.instruments import CELLS_SIZE

TOKEN = "the operator's own token"
HTML = ("Accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
BEARER = ("Authorization", "Bearer operator-token-0123")
HOSTILE = '</title><script>alert("x")</script>\'& .bin'


def make_service(audience: str = "public", token: str = "operator-token-0123") -> StatusService:
    place = memoryview(bytearray(PLACE_SIZE))
    streams = StreamTable(place[CELLS_SIZE:])
    text = {"route": "download", "repo": "o/secret", "file": HOSTILE, "client": "192.0.2.7"}
    assert streams.open(text, 1000, 0.0) is not None
    return StatusService(Snapshot([place]), Operator(token), Readiness(), audience)


async def answer(service: StatusService, request: Request) -> Response:
    """Answer by the handler of the route."""
    routes = {route.pattern: route for route in list_status_routes(service)}
    route = routes[request.raw_path]
    check_method(request, route.allowed)
    return await route.handler(Call(request, None, None))


async def get(
    target: str,
    *fields: tuple[str, str],
    host: str = "files.test:8080",
    secure: bool = False,
    service: StatusService | None = None,
) -> Response:
    request = Request("GET", target, Headers([("Host", host), *fields]), secure=secure)
    return await answer(service or make_service(), request)


async def get_text(target: str, *fields: tuple[str, str], **options: object) -> str:
    response = await get(target, *fields, **options)  # type: ignore[arg-type]
    assert response.status == 200
    assert isinstance(response.body, bytes)
    return response.body.decode()


async def test_health_has_two_names() -> None:
    expected = {"status": "ok", "version": __version__}
    assert json.loads(await get_text("/health")) == expected
    assert json.loads(await get_text("/healthz")) == expected


async def test_ready_until_the_server_drains() -> None:
    readiness = Readiness()
    service = StatusService(readiness=readiness)
    assert await get_text("/ready", service=service) == '{"status": "ready"}\n'
    readiness.is_draining = True
    response = await get("/ready", service=service)
    assert (response.status, response.body) == (503, b'{"status": "draining"}\n')
    assert ("Retry-After", "1") in response.headers
    readiness.is_draining = False


@pytest.mark.parametrize(
    ("can_do_without", "status", "expected"),
    [
        pytest.param(frozenset(), 503, "unready", id="needed"),
        pytest.param(frozenset({HUB}), 503, "unready", id="another can be missed"),
        pytest.param(frozenset({CACHE}), 200, "degraded", id="downloads go on"),
    ],
)
async def test_what_speaks_against_new_clients_is_said(
    can_do_without: frozenset[str], status: int, expected: str
) -> None:
    async def check() -> None:
        raise OSError(28, "No space left on device")

    service = StatusService(readiness=Readiness(check_cache=check, can_do_without=can_do_without))
    response = await get("/ready", service=service)
    assert response.status == status
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {
        "status": expected, "cause": "cache", "error": "the disk cache has no room",
    }  # fmt: skip
    assert (("Retry-After", "5") in response.headers) is (status == 503)


@pytest.mark.parametrize("target", ["/", "/health", "/ready", "/metrics", "/status"])
async def test_no_cache_answers_in_our_place(target: str) -> None:
    for fields in ((), (HTML,)):
        assert dict((await get(target, *fields)).headers)["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_nothing_can_be_changed(method: str) -> None:
    with pytest.raises(RequestError) as caught:
        await answer(make_service(), Request(method, "/status"))
    assert caught.value.status == 405


# Who gets which


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        pytest.param(None, False, id="nothing"),
        pytest.param("*/*", False, id="curl"),
        pytest.param("text/*", False, id="any text"),
        pytest.param("text/html", True, id="named"),
        pytest.param("text/html;q=0", False, id="refused"),
        pytest.param("text/html; q=0", False, id="refused behind a blank"),
        pytest.param("text/html;q=0.000, */*", False, id="refused at length"),
        pytest.param("text/html;q=0.1", True, id="liked a little"),
        pytest.param("application/json , Text/HTML;level=1", True, id="among others"),
        pytest.param("text/htmlx", False, id="something else"),
    ],
)
def test_html_is_for_those_who_ask_for_it(accept: str | None, expected: bool) -> None:
    assert wants_html(Headers([] if accept is None else [("accept", accept)])) is expected


async def test_terminals_get_text_in_the_words_of_the_host_that_was_asked_for() -> None:
    response = await get("/")
    assert dict(response.headers)["Content-Type"] == "text/plain; charset=utf-8"
    assert dict(response.headers)["Vary"] == "Accept"
    text = await get_text("/")
    assert "http://files.test:8080/download/OWNER/REPO" in text
    assert "{owner}/{repo}/{path}" in text
    assert "{base}" not in text
    assert "https://files.test/" in await get_text("/", host="files.test", secure=True)


async def test_browsers_get_a_page_with_the_same() -> None:
    page = await get_text("/", HTML)
    assert "http://files.test:8080/download/OWNER/REPO" in page
    assert "{owner}/{repo}/{path}" in page
    assert "{base}" not in page
    assert "{{" not in re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    "host", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "'onload='x", "a&amp;<b"]
)
async def test_a_host_that_is_markup_is_shown_as_text(host: str) -> None:
    page, plain = await get_text("/", HTML, host=host), await get_text("/", HTML, host="h")
    assert host not in page
    assert page.count("<") == plain.count("<")
    assert page.count('"') == plain.count('"')


# Who sees what


async def test_without_the_operator_token_there_are_numbers_and_no_names() -> None:
    for text in (await get_text("/", HTML), await get_text("/status"), await get_text("/metrics")):
        for name in ("secret", "script>alert", "alert", "192.0.2.7"):
            assert name not in text
    (stream,) = json.loads(await get_text("/status"))["streams"]
    assert set(stream) == {"route", "seconds", "sent", "size", "rate", "stage"}
    assert "a private file" in await get_text("/", HTML)


async def test_the_operator_sees_names_and_they_are_text() -> None:
    (stream,) = json.loads(await get_text("/status", BEARER))["streams"]
    assert (stream["file"], stream["repo"], stream["client"]) == (HOSTILE, "o/secret", "192.0.2.7")
    page = await get_text("/", HTML, BEARER)
    assert "o/secret" in page
    assert "192.0.2.7" in page
    assert "alert(&quot;x&quot;)" in page
    assert page.count("<script") == 1
    assert TOKEN not in page


@pytest.mark.parametrize("target", ["/metrics", "/status"])
async def test_figures_may_be_for_the_operator_alone(target: str) -> None:
    service = make_service("token")
    with pytest.raises(RequestError) as caught:
        await get(target, service=service)
    assert caught.value.status == 401
    assert await get_text(target, BEARER, service=service)
    with pytest.raises(RequestError) as caught:
        await get(target, BEARER, service=make_service("off"))
    assert caught.value.status == 404


@pytest.mark.parametrize("audience", ["token", "off"])
async def test_a_page_without_figures_still_tells_how_to_download(audience: str) -> None:
    page = await get_text("/", HTML, service=make_service(audience))
    assert "/download/OWNER/REPO" in page
    assert "streams" not in page
    assert ('name="token"' in page) is (audience == "token")


async def test_without_an_operator_token_nobody_is_asked_for_it() -> None:
    service = make_service(token="")
    page = await get_text("/", HTML, ("Authorization", "Bearer "), service=service)
    assert "<form" not in page
    with pytest.raises(RequestError) as caught:
        await answer(service, Request("POST", "/operator", body=FakeBody(b"token=")))
    assert caught.value.status == 404


async def test_the_form_gives_a_cookie_for_the_token() -> None:
    service = make_service()
    body = FakeBody(b"token=operator-token-0123")
    response = await answer(service, Request("POST", "/operator", body=body))
    assert response.status == 303
    cookie = dict(response.headers)["Set-Cookie"].partition(";")[0]
    page = await get_text("/", HTML, ("Cookie", f"other=1; {cookie}"), service=service)
    assert "o/secret" in page
    assert 'name="logout"' in page


async def test_a_wrong_token_is_told_on_the_page() -> None:
    body = FakeBody(b"token=operator-token-9999")
    response = await answer(make_service(), Request("POST", "/operator", body=body))
    assert response.status == 403
    assert isinstance(response.body, bytes)
    assert b"That is not it." in response.body
    assert COOKIE not in str(response.headers)


# The page


class Outline(HTMLParser):
    """Checks that elements are closed in order, and collects what they point to."""

    VOID = frozenset({"meta", "link", "input"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.targets: list[str] = []
        self.styled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"{tag} {name}"
            if name in ("src", "href", "action", "formaction", "srcset", "data", "poster"):
                self.targets.append(value or "")
            if name == "style":
                self.styled.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("fields", [(), (BEARER,)], ids=["anybody", "operator"])
async def test_the_page_is_well_formed_and_needs_nobody_else(
    fields: tuple[tuple[str, str], ...],
) -> None:
    page = await get_text("/", HTML, *fields)
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    assert outline.styled == []
    assert set(outline.targets) == {"data:,", "operator"}
    outside = re.findall(r"(?:url\(|@import|https?://)[^\s\"'<)]*", page)
    assert all(found.startswith("http://files.test:8080") for found in outside)


async def test_the_policy_allows_the_style_and_the_script_of_the_page_and_nothing_else() -> None:
    import base64
    import hashlib

    response = await get("/", HTML)
    policy = dict(response.headers)["Content-Security-Policy"]
    assert isinstance(response.body, bytes)
    page = response.body.decode()
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy


async def test_without_scripts_the_page_comes_again() -> None:
    page = await get_text("/", HTML)
    assert '<noscript><meta http-equiv="refresh" content="10"></noscript>' in page
