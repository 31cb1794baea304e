"""git's smart HTTP protocol, passed on."""

import asyncio
import base64

import pytest

from tests.app.world import TOKEN, World, ask, send
from tests.peers import RESET, Answer, ScriptedPeer, Wire, http_answer, http_head
from tests.waiting import PATIENCE, until
from xetserve import __version__
from xetserve.app.hub.git_http import WHOLE_SIZE
from xetserve.app.hub.writes import UPLOADS_REFUSED

REFS = "/o/n/info/refs?service=git-upload-pack"
PACK = "/datasets/o/n.git/git-upload-pack"
ADVERTISED = "Content-Type: application/x-git-upload-pack-advertisement"
RESULT = "Content-Type: application/x-git-upload-pack-result"


async def test_what_the_hub_is_asked_for_refs() -> None:
    world = World({"hub": http_answer(200, b"001e#", ADVERTISED, "Cache-Control: no-cache")})
    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    async with world.run() as client:
        status, headers, body = await ask(
            client, REFS, "User-Agent: git/2.39.5", "Accept: */*", "Git-Protocol: version=2",
            "Accept-Encoding: deflate, gzip", "Pragma: no-cache", f"Authorization: Basic {basic}",
            token=None,
        )  # fmt: skip
    assert (status, body) == (200, b"001e#")
    assert headers["content-type"] == "application/x-git-upload-pack-advertisement"
    assert headers["cache-control"] == "no-cache"
    (request,) = world.hub.requests
    assert (request.method, request.target) == ("GET", REFS)
    assert dict(request.headers) == {
        "host": f"127.0.0.1:{world.hub.port}",
        "accept": "*/*",
        "git-protocol": "version=2",
        "accept-encoding": "identity",
        "user-agent": f"xetserve/{__version__} git/2.39.5",
        "via": "1.1 xetserve-test",
        "authorization": f"Bearer {TOKEN}",
    }


async def test_only_the_checked_service_is_asked_for() -> None:
    world = World({"hub": http_answer(200, b"001e#", ADVERTISED)})
    path = "/o/n/info/refs?service=git-receive-pack&x=1&service=git-upload-pack"
    async with world.run() as client:
        assert (await ask(client, path))[0] == 200
    assert [request.target for request in world.hub.requests] == [REFS]


async def test_a_small_request_is_sent_again() -> None:
    answers: list[Answer] = [RESET, http_answer(503), http_answer(200, b"PACK", RESULT)]
    world = World({"hub": lambda request: answers.pop(0)})
    async with world.run() as client:
        fields = ("Content-Type: application/x-git-upload-pack-request", "Content-Encoding: gzip")
        status, _, body = await send(client, "POST", PACK, b"0032want", *fields)
    assert (status, body) == (200, b"PACK")
    assert [request.body for request in world.hub.requests] == [b"0032want"] * 3
    assert {request.get("content-encoding") for request in world.hub.requests} == {"gzip"}


@pytest.mark.parametrize("way", ["chunked", "length"])
async def test_a_large_request_and_its_answer_are_streamed(way: str) -> None:
    part = b"w" * (WHOLE_SIZE + 1)
    has_first = asyncio.Event()

    async def play(wire: Wire) -> None:
        head = await wire.reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        got = b""
        while size := int(await wire.reader.readline(), 16):
            got += (await wire.reader.readexactly(size + 2))[:-2]
            if got == part:
                has_first.set()
        assert got == part + b"0009done\n"
        await wire.reader.readline()
        await wire.send(http_head(200, RESULT, "Transfer-Encoding: chunked"))
        await wire.send(b"4\r\nPACK\r\n")
        await answer_read.wait()
        await wire.send(b"0\r\n\r\n")

    answer_read = asyncio.Event()
    world = World()
    world.hub = ScriptedPeer(play)
    async with world.run() as client:
        size = len(part) + 9
        framing = "Transfer-Encoding: chunked" if way == "chunked" else f"Content-Length: {size}"
        await client.send(f"POST {PACK} HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode())
        for piece in (part, b"0009done\n"):
            data = b"%x\r\n%b\r\n" % (len(piece), piece) if way == "chunked" else piece
            await client.send(data)
            await asyncio.wait_for(has_first.wait(), PATIENCE)
        if way == "chunked":
            await client.send(b"0\r\n\r\n")
        await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert await client.reader.readexactly(9) == b"4\r\nPACK\r\n"
        answer_read.set()
        assert await client.reader.readexactly(5) == b"0\r\n\r\n"
        assert (await ask(client, "/health"))[0] == 200


async def test_a_client_that_leaves_within_its_request() -> None:
    world = World()
    world.hub = ScriptedPeer(Wire.wait_end)  # type: ignore[arg-type]
    async with world.run() as client:
        await client.send(
            f"POST {PACK} HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n".encode()
            + b"w" * (WHOLE_SIZE + 1)
        )
        await until(lambda: world.hub.wires and world.hub.wires[0].received)
        client.reset()
        await asyncio.wait_for(world.hub.wires[0].ended.wait(), PATIENCE)


async def test_a_pack_that_breaks_off_looks_broken() -> None:
    async def play(wire: Wire) -> None:
        await wire.read_request()
        await wire.send(http_head(200, RESULT, "Transfer-Encoding: chunked") + b"4\r\nPACK\r\n")
        wire.reset()

    world = World()
    world.hub = ScriptedPeer(play)
    async with world.run() as client:
        await client.send(f"POST {PACK} HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n0".encode())
        assert (await client.read_end())[1] == "reset"


@pytest.mark.parametrize(
    ("status", "answer", "text"),
    [
        (401, http_answer(401, b"no\n", "Content-Type: text/plain"), "no"),
        (401, http_answer(401, b"", 'WWW-Authenticate: Bearer realm="hub"'),
         "the Hub answered 401"),
        (403, http_answer(403, b'{"error":"gated"}', "Content-Type: application/json"), "gated"),
        (404, http_answer(404, b"<html>", "X-Error-Message: Repository not found"),
         "Repository not found"),
        (503, http_answer(503), "the Hub answered 503"),
    ],
)  # fmt: skip
async def test_the_hubs_refusals_are_texts_that_git_prints(
    status: int, answer: bytes, text: str
) -> None:
    world = World({"hub": answer})
    async with world.run() as client:
        found, headers, body = await ask(client, REFS)
    assert (found, body.decode()) == (status, f"{text}\n")
    assert headers["content-type"] == "text/plain; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    challenge = 'Basic realm="xetserve"' if status == 401 else None
    assert headers.get("www-authenticate") == challenge


async def test_a_redirect_is_for_git() -> None:
    world = World()
    world.answers["hub"] = lambda request: http_answer(
        307, b"", f"Location: {world.hub.base}/o/new/info/refs?service=git-upload-pack"
    )
    async with world.run() as client:
        status, headers, _ = await ask(client, REFS)
    assert (status, len(world.hub.requests)) == (307, 1)
    assert headers["location"] == "http://files.test/o/new/info/refs?service=git-upload-pack"


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/o/n/info/refs?service=git-receive-pack", 403, UPLOADS_REFUSED),
        ("POST", "/o/n.git/git-receive-pack", 403, UPLOADS_REFUSED),
        ("GET", "/o/n/info/refs", 400, "use git 1.6.6 or later"),
        ("GET", "/o/n/git-upload-pack", 405, "allows only POST"),
    ],
)
async def test_what_the_hub_is_not_asked(method: str, path: str, status: int, text: str) -> None:
    world = World()
    async with world.run() as client:
        found, headers, body = await ask(client, path, method=method)
    assert (found, headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert text in body.decode()
    assert world.hub.wires == []
