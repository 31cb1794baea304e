"""The whole application on sockets: raw clients, a scripted Hub, CAS and data host."""

import asyncio
import json
import logging

import pytest

from tests.app.world import CAS_TOKEN, CONTENT, NAME, SIGNATURE, TOKEN, XORB, World, ask
from tests.peers import Answer, http_answer
from tests.waiting import PATIENCE, until
from xetserve.http.hosts import HostPolicy


class TestHosts:
    @pytest.mark.parametrize(
        ("target", "method", "status"),
        [
            ("/download/o/n/a.bin", "GET", 421),
            ("/api/models/o/n", "GET", 421),
            ("/xorbs/x?grant=y", "GET", 421),
            ("/", "GET", 421),
            ("/", "OPTIONS", 421),
            ("/operator", "POST", 421),
            ("/health", "GET", 200),
            ("/ready", "GET", 200),
        ],
    )
    async def test_another_name_gets_nothing_but_probes(
        self, target: str, method: str, status: int
    ) -> None:
        world = World()
        async with world.run(hosts=HostPolicy(("other.test",))) as client:
            assert (await ask(client, target, method=method))[0] == status
        assert world.hub.requests == []

    async def test_our_own_name_gets_all(self) -> None:
        world = World()
        async with world.run(hosts=HostPolicy(("files.test",))) as client:
            assert (await ask(client, "/download/o/n/a.bin"))[2] == CONTENT


class TestDownloads:
    async def test_a_file_and_every_secret_where_it_belongs(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        world = World()
        async with world.run() as client:
            status, headers, body = await ask(client, "/download/o/n/d/a.bin?revision=dev")
            assert (status, body) == (200, CONTENT)
            assert headers["transfer-encoding"] == "chunked"
            assert [r.get("authorization") for r in world.hub.requests] == [f"Bearer {TOKEN}"] * 2
            assert {r.get("authorization") for r in world.cas.requests} == {f"Bearer {CAS_TOKEN}"}
            assert {r.get("authorization") for r in world.data.requests} == {None}
            assert {r.path for r in world.data.requests} == {"/xorb"}
            assert TOKEN.encode() not in world.cas.received + world.data.received
            assert CAS_TOKEN.encode() not in world.hub.received + world.data.received
            answer = repr(headers)
        for secret in (TOKEN, CAS_TOKEN, SIGNATURE):
            assert secret not in caplog.text
            assert secret not in answer

    async def test_several_on_one_connection(self) -> None:
        world = World()
        async with world.run() as client:
            for _ in range(3):
                assert (await ask(client, "/download/o/n/a.bin"))[2] == CONTENT
                part = await ask(client, "/download/o/n/a.bin", "Range: bytes=5-9")
                assert (part[0], part[2]) == (206, CONTENT[5:10])
                head = await ask(client, "/download/o/n/a.bin", method="HEAD")
                assert (head[0], head[1]["content-length"]) == (200, str(len(CONTENT)))
            assert (await ask(client, f"/download-hash/{NAME}"))[2] == CONTENT

    async def test_a_hash_without_a_repository_names_the_one_that_was_asked(self) -> None:
        world = World({"cas": http_answer(404)})
        async with world.run() as client:
            status, headers, body = await ask(client, f"/download-hash/{NAME}")
            assert (status, headers["cache-control"]) == (404, "no-store")
            message = json.loads(body)["error"]
            assert "; the read token was that of hash/repo (hash_repo): name another" in message
            status, _, body = await ask(client, f"/download-hash/{NAME}?repo=a/b")
            assert status == 404
            assert b"hash_repo" not in body

    async def test_http_1_0_gets_a_length(self) -> None:
        world = World()
        async with world.run() as client:
            await client.send(
                f"GET /download/o/n/a HTTP/1.0\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
            )
            status, headers, body = await client.read_answer()
            assert (status, headers["content-length"], body) == (200, str(len(CONTENT)), CONTENT)
            assert await client.read_end() == (b"", "closed")

    async def test_a_range_past_the_end_is_416(self) -> None:
        world = World()
        async with world.run() as client:
            status, headers, _ = await ask(client, "/download/o/n/a", "Range: bytes=99999999-")
            assert (status, headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")

    async def test_damage_is_never_a_whole_answer(self) -> None:
        records = bytearray(b"".join(XORB.records))
        records[-1] ^= 1
        world = World({"data": http_answer(206, bytes(records))})
        async with world.run() as client:
            try:
                status, _, _ = await ask(client, "/download/o/n/a.bin")
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            assert status == 502

    async def test_a_client_that_leaves_releases_everything(self) -> None:
        world = World({"data": "stall"})
        async with world.run() as client:
            head = f"GET /download/o/n/a HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}"
            await client.send(f"{head}\r\n\r\n".encode())
            await until(lambda: bool(world.data.requests))
            client.reset()
            await asyncio.wait_for(world.data.wires[0].ended.wait(), PATIENCE)


class TestErrors:
    @pytest.mark.parametrize(
        ("where", "answer", "status"),
        [
            ("resolve", http_answer(401), 401),
            ("resolve", http_answer(403), 403),
            ("resolve", http_answer(404), 404),
            ("resolve", http_answer(429, b"", "Retry-After: 60"), 429),
            ("resolve", http_answer(500), 502),
            ("resolve", http_answer(503), 503),
            ("resolve", http_answer(504), 504),
            ("resolve", http_answer(508), 508),
            ("resolve", http_answer(400), 502),
            ("resolve", "reset", 502),
            ("resolve", b"nonsense\r\n\r\n", 502),
            ("token", http_answer(403), 403),
            ("token", http_answer(200, b"{}"), 502),
            ("token", http_answer(200, b'{"casUrl":"http://[","accessToken":"t","exp":1}'), 502),
            ("token", http_answer(200, b'{"casUrl":"http://a..b","accessToken":"t","exp":1}'), 502),
            ("token", http_answer(200, b'{"casUrl":"http://c","accessToken":"\\n","exp":1}'), 502),
            ("cas", http_answer(401), 401),
            ("cas", http_answer(404), 404),
            ("cas", http_answer(416), 502),
            ("cas", http_answer(500), 502),
            ("cas", http_answer(501), 502),
            ("cas", http_answer(302, b"", "Location: http://127.0.0.1:1/"), 502),
            ("cas", http_answer(200, b'{"terms":'), 502),
            ("cas", http_answer(200, b'{"terms":[],"xorbs":{}}'), 502),
            ("cas", "close", 502),
            ("data", http_answer(403), 502),
            ("data", http_answer(404), 502),
            ("data", http_answer(500), 502),
            ("data", http_answer(503), 503),
            ("data", http_answer(206, b"short"), 502),
            ("data", http_answer(206, bytes(len(b"".join(XORB.records)))), 502),
            ("data", "reset", 502),
        ],
    )  # fmt: skip
    async def test_before_the_head_they_have_a_status_and_json(
        self, where: str, answer: Answer, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        world = World({where: answer})
        async with world.run() as client:
            for _ in range(2):  # and the connection goes on
                found, headers, body = await ask(client, "/download/o/n/a.bin")
                assert found == status
                assert headers["content-type"] == "application/json"
                assert set(json.loads(body)) == {"error"}
                text = repr(headers) + body.decode()
                for secret in (TOKEN, CAS_TOKEN, SIGNATURE, "127.0.0.1"):
                    assert secret not in text
            assert ("www-authenticate" in headers) == (status == 401)
        for secret in (TOKEN, CAS_TOKEN, SIGNATURE):
            assert secret not in caplog.text

    async def test_the_hubs_words_are_passed_on(self) -> None:
        answer = http_answer(
            404, b"", "X-Error-Code: RepoNotFound", "X-Error-Message: Repository \xe9 not found"
        )
        async with World({"resolve": answer}).run() as client:
            status, headers, body = await ask(client, "/download/o/n/a.bin")
            assert (status, headers["x-error-code"]) == (404, "RepoNotFound")
            assert json.loads(body) == {"error": "Repository é not found"}


class TestRoutes:
    @pytest.mark.parametrize(
        ("method", "target", "status"),
        [
            ("GET", "/", 200),
            ("HEAD", "/", 200),
            ("GET", "/?x=y", 200),
            ("GET", "/health", 200),
            ("HEAD", "/health", 200),
            ("GET", "/healthz", 200),
            ("GET", "/ready", 200),
            ("GET", "/metrics", 200),
            ("HEAD", "/metrics", 200),
            ("GET", "/status", 200),
            ("POST", "/metrics", 405),
            ("POST", "/health", 405),
            ("PUT", "/download/o/n/a", 405),
            ("DELETE", "/download-hash/x", 405),
            ("OPTIONS", "*", 204),
            ("OPTIONS", "/download/o/n/a", 204),
            ("OPTIONS", "/nothing", 204),
            ("GET", "/health/", 404),
            ("GET", "/nothing", 404),
            ("GET", "//", 404),
            ("GET", "/download", 404),
            ("GET", "/download/o/n", 404),
            ("GET", "/download/o/n/", 404),
            ("GET", "/download/o/n/a//b", 404),
            ("GET", "/download-hash/", 400),
            ("GET", "/download-hash/xyz", 400),
            ("GET", "/download-hash/x/y", 404),
            ("GET", "/download/o/n/%0d%0aX-Evil:%20y", 400),
            ("GET", "/download/o/../a", 400),
            ("GET", "/download/o/n/..%2f..%2fetc", 400),
            ("GET", "/%", 400),
        ],
    )
    async def test_statuses(self, method: str, target: str, status: int) -> None:
        async with World().run() as client:
            found, headers, _ = await ask(client, target, method=method)
            assert found == status
            assert "x-evil" not in headers
            assert headers.get("allow") == ("GET, HEAD, OPTIONS" if status in (204, 405) else None)
            assert headers["access-control-allow-origin"] == "*"
            assert headers.get("cache-control") == (None if status == 204 else "no-store")

    @pytest.mark.parametrize("target", ["/download/o/n/a.bin", "/download-hash/" + "0" * 64])
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_without_a_token_nobody_is_asked(self, method: str, target: str) -> None:
        world = World()
        async with world.run() as client:
            status, headers, _ = await ask(client, target, method=method, token=None)
            assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="xetserve"')
            assert world.hub.wires == []

    async def test_anonymous_use_where_it_is_allowed(self) -> None:
        world = World()
        async with world.run(allow_anonymous=True) as client:
            assert (await ask(client, "/download/o/n/a.bin", token=None))[2] == CONTENT
            assert {r.get("authorization") for r in world.hub.requests} == {None}

    @pytest.mark.parametrize("target", ["/", "/download/o/n/a.bin", "/o/n/resolve/main/a.bin"])
    async def test_a_request_that_comes_back_is_not_sent_again(self, target: str) -> None:
        world = World()
        async with world.run() as client:
            status, _, _ = await ask(client, target, "Via: 1.1 xetserve-test, 1.1 other")
            assert (status, world.hub.wires) == (508, [])
            assert (await ask(client, target, "Via: 1.1 other"))[0] == 200
            assert {r.get("via") for r in world.hub.requests} <= {"1.1 other, 1.1 xetserve-test"}

    async def test_health_and_the_page_need_no_token(self) -> None:
        async with World().run() as client:
            assert (await ask(client, "/health", token=None))[0] == 200
            assert (await ask(client, "/", token=None))[0] == 200
