"""/api/account and /api/repo."""

import json
from typing import Any

import pytest

from tests.app.world import JSON, TOKEN, World, ask, send
from tests.peers import http_answer
from xetserve.app.hub.repo_api import MAX_BODY_SIZE


def accepting() -> World:
    return World({"hub": http_answer(200, b"{}", JSON)})


async def test_account() -> None:
    world = World({"hub": http_answer(200, b'{"name": "me"}', JSON)})
    async with world.run() as client:
        status, headers, body = await ask(client, "/api/account")
        assert (status, json.loads(body)) == (200, {"name": "me"})
        assert headers["cache-control"] == "no-store"
        assert (await ask(client, "/api/account", method="HEAD"))[0] == 200
    assert {r.target for r in world.hub.requests} == {"/api/whoami-v2"}
    assert {r.get("authorization") for r in world.hub.requests} == {f"Bearer {TOKEN}"}


# method and body, and what the Hub is to be asked.
MAPPED: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    (
        "POST", {"type": "model", "name": "o/n", "private": True}, "POST", "/api/repos/create",
        {"type": "model", "name": "n", "organization": "o", "visibility": "private"},
    ),
    (
        "POST", {"type": "dataset", "name": "n", "private": False}, "POST", "/api/repos/create",
        {"type": "dataset", "name": "n", "organization": None, "visibility": "public"},
    ),
    (
        "POST", {"type": "space", "name": "o/n"}, "POST", "/api/repos/create",
        {"type": "space", "name": "n", "organization": "o", "sdk": "static"},
    ),
    (
        "PUT", {"type": "model", "namespace": "o/n.x", "private": False}, "PUT",
        "/api/models/o/n.x/settings", {"visibility": "public"},
    ),
    (
        "PUT", {"type": "space", "namespace": "o/n", "private": True}, "PUT",
        "/api/spaces/o/n/settings", {"visibility": "private"},
    ),
    (
        "DELETE", {"type": "dataset", "name": "o/n"}, "DELETE", "/api/repos/delete",
        {"type": "dataset", "name": "n", "organization": "o"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("method", "body", "hub_method", "target", "hub_body"), MAPPED)
async def test_what_the_hub_is_asked(
    method: str, body: dict[str, Any], hub_method: str, target: str, hub_body: dict[str, Any]
) -> None:
    world = accepting()
    async with world.run() as client:
        sent = json.dumps(body).encode()
        assert (await send(client, method, "/api/repo", sent, JSON))[0] == 200
    (request,) = world.hub.requests
    assert (request.method, request.target) == (hub_method, target)
    assert json.loads(request.body) == hub_body
    assert request.get("authorization") == f"Bearer {TOKEN}"


GOOD = {"type": "model", "name": "o/n", "private": True}


@pytest.mark.parametrize(
    ("method", "body", "status", "word"),
    [
        pytest.param("POST", b"", 400, "JSON", id="nothing"),
        pytest.param("POST", b"{", 400, "JSON", id="half"),
        pytest.param("POST", b"\xff", 400, "JSON", id="not UTF-8"),
        pytest.param("POST", b'{"type":"model","type":"space"}', 400, "same name", id="twice"),
        pytest.param("POST", b"[" * 4000, 400, "JSON", id="deep"),
        pytest.param("POST", b"[]", 422, "object", id="a list"),
        pytest.param("POST", {"name": "o/n"}, 422, "type is missing", id="no type"),
        pytest.param("POST", {"type": "model"}, 422, "name is missing", id="no name"),
        pytest.param("PUT", {"type": "model", "namespace": "o/n"}, 422, "private", id="no private"),
        pytest.param("PUT", GOOD, 422, "namespace is missing", id="the name of another method"),
        pytest.param("DELETE", GOOD, 422, "'private'", id="more than there is"),
        pytest.param("POST", GOOD | {"type": "models"}, 422, "type must", id="type"),
        pytest.param("POST", GOOD | {"type": ["model"]}, 422, "type must", id="type, a list"),
        pytest.param("POST", GOOD | {"private": 1}, 422, "private must", id="a number"),
        pytest.param("POST", GOOD | {"private": None}, 422, "private must", id="null"),
        pytest.param("PUT", {"type": "model", "namespace": "n", "private": True}, 422, "owner/name",
                     id="no owner"),
        *(
            pytest.param("DELETE", {"type": "model", "name": name}, 422, "name must", id=repr(name))
            for name in ("", "/", "o/", "/n", "a/b/c", "o/n\n", "o/../x", "o/..", "-o/n", "o/n.git",
                         "o/a--b", "o/ü", "o/n?x", "o/" + "x" * 97, 7, None, ["o/n"])
        ),
    ],
)  # fmt: skip
async def test_a_body_that_is_refused(
    method: str, body: bytes | dict[str, Any], status: int, word: str
) -> None:
    world = accepting()
    async with world.run() as client:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        found, headers, answer = await send(client, method, "/api/repo", sent, JSON)
        assert (found, headers["content-type"]) == (status, "application/json")
        assert word in json.loads(answer)["error"]
    assert world.hub.wires == []


@pytest.mark.parametrize("field", ["X-Nothing: x", "Content-Type: text/plain",
                                   "Content-Type: application/x-www-form-urlencoded"])  # fmt: skip
async def test_another_type_of_body(field: str) -> None:
    async with accepting().run() as client:
        sent = json.dumps(GOOD).encode()
        status, headers, _ = await send(client, "POST", "/api/repo", sent, field)
        assert (status, headers["accept"]) == (415, "application/json")


async def test_a_body_that_is_too_long() -> None:
    world = accepting()
    async with world.run() as client:
        sent = json.dumps(GOOD).encode().ljust(MAX_BODY_SIZE + 1)
        assert (await send(client, "POST", "/api/repo", sent, JSON))[0] == 413
    assert world.hub.wires == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/account"), ("POST", "/api/repo"), ("PUT", "/api/repo"), ("DELETE", "/api/repo")],
)
async def test_a_token_is_needed(method: str, path: str) -> None:
    world = accepting()
    async with world.run() as client:
        status, headers, _ = await send(client, method, path, b"", JSON, token=None)
        assert (status, headers["www-authenticate"][:6]) == (401, "Bearer")
    assert world.hub.wires == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/api/repo", "POST, PUT, DELETE, OPTIONS"),
     ("PATCH", "/api/repo", "POST, PUT, DELETE, OPTIONS"),
     ("POST", "/api/account", "GET, HEAD, OPTIONS")],
)  # fmt: skip
async def test_other_methods(method: str, path: str, allowed: str) -> None:
    async with accepting().run() as client:
        status, headers, _ = await send(client, method, path, b"", JSON)
        assert (status, headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("status", [401, 403, 404, 409])
async def test_the_hub_has_the_last_word(status: int) -> None:
    refusal = http_answer(status, b'{"error":"You already created this repo"}', JSON)
    async with World({"hub": refusal}).run() as client:
        sent = json.dumps(GOOD).encode()
        found, _, body = await send(client, "POST", "/api/repo", sent, JSON)
    assert (found, json.loads(body)) == (status, {"error": "You already created this repo"})
