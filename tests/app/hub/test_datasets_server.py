"""Requests for datasets-server, which come by the name of the host."""

import json

import pytest

from tests.app.world import JSON, TOKEN, World
from tests.peers import RawClient, ScriptedPeer, answering, http_answer
from xetserve import __version__
from xetserve.app.hub.datasets_server import PATHS, UrlMover
from xetserve.http.hosts import HostPolicy

HOST = "datasets-server.files.test:8080"
NEW = "http://files.test:8080"


async def ask(
    client: RawClient, target: str, host: str = HOST, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {TOKEN}"]
    await client.send("\r\n".join([*lines, "User-Agent: datasets/5.2", "", ""]).encode())
    return await client.read_answer(is_head=method == "HEAD")


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_goes_to_that_host(path: str) -> None:
    answer = http_answer(200, b'{"x": 1}', JSON, "X-Revision: abc")
    async with ScriptedPeer(answering(answer)) as datasets:
        world = World(datasets=datasets)
        async with world.run(hosts=HostPolicy(("files.test",))) as client:
            status, headers, body = await ask(client, f"{path}?dataset=o%2Fn&offset=1")
            assert (status, body, headers["x-revision"]) == (200, b'{"x": 1}', "abc")
            assert (await ask(client, path, method="HEAD"))[0] == 200
        assert world.hub.wires == []
    request, _ = datasets.requests
    assert request.target == f"{path}?dataset=o%2Fn&offset=1"
    assert request.get("authorization") == f"Bearer {TOKEN}"
    assert request.get("user-agent") == f"xetserve/{__version__} datasets/5.2"


async def test_urls_of_exported_files_lead_here() -> None:
    world = World()
    files = [
        {"split": "train", "url": f"https://huggingface.co/datasets/o/n/resolve/~parquet/{n}"}
        for n in range(8_000)
    ]
    text = json.dumps({"parquet_files": files, "note": '"url":"https://huggingface.co/x'}).encode()
    async with ScriptedPeer(answering(http_answer(200, text, JSON))) as datasets:
        world.datasets = datasets
        async with world.run() as client:
            _, _, body = await ask(client, "/parquet?dataset=o/n")
            _, _, rows = await ask(client, "/rows?dataset=o/n")
    value = json.loads(body)
    assert [each["url"] for each in value["parquet_files"]] == [
        f"{NEW}/datasets/o/n/resolve/~parquet/{n}" for n in range(8_000)
    ]
    assert value["note"] == '"url":"https://huggingface.co/x'
    assert rows == text  # content of a dataset


def test_a_url_may_come_in_any_pieces() -> None:
    text = (
        b'{"url" : "https://hub.test/a","url":"https://hub.test.evil/b","url":"https://hub.test"}'
    )
    expected = text.replace(b"https://hub.test/", b"http://here/")
    for size in range(1, len(text)):
        mover = UrlMover(("https://hub.test",), "http://here")
        pieces = [mover.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert b"".join([*pieces, mover.finish()]) == expected


@pytest.mark.parametrize(
    ("is_on", "host", "path", "status"),
    [
        (True, HOST, "/first-rows", 404),
        (True, "files.test", "/parquet", 404),
        (True, HOST, "/health", 200),
        (False, HOST, "/parquet", 404),
        (True, HOST.upper(), "/parquet", 200),
    ],
)
async def test_what_is_for_that_host(is_on: bool, host: str, path: str, status: int) -> None:
    async with ScriptedPeer(answering(http_answer(200, b"{}", JSON))) as datasets:
        world = World(datasets=datasets if is_on else None)
        async with world.run() as client:
            assert (await ask(client, path, host))[0] == status
        assert len(datasets.requests) == (is_on and status == 200 and path == "/parquet")


@pytest.mark.parametrize("status", [401, 404, 500, 501])
async def test_refusals(status: int) -> None:
    answer = http_answer(status, b'{"error":"no"}', JSON, "X-Error-Code: ResponseNotReady")
    async with ScriptedPeer(answering(answer)) as datasets:
        world = World(datasets=datasets)
        async with world.run() as client:
            found, headers, _ = await ask(client, "/info?dataset=o/n")
    assert found == (502 if status == 500 else status)
    assert headers["cache-control"] == "no-store"


async def test_the_token_does_not_follow_a_redirect_to_another_host() -> None:
    world = World()
    redirect = http_answer(307, b"", "Location: http://127.0.0.2:1/parquet")
    async with ScriptedPeer(answering(redirect)) as datasets:
        world.datasets = datasets
        async with world.run() as client:
            status, headers, _ = await ask(client, "/parquet?dataset=o/n")
    assert (status, headers["location"]) == (307, "http://127.0.0.2:1/parquet")
