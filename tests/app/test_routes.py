"""What the server answers to (method, path): its route, status, Allow and token."""

import re
from collections.abc import Iterator

import pytest

from tests.routes import METHODS, NO_METHODS, TABLE, RecordingApplication, make_table
from xetserve.app.middleware.traffic_control import EXEMPT
from xetserve.app.route_table import Auth, Route
from xetserve.http.hosts import PROBES
from xetserve.http.messages import Headers, Response
from xetserve.metrics.catalogue import ROUTES

HASH = "a" * 64
COMMIT = "c" * 40
BEARER = ("authorization", "Bearer hf_token")
BASIC = ("authorization", "Basic bWU6aGZfdG9rZW4=")  # me:hf_token
MALFORMED = ("authorization", "Bearer")

# Path, route, allowed methods besides OPTIONS.
PATHS = [
    ("/", "page", "GET HEAD"),
    ("/?a=b", "page", "GET HEAD"),
    ("/health", "health", "GET HEAD"),
    ("/healthz", "health", "GET HEAD"),
    ("/ready", "ready", "GET HEAD"),
    ("/metrics", "metrics", "GET HEAD"),
    ("/status?a=/b/c", "status", "GET HEAD"),
    ("/operator", "operator", "POST"),
    # files
    ("/o/n/resolve/main/a.bin", "resolve", "GET HEAD"),
    ("/n/resolve/main/d/a%20b.bin", "resolve", "GET HEAD"),
    ("/o/n/resolve/refs%2Fpr%2F1/a", "resolve", "GET HEAD"),
    ("/o/n/resolve/refs/pr/1/a", "resolve", "GET HEAD"),
    ("/o/n/resolve/main/a%2Fb", "resolve", "GET HEAD"),
    ("/datasets/o%2Fn/resolve/main/a", "resolve", "GET HEAD"),
    ("/o%2Fn/raw/main/a", "raw", "GET HEAD"),
    ("/o%2Fn.git/info/lfs/objects/batch", "lfs", "POST"),
    ("/datasets/o/n/resolve/main/a", "resolve", "GET HEAD"),
    ("/spaces/n/resolve/main/a", "resolve", "GET HEAD"),
    ("/kernels/o/n/resolve/v1/build/a", "resolve", "GET HEAD"),
    ("/health/n/resolve/main/a", "resolve", "GET HEAD"),
    ("/v2/o/resolve/manifests/a", "resolve", "GET HEAD"),
    ("/a/raw/resolve/main/a", "resolve", "GET HEAD"),
    ("/o/n/resolve/main/raw/main/a", "resolve", "GET HEAD"),
    ("/o/n/resolve/main/n.git/info/lfs/objects/batch", "resolve", "GET HEAD"),
    ("/buckets/o/n/resolve/a", "resolve", "GET HEAD"),
    ("/buckets/o/n/resolve/d%2Fa/b", "resolve", "GET HEAD"),
    (f"/api/resolve-cache/models/n/{COMMIT}/a/b", "resolve", "GET HEAD"),
    (f"/api/resolve-cache/datasets/o/n/{COMMIT}/a", "resolve", "GET HEAD"),
    ("/api/resolve-cache/spaces/o/n/main/a", "resolve", "GET HEAD"),
    ("/o/n/raw/main/a", "raw", "GET HEAD"),
    ("/n/raw/main/a%2Fb", "raw", "GET HEAD"),
    ("/a/resolve/raw/main/a", "raw", "GET HEAD"),
    ("/datasets/n/raw/main/a", "raw", "GET HEAD"),
    ("/kernels/o/n/raw/v1/a", "raw", "GET HEAD"),
    ("/o/n/blob/main/a", "link", "GET HEAD"),
    ("/datasets/n/blob/main/d/a", "link", "GET HEAD"),
    ("/download/o/n/a", "download", "GET HEAD"),
    ("/download/datasets/o/n/a", "download", "GET HEAD"),
    ("/download/o/n/d/a?revision=x/y", "download", "GET HEAD"),
    ("/download/o/resolve/main/a", "download", "GET HEAD"),
    (f"/download-hash/{HASH}", "download-hash", "GET HEAD"),
    ("/download-hash/", "download-hash", "GET HEAD"),
    # git-lfs and ollama
    ("/o/n.git/info/lfs/objects/batch", "lfs", "POST"),
    ("/n.git/info/lfs/objects/batch", "lfs", "POST"),
    ("/datasets/o/n.git/info/lfs/objects/batch", "lfs", "POST"),
    ("/datasets.git/info/lfs/objects/batch", "lfs", "POST"),
    (f"/o/n.git/info/lfs/objects/{HASH}", "lfs", "GET HEAD"),
    (f"/spaces/n.git/info/lfs/objects/{HASH}", "lfs", "GET HEAD"),
    ("/v2/", "registry", "GET HEAD"),
    ("/kernels/o/n.git/info/lfs/objects/batch", "lfs", "POST"),
    ("/o/n/info/refs?service=git-upload-pack", "git", "GET"),
    ("/datasets/n.git/info/refs", "git", "GET"),
    ("/spaces/o/n.git/git-upload-pack", "git", "POST"),
    ("/n/git-receive-pack", "git", "POST"),
    ("/kernels/o/n/info/refs", "git", "GET"),
    ("/v2/o/n/manifests/Q4", "registry", "GET HEAD"),
    (f"/v2/o/n/blobs/sha256:{HASH}", "registry", "GET HEAD"),
    ("/v2/raw/n/manifests/Q4", "registry", "GET HEAD"),
    ("/v2/o/raw/manifests/Q4", "registry", "GET HEAD"),
    # the Hub's API
    ("/oauth/device", "login", "POST"),
    ("/oauth/token", "login", "POST"),
    ("/api/account", "manage", "GET HEAD"),
    ("/api/repo", "manage", "POST PUT DELETE"),
    ("/api/repos/create", "manage", "POST"),
    ("/api/repos/move", "manage", "POST"),
    ("/api/repos/delete", "manage", "DELETE"),
    ("/api/models/o/n/settings", "manage", "PUT"),
    ("/api/spaces/n/settings", "manage", "PUT"),
    ("/api/models/a/tree/settings", "manage", "PUT"),
    ("/api/models/o/n/settings/", "api", "GET HEAD"),
    ("/api/others/o/n/settings", "api", "GET HEAD"),
    ("/api/", "api", "GET HEAD"),
    ("/api/account/", "api", "GET HEAD"),
    ("/api/repos/create/", "api", "GET HEAD"),
    ("/api/whoami-v2", "api", "GET HEAD"),
    ("/api/models", "api", "GET HEAD"),
    ("/api/models?author=o", "api", "GET HEAD"),
    ("/api/models/o/n", "api", "GET HEAD"),
    ("/api/datasets/n/tree/main/d", "api", "GET HEAD"),
    ("/api/models/o/n/commit/main", "api", "GET HEAD"),
    ("/api/models/o/n/resolve/main/a", "api", "GET HEAD"),
    ("/api/resolve-cache/others/o/n/main/a", "api", "GET HEAD"),
    ("/api/resolve-cache/models/o/n/main", "api", "GET HEAD"),
    ("/api/models/o/n/paths-info/main", "api", "POST"),
    ("/api/models/n/paths-info/main/", "api", "POST"),
    ("/api/models/n/paths-info/refs/pr/1", "api", "POST"),
    ("/api/models/o/tree/paths-info/main", "api", "POST"),
    ("/api/models/o/paths-info/discussions", "api", "GET HEAD"),
    ("/api/models/o/paths-info/tree/main", "api", "GET HEAD"),
    ("/api/models/o/n/xet-read-token/main", "api", "GET HEAD"),
    ("/api/models/n/XET-read-token/main/", "api", "GET HEAD"),
    ("/api/buckets/o/n/xet-read-token", "api", "GET HEAD"),
    ("/api/buckets/o/n/paths-info", "api", "POST"),
    ("/api/buckets/o/n/tree", "api", "GET HEAD"),
    ("/api/buckets/o/n/tree/a%2Fb", "api", "GET HEAD"),
    ("/api/models/o/n/xet-write-token/main", "api", "GET HEAD"),
    # the CAS
    (f"/v1/reconstructions/{HASH}", "reconstruction", "GET"),
    (f"/v2/reconstructions/{HASH}", "reconstruction", "GET"),
    (f"/reconstructions/{HASH}", "reconstruction", "GET"),
    ("/v1/reconstructions", "reconstruction", "GET POST"),
    (f"/reconstructions?file_id={HASH}", "reconstruction", "GET POST"),
    (f"/v1/files/{HASH}", "reconstruction", "HEAD"),
    ("/v1/telemetry", "reconstruction", "POST"),
    (f"/xorbs/{HASH}?grant=x", "xorb", "GET HEAD"),
]  # fmt: skip

# Path, status, route: whatever the method.
REFUSED = [
    ("/nothing", 404, "other"),
    ("//", 404, "other"),
    ("/health/", 404, "other"),
    ("/Health", 404, "other"),
    ("/api", 404, "other"),
    ("/o/n", 404, "other"),
    ("/o/n/blob/main", 404, "other"),
    ("/o/n/blob/main/%zz", 400, "link"),
    ("/o/n/resolve/main", 404, "other"),
    ("/a/b/c/resolve/main/a", 404, "other"),
    ("/o/n/%72esolve/main/a", 404, "other"),
    ("/download", 404, "other"),
    ("/download/o/n", 404, "other"),
    (f"/download-hash/{HASH}/a", 404, "other"),
    ("/v2", 404, "other"),
    ("/v2/reconstructions", 404, "other"),
    ("/v1/reconstructions/", 404, "other"),
    ("/v1/files/", 404, "other"),
    ("/xorbs/", 404, "other"),
    ("/v2/o/n/tags/list", 404, "other"),
    (f"/a/o/n.git/info/lfs/objects/{HASH}", 404, "other"),
    ("/%", 400, "other"),
    ("/nothing/..", 400, "other"),
    ("//resolve/main/a", 404, "resolve"),
    ("/o/-n/resolve/main/a", 404, "resolve"),
    ("/o/n/resolve/main/", 404, "resolve"),
    ("/o/n/resolve/main/a//b", 404, "resolve"),
    ("/o/n/resolve//a", 400, "resolve"),
    ("/o/n/resolve/main/a%2F..%2Fb", 400, "resolve"),
    ("/a%2Fo%2Fn/resolve/main/a", 404, "resolve"),
    ("/o/n/resolve/main/../a", 400, "resolve"),
    ("/o/n/resolve/a%2F..%2Fb/a", 400, "resolve"),
    ("/buckets/o/n/resolve/a%2F..%2Fb", 400, "resolve"),
    ("/buckets/o/n/resolve/%2Fa", 404, "resolve"),
    ("/buckets/n/resolve/a", 404, "other"),
    ("/o/n/raw/main/a//b", 400, "raw"),
    ("/o/n/raw/main/%00", 400, "raw"),
    ("/download/o/../a", 400, "download"),
    ("/download/o/n/%zz", 400, "download"),
    ("/.git/info/lfs/objects/batch", 404, "lfs"),
    ("/o/-n.git/info/lfs/objects/batch", 404, "lfs"),
    ("/v2/-o/n/manifests/Q4", 404, "registry"),
    ("/v2/o/n/manifests/a%2Fb", 400, "registry"),
    ("/api//models", 400, "api"),
    ("/api/models//settings", 400, "manage"),
    ("/api/models/o/../settings", 400, "manage"),
    ("/api/models/o/n/xet-read-token/%zz", 400, "api"),
]


def get_allow(response: Response) -> str | None:
    return Headers(response.headers).get("allow")


@pytest.mark.parametrize(("path", "name", "methods"), PATHS)
async def test_a_path_has_one_route_and_its_methods(path: str, name: str, methods: str) -> None:
    app = RecordingApplication()
    for method in METHODS:
        route, response = await app.ask(method, path, BEARER)
        is_allowed = method in methods.split()
        is_upload = name == "api" and method in ("POST", "PUT", "DELETE", "PATCH")
        refusal = 403 if is_upload else 405
        assert (route, response.status) == (name, 200 if is_allowed else refusal)
        allow = ", ".join([*methods.split(), "OPTIONS"])
        assert get_allow(response) == (None if is_allowed or is_upload else allow)
    for method in NO_METHODS:
        assert (await app.ask(method, path, BEARER))[1].status == 501
    route, response = await app.ask("OPTIONS", path)
    assert (route, response.status, get_allow(response)) == ("options", 204, "GET, HEAD, OPTIONS")
    assert [call.request.method for call in app.calls] == [
        method for method in METHODS if method in methods.split()
    ]


@pytest.mark.parametrize(("path", "status", "name"), REFUSED)
async def test_a_path_that_names_nothing(path: str, status: int, name: str) -> None:
    app = RecordingApplication()
    for method in (*METHODS, *NO_METHODS):
        route, response = await app.ask(method, path, BEARER)
        assert (route, response.status, get_allow(response)) == (name, status, None)
    assert app.calls == []


def test_every_route_is_tested() -> None:
    assert {name for _, name, _ in PATHS} == set(ROUTES) - {"options", "other"}
    assert {TABLE.match(path.partition("?")[0])[0] for path, _, _ in PATHS} == set(TABLE.routes)


# Rows


def make_samples(pattern: str) -> Iterator[str]:
    """Yield a path for each way to read a pattern."""
    choice = re.search(r"\[([^]]*)\]|\{([a-z]+(?:\|[a-z]+)+)\}|\{id\+?\}", pattern)
    if choice is None:
        values = {"commit": COMMIT, "path": "d/resolve", "revision": "r"}
        path = re.sub(r"\{(\w+)[^}]*\}", lambda found: values.get(found[1], found[1]), pattern)
        yield path.replace("/...", "/models/o/n")
        return
    either = ["o/n", "n"]
    if choice[1] is not None:
        either = ["", *choice[1].split("|")]
    elif choice[2] is not None:
        either = choice[2].split("|")
    for text in either:
        yield from make_samples(pattern[: choice.start()] + text + pattern[choice.end() :])


@pytest.mark.parametrize("route", TABLE.routes, ids=lambda route: route.pattern)
def test_no_row_hides_another(route: Route[object]) -> None:
    for path in make_samples(route.pattern):
        assert TABLE.match(path)[0].pattern == route.pattern, path


def test_native_paths_are_for_servers_with_native_clients() -> None:
    plain = {route.pattern for route in make_table(is_native=False).routes}
    native = {route.pattern: route.name for route in TABLE.routes}
    assert {native[pattern] for pattern in native.keys() - plain} == {"reconstruction", "xorb"}
    assert plain < native.keys()


def test_middleware_knows_paths_of_the_table() -> None:
    assert {TABLE.match(path)[0].name for path in EXEMPT | PROBES} == {
        "health", "ready", "metrics", "status",
    }  # fmt: skip


async def test_answers_depend_on_the_client_where_some_are_native() -> None:
    for is_native, path, expected in (
        (True, "/o/n/resolve/main/a", "User-Agent, Accept"),
        (True, "/download/o/n/a", None),
        (False, "/o/n/resolve/main/a", None),
    ):
        _, response = await RecordingApplication(is_native=is_native).ask("GET", path, BEARER)
        assert Headers(response.headers).get("vary") == expected


# Tokens


def find_path(auth: Auth) -> tuple[str, str]:
    """A method and a path with this authentication."""
    route = next(route for route in TABLE.routes if route.auth is auth)
    return route.methods.split()[0], next(make_samples(route.pattern))


@pytest.mark.parametrize(
    ("auth", "without", "bearer", "basic", "malformed"),
    [
        (Auth.NONE, None, None, None, None),
        (Auth.CAS, None, None, None, None),
        (Auth.OPERATOR, None, None, None, None),
        (Auth.OPTIONAL, None, "hf_token", 401, 401),
        (Auth.BASIC, None, "hf_token", "hf_token", 401),
        (Auth.REQUIRED, 401, "hf_token", 401, 401),
    ],
)
async def test_which_token_a_handler_gets(
    auth: Auth,
    without: str | int | None,
    bearer: str | int | None,
    basic: str | int | None,
    malformed: str | int | None,
) -> None:
    method, path = find_path(auth)
    for fields, expected in (
        ((), without), ((BEARER,), bearer), ((BASIC,), basic), ((MALFORMED,), malformed)
    ):  # fmt: skip
        app = RecordingApplication()
        _, response = await app.ask(method, path, *fields)
        if expected == 401:
            assert (response.status, app.calls) == (401, [])
        else:
            assert [call.token for call in app.calls] == [expected]


@pytest.mark.parametrize("path", ["/download/o/n/a", f"/download-hash/{HASH}"])
async def test_anonymous_downloads_are_a_setting(path: str) -> None:
    assert (await RecordingApplication().ask("GET", path))[1].status == 401
    app = RecordingApplication(allow_anonymous=True)
    assert (await app.ask("GET", path))[1].status == 200


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        pytest.param("PUT", "/download/o/n/%", (MALFORMED,), 401, id="a malformed token"),
        pytest.param("PUT", "/download/o/n/%", (), 400, id="a malformed path"),
        pytest.param("PUT", "/download/o/n/a", (), 405, id="a wrong method"),
        pytest.param("GET", "/download/o/n/a", (), 401, id="a missing token"),
        pytest.param("GET", "/download/o/n/a", (BEARER,), 200, id="nothing"),
    ],
)
async def test_what_is_refused_first(
    method: str, path: str, fields: tuple[tuple[str, str], ...], status: int
) -> None:
    assert (await RecordingApplication().ask(method, path, *fields))[1].status == status


async def test_git_lfs_is_refused_in_its_own_words() -> None:
    _, response = await RecordingApplication().ask("GET", "/o/n.git/info/lfs/objects/batch")
    assert Headers(response.headers).get("content-type") == "application/vnd.git-lfs+json"
    assert response.body == b'{"message": "this path allows only POST, OPTIONS"}\n'
