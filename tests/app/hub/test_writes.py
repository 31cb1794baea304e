"""What changes something on the Hub: passed on once, small, with the Hub's word for an answer."""

import json

import pytest

from tests.app.world import JSON, TOKEN, World, send
from tests.peers import http_answer
from xetserve.app.hub.writes import MAX_COMMAND_SIZE


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("DELETE", "/api/repos/delete"),
        ("POST", "/api/repos/move"),
        ("PUT", "/api/models/o/n/settings"),
        ("PUT", "/api/datasets/gpt2/settings"),
        ("PUT", "/api/spaces/o/n/settings"),
    ],
)
async def test_a_command_goes_to_the_hub_as_it_is(method: str, path: str) -> None:
    world = World({"hub": http_answer(200, b'{"private":true}', JSON)})
    async with world.run(management="on") as client:
        answer = await send(client, method, path, b'{"a": 1}', "Content-Type: application/json")
        status, headers, body = answer
    assert (status, json.loads(body)) == (200, {"private": True})
    assert headers["cache-control"] == "no-store"
    (request,) = world.hub.requests
    assert (request.method, request.target, request.body) == (method, path, b'{"a": 1}')
    assert request.get("content-type") == "application/json"
    assert request.get("authorization") == f"Bearer {TOKEN}"


async def test_the_address_of_a_repository_is_ours() -> None:
    world = World()

    world.answers["hub"] = lambda request: http_answer(
        200, json.dumps({"url": f"{world.hub.base}/o/n", "name": "o/n"}).encode(), JSON
    )
    async with world.run(management="on") as client:
        _, _, body = await send(client, "POST", "/api/repos/create", b"{}")
    assert json.loads(body) == {"url": "http://files.test/o/n", "name": "o/n"}


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 422])
async def test_the_hubs_refusals(status: int) -> None:
    refusal = http_answer(
        status, b'{"error":"no"}', JSON, "X-Error-Code: Some", "X-Error-Message: no"
    )
    world = World({"hub": refusal})
    async with world.run(management="on") as client:
        found, headers, body = await send(client, "POST", "/api/repos/create", b"{}", token=None)
    assert (found, json.loads(body)) == (status, {"error": "no"})
    assert (headers["x-error-code"], headers["x-error-message"]) == ("Some", "no")


@pytest.mark.parametrize(("status", "given"), [(429, 429), (500, 502), (503, 503), (504, 504)])
async def test_trouble_is_not_tried_again(status: int, given: int) -> None:
    world = World({"hub": http_answer(status, b"", "Retry-After: 7")})
    async with world.run(management="on") as client:
        found, headers, body = await send(client, "POST", "/api/repos/create", b"{}")
        assert found == given
        assert str(status) in json.loads(body)["error"]
        assert headers.get("retry-after") == ("7" if status in (429, 503) else None)
    assert len(world.hub.requests) == 1


async def test_one_that_is_too_long() -> None:
    world = World()
    async with world.run(management="on") as client:
        body = b" " * (MAX_COMMAND_SIZE + 1)
        assert (await send(client, "POST", "/api/repos/create", body))[0] == 413
    assert world.hub.wires == []


@pytest.mark.parametrize(
    ("management", "method", "path", "is_sent"),
    [
        ("auto", "POST", "/api/repos/create", False),
        ("auto", "POST", "/api/repos/move", True),
        ("auto", "DELETE", "/api/repos/delete", True),
        ("auto", "PUT", "/api/models/o/n/settings", True),
        ("auto", "POST", "/api/repo", True),
        ("off", "POST", "/api/repos/create", False),
        ("off", "POST", "/api/repos/move", False),
        ("off", "DELETE", "/api/repos/delete", False),
        ("off", "PUT", "/api/models/o/n/settings", False),
        ("off", "POST", "/api/repo", False),
        ("off", "GET", "/api/account", True),
    ],
)
async def test_what_the_operator_lets_pass(
    management: str, method: str, path: str, is_sent: bool
) -> None:
    world = World({"hub": http_answer(200, b"{}", JSON)})
    body = b'{"type": "model", "name": "o/n"}' if method != "GET" else b""
    async with world.run(management=management) as client:
        status, headers, answer = await send(
            client, method, path, body, "Content-Type: application/json"
        )
    assert (status, len(world.hub.requests)) == ((200, 1) if is_sent else (403, 0))
    if not is_sent:
        assert json.loads(answer)["error"].endswith("go to the Hub itself: unset HF_ENDPOINT")
        assert "x-error-message" not in headers  # the official client would print it first


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_a_redirect_that_could_change_the_method_is_for_the_client(status: int) -> None:
    world = World({"hub": http_answer(status, b"", "Location: /api/repos/other")})
    async with world.run(management="on") as client:
        found, headers, _ = await send(client, "DELETE", "/api/repos/delete", b"{}")
    assert (found, headers["location"]) == (status, "/api/repos/other")
    assert len(world.hub.requests) == 1
