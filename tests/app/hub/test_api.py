"""The Hub's own URLs: what Hub clients get from us, and what the Hub is asked."""

import asyncio

import pytest

from tests.app.world import CONTENT, TOKEN, XORB, World, ask
from tests.peers import Answer, Received, http_answer
from xetserve import __version__

COMMIT = "c" * 40
SHA = "e" * 64
PLAIN = b"plain text"
OID = "5f39e3a1cd98b9b0e1d9c8e8d8f0c1d8f9a0b1c2"
URL = "/o/n/resolve/main/d/a%20%C3%BC.bin"


def assert_nothing_of_xet(headers: dict[str, str], body: bytes = b"") -> None:
    assert not [name for name in headers if name.startswith("x-xet")]
    assert "xet" not in headers.get("link", "") + headers.get("trailer", "")
    assert b"xetHash" not in body


class TestFiles:
    @pytest.mark.parametrize("token", [TOKEN, None])
    async def test_a_xet_file_comes_from_here_with_a_length(self, token: str | None) -> None:
        world = World()
        async with world.run() as client:
            status, headers, body = await ask(client, URL, "User-Agent: hf_hub/2", token=token)
            assert (status, body) == (200, CONTENT)
            assert headers["content-length"] == headers["x-linked-size"] == str(len(CONTENT))
            assert headers["etag"] == headers["x-linked-etag"] == f'"{SHA}"'
            assert headers["accept-ranges"] == "bytes"
            assert headers["content-disposition"] == (
                "inline; filename=\"a _.bin\"; filename*=UTF-8''a%20%C3%BC.bin"
            )
            assert headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert_nothing_of_xet(headers)
            assert {r.get("user-agent") for r in world.hub.requests} == {
                f"xetserve/{__version__} hf_hub/2"
            }
            for others in (world.cas.requests, world.data.requests):
                assert {r.get("user-agent") for r in others} == {f"xetserve/{__version__}"}
                assert {r.get("via") for r in others} == {None}
            assert {r.get("authorization") for r in world.hub.requests} == {
                None if token is None else f"Bearer {token}"
            }
            assert world.hub.requests[0].target == URL

    async def test_head_gives_the_fields_of_get(self) -> None:
        async with World().run() as client:
            _, of_get, _ = await ask(client, URL)
            status, of_head, _ = await ask(client, URL, method="HEAD")
            assert status == 200
            for headers in (of_get, of_head):
                del headers["x-request-id"], headers["date"]
            assert of_head == of_get

    async def test_a_part_at_once(self) -> None:
        async with World().run() as client:
            status, headers, body = await ask(client, URL, "Range: bytes=0-0")
            assert (status, body) == (206, CONTENT[:1])
            assert headers["content-range"] == f"bytes 0-0/{len(CONTENT)}"
            assert headers["etag"] == f'"{SHA}"'
            assert_nothing_of_xet(headers)

    @pytest.mark.parametrize("wanted", ["bytes=0-0", "bytes=0-", "bytes=0-100000"])
    async def test_a_part_of_nothing_tells_its_size(self, wanted: str) -> None:
        """hf-hub and the JavaScript client ask so for sizes, take no 416, and read what is behind
        the slash.
        """
        empty = http_answer(200, b"", f'ETag: "{OID}"', f"X-Repo-Commit: {COMMIT}")
        async with World({"hub": empty}).run() as client:
            status, headers, body = await ask(client, URL, f"Range: {wanted}")
            assert (status, body, headers["content-length"]) == (200, b"", "0")
            assert headers["content-range"] == "bytes */0"
            assert headers["x-repo-commit"] == COMMIT
            status, headers, _ = await ask(client, URL, "Range: bytes=1-")
            assert (status, headers["content-range"]) == (416, "bytes */0")

    async def test_it_is_not_coded(self) -> None:
        async with World().run() as client:
            _, headers, body = await ask(client, URL, "Accept-Encoding: gzip, zstd")
            assert "content-encoding" not in headers
            assert (headers["content-length"], body) == (str(len(CONTENT)), CONTENT)

    async def test_to_be_saved(self) -> None:
        async with World().run() as client:
            _, headers, _ = await ask(client, f"{URL}?download=true", method="HEAD")
            assert headers["content-disposition"].startswith("attachment; ")

    async def test_damage_is_never_a_whole_answer(self) -> None:
        damaged = bytearray(b"".join(XORB.records))
        damaged[-1] ^= 1
        world = World({"data": http_answer(206, bytes(damaged))})
        async with world.run() as client:
            try:
                status, _, _ = await ask(client, URL)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            assert status == 502

    async def test_a_plain_file_behind_redirects_of_the_hub(self) -> None:
        def answer(request: Received) -> Answer:
            if "resolve-cache" in request.path:
                return http_answer(
                    200, PLAIN, f'ETag: "{OID}"', f"X-Repo-Commit: {COMMIT}", "Content-Type: x/y"
                )
            return http_answer(307, b"", f"Location: /api/resolve-cache/models/o/n/{COMMIT}/a")

        async with World({"hub": answer}).run() as client:
            status, headers, _ = await ask(client, "/o/n/resolve/main/a.txt", method="HEAD")
            assert (status, headers["etag"]) == (200, f'"{OID}"')
            assert headers["x-repo-commit"] == COMMIT
            assert "location" not in headers

    @pytest.mark.parametrize(
        ("status", "code"),
        [(401, "RepoNotFound"), (403, "GatedRepo"), (404, "RepoNotFound"),
         (404, "RevisionNotFound"), (404, "EntryNotFound")],
    )  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_the_hubs_errors(self, method: str, status: int, code: str) -> None:
        answer = http_answer(
            status, b"", f"X-Error-Code: {code}", "X-Error-Message: so it is",
            f"X-Repo-Commit: {COMMIT}",
        )  # fmt: skip
        async with World({"resolve": answer}).run() as client:
            found, headers, _ = await ask(client, URL, method=method)
            assert (found, headers["x-error-code"]) == (status, code)
            assert headers["x-error-message"] == "so it is"
            assert headers["x-repo-commit"] == COMMIT

    async def test_patience_is_passed_on(self) -> None:
        answer = http_answer(429, b"", 'RateLimit: "resolvers";r=0;t=55', "Retry-After: 55")
        async with World({"resolve": answer}).run() as client:
            status, headers, _ = await ask(client, URL)
            assert (status, headers["retry-after"]) == (429, "55")
            assert headers["ratelimit"] == '"resolvers";r=0;t=55'

    async def test_other_methods(self) -> None:
        async with World().run() as client:
            status, headers, _ = await ask(client, URL, method="DELETE")
            assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")


class TestRawFiles:
    async def test_they_come_as_they_are(self) -> None:
        text = b'{"xetHash": "of the file itself"}'
        answer = http_answer(200, text, "Content-Type: application/json", f'ETag: "{OID}"',
                             f"X-Repo-Commit: {COMMIT}",
                             "Content-Security-Policy: none")  # fmt: skip
        world = World({"hub": answer})
        target = "/datasets/o/n/raw/refs%2Fpr%2F1/d/a%20%C3%BC.json"
        async with world.run() as client:
            status, headers, body = await ask(client, target)
            assert (status, body, headers["x-repo-commit"]) == (200, text, COMMIT)
            assert headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert headers["x-content-type-options"] == "nosniff"
            assert (await ask(client, "/o/n/raw/main/%2e%2e/a"))[0] == 400
            assert (await ask(client, "/o/n/raw/main/a", method="POST"))[0] == 405
        assert [request.target for request in world.hub.requests] == [target]
