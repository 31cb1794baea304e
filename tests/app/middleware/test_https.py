"""What is said without TLS."""

from pathlib import Path

import pytest

from xetserve.app.middleware.https import MAX_CHALLENGE, Redirect, insist_on_https
from xetserve.http.hosts import HostPolicy
from xetserve.http.messages import Headers, Request, Response


def request(target: str = "/", host: str | None = "a.example", method: str = "GET") -> Request:
    fields = [] if host is None else [("host", host)]
    return Request(method, target, Headers(fields))


def location(response: Response) -> str | None:
    return Headers(response.headers).get("location")


@pytest.mark.parametrize(
    ("port", "host", "expected"),
    [
        (443, "a.example", "https://a.example/x?y=%20"),
        (8443, "a.example", "https://a.example:8443/x?y=%20"),
        (443, "a.example:80", "https://a.example/x?y=%20"),
        (443, "a.example:", "https://a.example/x?y=%20"),
        (8443, "[2001:db8::1]:80", "https://[2001:db8::1]:8443/x?y=%20"),
        (443, "[2001:db8::1]", "https://[2001:db8::1]/x?y=%20"),
    ],
)
async def test_host_and_path_stay(port: int, host: str, expected: str) -> None:
    response = await Redirect(port).handle(request("/x?y=%20", host))
    assert (response.status, location(response)) == (308, expected)


async def test_what_a_proxy_has_removed_from_the_path_comes_back() -> None:
    asked = request("/x")
    asked.prefix = "/hf"
    assert location(await Redirect(443).handle(asked)) == "https://a.example/hf/x"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
async def test_every_method_is_redirected(method: str) -> None:
    response = await Redirect(443).handle(request(method=method))
    assert (response.status, location(response)) == (308, "https://a.example/")


@pytest.mark.parametrize("host", [None, "", ":80"])
async def test_without_a_host_there_is_nowhere_to_go(host: str | None) -> None:
    assert (await Redirect(443).handle(request(host=host))).status == 400


async def test_another_name_is_not_redirected() -> None:
    redirect = Redirect(443, hosts=HostPolicy(("a.example",)))
    assert (await redirect.handle(request(host="evil.example"))).status == 421
    assert (await redirect.handle(request(host="a.example"))).status == 308


async def test_a_server_as_a_whole_has_no_place_elsewhere() -> None:
    assert (await Redirect(443).handle(request("*", method="OPTIONS"))).status == 404


async def test_nothing_is_redirected_before_there_is_a_certificate(tmp_path: Path) -> None:
    folder = tmp_path / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    (folder / "token").write_text("token.thumbprint")
    redirect = Redirect(443, tmp_path, HostPolicy(("a.example",)), lambda: False)
    response = await redirect.handle(request("/x"))
    assert (response.status, location(response)) == (503, None)
    assert ("Retry-After", "5") in response.headers
    assert (await redirect.handle(request(host="evil.example"))).status == 421
    response = await redirect.handle(request("/.well-known/acme-challenge/token"))
    assert (response.status, response.body) == (200, b"token.thumbprint")


async def test_challenges_are_redirected_without_a_folder() -> None:
    response = await Redirect(443).handle(request("/.well-known/acme-challenge/x"))
    assert response.status == 308


@pytest.fixture
def challenges(tmp_path: Path) -> Path:
    folder = tmp_path / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("size", [0, 87, MAX_CHALLENGE])
async def test_a_challenge_is_answered(challenges: Path, tmp_path: Path, size: int) -> None:
    (challenges / "a-B_9").write_bytes(b"x" * size)
    redirect = Redirect(443, tmp_path)
    response = await redirect.handle(request("/.well-known/acme-challenge/a-B_9", None))
    assert (response.status, response.body) == (200, b"x" * size)
    response = await redirect.handle(request("/.well-known/other"))
    assert response.status == 308


async def test_a_challenge_that_is_too_large_is_none(challenges: Path, tmp_path: Path) -> None:
    (challenges / "large").write_bytes(bytes(MAX_CHALLENGE + 1))
    response = await Redirect(443, tmp_path).handle(request("/.well-known/acme-challenge/large"))
    assert response.status == 404


@pytest.mark.parametrize("which", ["token", "acme-challenge", ".well-known"])
async def test_links_are_not_followed(tmp_path: Path, which: str) -> None:
    outside = tmp_path / "outside" / ".well-known" / "acme-challenge"
    outside.mkdir(parents=True)
    (outside / "token").write_text("secret")
    inside = tmp_path / "inside" / ".well-known" / "acme-challenge"
    at = {"token": inside / "token", "acme-challenge": inside, ".well-known": inside.parent}[which]
    target = {"token": outside / "token", "acme-challenge": outside, ".well-known": outside.parent}
    at.parent.mkdir(parents=True)
    at.symlink_to(target[which])
    assert (inside / "token").read_text() == "secret"
    redirect = Redirect(443, tmp_path / "inside")
    assert (await redirect.handle(request("/.well-known/acme-challenge/token"))).status == 404


async def test_the_folder_itself_may_be_a_link(challenges: Path, tmp_path: Path) -> None:
    (challenges / "token").write_text("answer")
    (tmp_path / "link").symlink_to(tmp_path)
    redirect = Redirect(443, tmp_path / "link")
    response = await redirect.handle(request("/.well-known/acme-challenge/token"))
    assert (response.status, response.body) == (200, b"answer")


@pytest.mark.parametrize(
    ("secure", "max_age", "expected"),
    [(True, 60, "max-age=60"), (True, 0, None), (False, 60, None)],
)
async def test_https_is_insisted_on_where_it_is_spoken(
    secure: bool, max_age: int, expected: str | None
) -> None:
    async def handle(request: Request) -> Response:
        return Response(404)

    asked = request()
    asked.secure = secure
    response = await insist_on_https(handle, lambda: max_age)(asked)
    assert Headers(response.headers).get("strict-transport-security") == expected
