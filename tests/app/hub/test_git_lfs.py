"""LFS batches and objects, from a scripted Hub."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.app.hub.lfs_world import SHA, SMALL, SMALL_SHA, make_world
from tests.app.world import CONTENT, SIGNATURE, TOKEN, ask, send
from tests.peers import Answer, http_answer
from xetserve.app.hub.git_lfs import MAX_OBJECTS, MEDIA_TYPE, read_batch
from xetserve.errors import RequestError
from xetserve.http.request import MAX_HOST_SIZE

BATCH = "/datasets/o/n.git/info/lfs/objects/batch"
OBJECT = f"/datasets/o/n.git/info/lfs/objects/{SHA}"
PAST = f"/datasets/o/n.git/info/lfs/objects/{SMALL_SHA}?size={len(SMALL)}"
TYPE = f"Content-Type: {MEDIA_TYPE}"
GOOD: dict[str, Any] = {"operation": "download", "objects": [{"oid": SHA, "size": len(CONTENT)}]}


class TestBatch:
    async def test_the_content_is_here(self) -> None:
        world = make_world()
        question = GOOD | {
            "transfers": ["basic", "x"],
            "ref": {"name": "refs/heads/a/b"},
            "objects": [*GOOD["objects"], {"oid": "0" * 64, "size": 3}],
        }
        async with world.run() as client:
            sent = json.dumps(question).encode()
            status, headers, body = await send(client, "POST", BATCH, sent, TYPE)
        assert (status, headers["content-type"]) == (200, MEDIA_TYPE)
        assert headers["cache-control"] == "no-store"
        answer = json.loads(body)
        size = len(CONTENT)
        href = f"http://files.test{OBJECT}?size={size}&revision=a%2Fb"
        assert answer == {
            "transfer": "basic",
            "hash_algo": "sha256",
            "objects": [
                {"oid": SHA, "size": size, "actions": {"download": {"href": href}}},
                {
                    "oid": "0" * 64,
                    "size": 3,
                    "error": {"code": 404, "message": "the Hub has no such object"},
                },
            ],
        }
        (request,) = world.hub.requests
        assert request.target == BATCH
        assert json.loads(request.body) == question | {
            "transfers": ["basic"],
            "hash_algo": "sha256",
        }
        assert request.get("authorization") == f"Bearer {TOKEN}"

    @pytest.mark.parametrize(
        ("item", "error"),
        [
            ({"error": {"code": 410, "message": "gone"}}, {"code": 410, "message": "gone"}),
            ({"error": {"code": "x"}}, {"code": 404, "message": "the Hub has no such object"}),
            ({"actions": {}}, {"code": 404, "message": "the Hub has no such object"}),
            ({"actions": {"download": {"href": 7}}},
             {"code": 404, "message": "the Hub has no such object"}),
        ],
    )  # fmt: skip
    async def test_the_hub_has_no_such_object(
        self, item: dict[str, Any], error: dict[str, Any]
    ) -> None:
        answer = http_answer(200, json.dumps({"objects": [7, {"oid": SHA} | item]}).encode())
        async with make_world(batch=answer).run() as client:
            _, _, body = await send(client, "POST", BATCH, json.dumps(GOOD).encode(), TYPE)
        assert json.loads(body)["objects"][0]["error"] == error

    @pytest.mark.parametrize("status", [401, 403, 404, 422])
    async def test_the_hub_refuses(self, status: int) -> None:
        answer = http_answer(status, b'{"message": "so it is"}')
        async with make_world(batch=answer).run() as client:
            sent = json.dumps(GOOD).encode()
            found, headers, body = await send(client, "POST", BATCH, sent, TYPE, token=None)
        assert (found, json.loads(body)) == (status, {"message": "so it is"})
        assert headers["content-type"] == MEDIA_TYPE
        assert headers.get("lfs-authenticate") == (
            'Basic realm="xetserve"' if status == 401 else None
        )

    @pytest.mark.parametrize(
        "answer", [http_answer(200, b"x"), http_answer(200, b"{}"), http_answer(500)]
    )
    async def test_the_hub_is_in_trouble(self, answer: Answer) -> None:
        async with make_world(batch=answer).run() as client:
            status, _, body = await send(client, "POST", BATCH, json.dumps(GOOD).encode(), TYPE)
        assert status == 502
        assert json.loads(body)["message"]

    async def test_as_many_objects_as_there_may_be_have_room_under_the_longest_name(self) -> None:
        world = make_world()
        async with world.run() as client:
            sent = json.dumps(GOOD | {"objects": GOOD["objects"] * MAX_OBJECTS}).encode()
            host = "h" * MAX_HOST_SIZE
            lines = [
                f"POST {BATCH} HTTP/1.1",
                f"Host: {host}",
                TYPE,
                f"Content-Length: {len(sent)}",
            ]
            await client.send("\r\n".join([*lines, "", ""]).encode() + sent)
            status, _, body = await client.read_answer()
        assert status == 200
        assert len(json.loads(body)["objects"]) == MAX_OBJECTS

    @pytest.mark.parametrize(
        ("question", "status"),
        [
            (b"", 422), (b"[]", 422), (b"{}", 422), (b"[" * 100_000, 422),
            (GOOD | {"operation": "upload"}, 403),
            (GOOD | {"operation": "verify"}, 422),
            (GOOD | {"hash_algo": "sha512"}, 409),
            (GOOD | {"transfers": ["ssh"]}, 422),
            (GOOD | {"ref": {"name": 7}}, 422),
            (GOOD | {"ref": {"name": "a..b"}}, 400),
            (GOOD | {"objects": [7]}, 422),
            (GOOD | {"objects": [{"oid": SHA.upper(), "size": 1}]}, 422),
            (GOOD | {"objects": [{"oid": SHA, "size": -1}]}, 422),
            (GOOD | {"objects": [{"oid": SHA, "size": True}]}, 422),
            (GOOD | {"objects": GOOD["objects"] * (MAX_OBJECTS + 1)}, 413),
            (GOOD | {"objects": GOOD["objects"] * MAX_OBJECTS, "ref": {"name": "\u00fc" * 250}},
             413),
            (b" " * 600_000, 413),
        ],
    )  # fmt: skip
    async def test_a_question_that_is_none(
        self, question: bytes | dict[str, Any], status: int
    ) -> None:
        world = make_world()
        async with world.run() as client:
            sent = question if isinstance(question, bytes) else json.dumps(question).encode()
            found, headers, body = await send(client, "POST", BATCH, sent, TYPE)
        assert (found, headers["content-type"]) == (status, MEDIA_TYPE)
        assert json.loads(body)["message"]
        assert world.hub.wires == []

    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(SHA),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(("operation", "objects", "oid", "size", "ref", "name", "transfers")),
            inner),
    ))  # fmt: skip
    @example({"transfers": 1})
    def test_any_json_is_read_or_refused(self, value: object) -> None:
        for text in (value, GOOD | (value if isinstance(value, dict) else {})):
            with suppress(RequestError):
                batch = read_batch(json.dumps(text).encode())
                assert json.loads(batch.to_json())["operation"] == "download"

    async def test_get_is_not_for_batches(self) -> None:
        async with make_world().run() as client:
            status, headers, _ = await ask(client, BATCH)
            assert (status, headers["allow"]) == (405, "POST, OPTIONS")


class TestObjects:
    @pytest.mark.parametrize("way", ["Bearer", "Basic", "none"])
    async def test_one_in_the_listing_comes_from_the_cas(self, way: str) -> None:
        world = make_world()
        basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
        fields = [f"Authorization: Basic {basic}"] if way == "Basic" else []
        async with world.run() as client:
            token = TOKEN if way == "Bearer" else None
            status, headers, body = await ask(client, OBJECT, *fields, token=token)
        assert (status, body) == (200, CONTENT)
        assert headers["content-length"] == str(len(CONTENT))
        assert headers["etag"] == f'"{SHA}"'
        assert "x-xet-hash" not in headers
        expected = None if way == "none" else f"Bearer {TOKEN}"
        assert {r.get("authorization") for r in world.hub.requests} == {expected}
        targets = [request.target for request in world.hub.requests]
        assert targets[:2] == [
            "/api/datasets/o/n/tree/main?recursive=true",
            "/datasets/o/n/resolve/main/d/a%20%C3%BC.bin",
        ]

    async def test_a_part_of_it(self) -> None:
        async with make_world().run() as client:
            status, headers, body = await ask(client, OBJECT, "Range: bytes=100-199")
        assert (status, body) == (206, CONTENT[100:200])
        assert headers["content-range"] == f"bytes 100-199/{len(CONTENT)}"

    async def test_its_head(self) -> None:
        world = make_world()
        async with world.run() as client:
            status, headers, _ = await ask(client, OBJECT, method="HEAD")
        assert (status, headers["content-length"]) == (200, str(len(CONTENT)))
        assert (world.cas.wires, world.data.wires) == ([], [])

    async def test_one_of_the_past_comes_as_the_hub_has_it(self) -> None:
        world = make_world()
        world.answers["data"] = http_answer(200, SMALL)
        async with world.run() as client:
            status, headers, body = await ask(client, PAST)
        assert (status, body, headers["etag"]) == (200, SMALL, f'"{SMALL_SHA}"')
        (request,) = world.data.requests
        assert (request.target, request.get("authorization")) == (f"/old?{SIGNATURE}", None)
        assert world.cas.wires == []

    async def test_one_of_the_past_that_is_damaged(self) -> None:
        world = make_world()
        world.answers["data"] = http_answer(200, SMALL[:-1] + b"X")
        async with world.run() as client:
            status, _, _ = await ask(client, PAST)
        assert status == 502

    @pytest.mark.parametrize("path", [PAST.partition("?")[0], PAST.replace("size=", "size=x")])
    async def test_one_of_the_past_without_its_size(self, path: str) -> None:
        async with make_world().run() as client:
            assert (await ask(client, path))[0] == 404

    async def test_none_there_is(self) -> None:
        async with make_world().run() as client:
            path = f"/o/n.git/info/lfs/objects/{'0' * 64}?size=1"
            assert (await ask(client, path))[0] == 404
            assert (await ask(client, "/o/n.git/info/lfs/objects/x"))[0] == 404

    @pytest.mark.parametrize(("status", "code"), [(401, "RepoNotFound"), (403, "GatedRepo")])
    async def test_it_may_be_listed_but_not_be_read(self, status: int, code: str) -> None:
        refusal = http_answer(status, b"", f"X-Error-Code: {code}")
        for what in ("tree", "resolve"):
            world = make_world(**{what: refusal})
            async with world.run() as client:
                found, headers, _ = await ask(client, OBJECT)
            assert (found, headers["x-error-code"]) == (status, code)
            assert (world.cas.wires, world.data.wires) == ([], [])

    async def test_a_push_in_between(self) -> None:
        """The path has other content by now: it is listed anew, and then the Hub is asked for the
        object.
        """
        other = http_answer(200, b"", f'ETag: "{"1" * 64}"')
        world = make_world(resolve=other)
        world.answers["data"] = http_answer(200, CONTENT)
        async with world.run() as client:
            status, _, body = await ask(client, f"{OBJECT}?size={len(CONTENT)}")
        assert (status, body) == (200, CONTENT)
        asked = [request.path.split("/")[-2] for request in world.hub.requests]
        assert asked == ["tree", "d", "tree", "d", "objects"]
