"""What ollama asks for, from a scripted Hub."""

import hashlib
import json

import pytest

from tests.app.hub.lfs_world import SHA, make_world
from tests.app.world import CONTENT, TOKEN, World, ask
from tests.peers import Answer, Received, http_answer

MANIFEST = "/v2/o/n/manifests/Q4_K_M"
BLOB = f"/v2/o/n/blobs/sha256:{SHA}"
TEMPLATE = b"{{ .Prompt }}"
TEMPLATE_SHA = hashlib.sha256(TEMPLATE).hexdigest()


async def test_a_manifest_is_passed_on_as_it_is() -> None:
    text = b'{"schemaVersion":2, "xetHash": "0"}'
    media_type = "application/vnd.docker.distribution.manifest.v2+json"
    world = World({"hub": http_answer(200, text, f"Content-Type: {media_type}")})
    async with world.run() as client:
        status, headers, body = await ask(client, MANIFEST, f"Accept: {media_type}")
    assert (status, body, headers["content-type"]) == (200, text, media_type)
    (request,) = world.hub.requests
    assert (request.target, request.get("accept")) == (MANIFEST, media_type)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_there_is_a_registry(method: str) -> None:
    world = World()
    async with world.run() as client:
        status, headers, body = await ask(client, "/v2/", method=method, token=None)
    assert (status, headers["docker-distribution-api-version"]) == (200, "registry/2.0")
    assert body == (b"{}\n" if method == "GET" else b"")
    assert world.hub.requests == []


@pytest.mark.parametrize("path", [BLOB, BLOB.replace(":", "%3A")])
async def test_a_blob_comes_from_the_cas(path: str) -> None:
    world = make_world()
    async with world.run() as client:
        status, headers, body = await ask(client, path)
        assert (status, body, headers["etag"]) == (200, CONTENT, f'"{SHA}"')
        status, headers, _ = await ask(client, path, method="HEAD")
        assert (status, headers["content-length"]) == (200, str(len(CONTENT)))
        assert headers["accept-ranges"] == "bytes"
        status, headers, body = await ask(client, path, "Range: bytes=10-19")
        assert (status, body) == (206, CONTENT[10:20])
    assert "/blobs/" not in "".join(request.target for request in world.hub.requests)


def with_template(world: World, *fields: str) -> World:
    """Let the Hub have a blob that is no file."""
    others = world.answers["hub"]
    assert callable(others)

    def hub(request: Received) -> Answer:
        if "/blobs/" not in request.path:
            return others(request)
        if fields:
            return http_answer(307, b"", *(f.replace("{data}", world.data.base) for f in fields))
        return http_answer(200, TEMPLATE, 'ETag: "x"')

    world.answers["hub"] = hub
    return world


async def test_what_is_no_file_comes_from_the_hub() -> None:
    world = with_template(make_world())
    path = f"/v2/o/n/blobs/sha256:{TEMPLATE_SHA}"
    async with world.run() as client:
        status, headers, body = await ask(client, path)
    assert (status, body) == (200, TEMPLATE)
    assert headers["etag"] == f'"{TEMPLATE_SHA}"'
    assert headers["content-length"] == str(len(TEMPLATE))


async def test_what_the_hub_redirects_to_comes_from_here_without_the_token() -> None:
    world = with_template(make_world(), "Location: {data}/b?sig")

    def data(request: Received) -> Answer:
        if request.get("range") is not None:
            return http_answer(206, TEMPLATE[:1], f"Content-Range: bytes 0-0/{len(TEMPLATE)}")
        return http_answer(200, TEMPLATE)

    world.answers["data"] = data
    path = f"/v2/o/n/blobs/sha256:{TEMPLATE_SHA}"
    async with world.run() as client:
        status, headers, _ = await ask(client, path, method="HEAD")
        assert (status, headers["content-length"]) == (200, str(len(TEMPLATE)))
        status, _, body = await ask(client, path)
        assert (status, body) == (200, TEMPLATE)
    assert {request.get("authorization") for request in world.data.requests} == {None}


async def test_what_is_not_what_it_is_called_is_no_whole_answer() -> None:
    world = with_template(make_world())
    async with world.run() as client:
        assert (await ask(client, f"/v2/o/n/blobs/sha256:{'0' * 64}"))[0] == 502


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/o/n/blobs/md5:00", 404),
        ("GET", f"/v2/o/n/blobs/{SHA}", 404),
        ("GET", f"/v2/o/n/blobs/sha256:{SHA.upper()}", 404),
        ("GET", "/v2/o/../manifests/x", 400),
        ("GET", "/v2/-o/n/manifests/x", 404),
        ("POST", MANIFEST, 405),
        ("DELETE", BLOB, 405),
        ("GET", "/v2/o/n/tags/list", 404),
        ("POST", "/v2/", 405),
        ("GET", "/v2", 404),
    ],
)
async def test_what_the_hub_is_not_asked(method: str, path: str, status: int) -> None:
    world = make_world()
    async with world.run() as client:
        found, _, body = await ask(client, path, method=method)
        assert found == status
        assert json.loads(body)["error"]
    assert world.hub.wires == []


async def test_a_stranger_gets_nothing() -> None:
    world = World({"hub": http_answer(401, b"", "X-Error-Code: RepoNotFound")})
    async with world.run() as client:
        for path in (MANIFEST, BLOB):
            assert (await ask(client, path, token=TOKEN))[0] == 401
