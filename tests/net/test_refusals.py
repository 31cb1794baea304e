"""Refusing clients."""

import asyncio
import json
import logging

import pytest

from tests.peers import RawClient, connected, serving
from tests.waiting import PATIENCE, until
from xetserve.http.messages import Request, Response
from xetserve.metrics.catalogue import CONNECTIONS_REFUSED
from xetserve.net import refusals
from xetserve.net.server_connection import ConnectionLimits

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
ONE = ConnectionLimits(max_connections=1, linger_timeout=0.2)
ONE_EACH = ConnectionLimits(max_connections_per_client=1, linger_timeout=0.2)


async def ok(request: Request) -> Response:
    return Response(200, [], b"ok")


async def assert_served(client: RawClient) -> None:
    await client.send(GET)
    assert (await client.read_answer())[2] == b"ok"


@pytest.mark.parametrize(
    ("limits", "status"), [pytest.param(ONE, 503, id="all"), pytest.param(ONE_EACH, 429, id="one")]
)
async def test_one_too_many_reads_why_and_when_to_come_again(
    limits: ConnectionLimits, status: int
) -> None:
    async with serving(ok, limits) as listener, connected(listener.port) as first:
        await assert_served(first)
        before = CONNECTIONS_REFUSED.values[(str(status),)]
        async with connected(listener.port) as second:
            got, headers, body = await second.read_answer()
            assert (got, headers["retry-after"], headers["connection"]) == (status, "1", "close")
            assert headers["date"].endswith("GMT")
            assert headers["x-request-id"]
            assert "error" in json.loads(body)
            assert await second.read_end() == (b"", "closed")
        assert CONNECTIONS_REFUSED.values[(str(status),)] == before + 1
        assert listener.num_connections == 1
        await assert_served(first)


@pytest.mark.parametrize("limits", [ONE, ONE_EACH], ids=["all", "one"])
async def test_when_one_leaves_another_may_come(limits: ConnectionLimits) -> None:
    async with serving(ok, limits) as listener:
        for _ in range(3):
            async with connected(listener.port) as client:
                await assert_served(client)
            await until(lambda: not listener.num_connections)


async def test_a_request_that_is_on_its_way_does_not_cost_the_client_its_answer() -> None:
    async with serving(ok, ONE) as listener, connected(listener.port) as first:
        await assert_served(first)
        async with connected(listener.port) as second:
            await second.send(GET + bytes(1000))
            assert (await second.read_answer())[0] == 503
            await second.send(bytes(1000))
            assert await second.read_end() == (b"", "closed")


async def test_a_flood_of_input_is_not_listened_to() -> None:
    async with serving(ok, ONE) as listener, connected(listener.port) as first:
        await assert_served(first)
        async with connected(listener.port) as second:

            async def flood() -> None:
                while True:
                    await second.send(bytes(1 << 16))

            async with asyncio.timeout(PATIENCE):
                with pytest.raises(ConnectionError):
                    await flood()


async def test_those_who_do_not_leave_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "LINGER", 0.01)
    async with serving(ok, ONE) as listener, connected(listener.port) as first:
        await assert_served(first)
        async with connected(listener.port) as second:
            await second.read_answer()
            assert listener._refusals is not None
            await until(lambda: not listener._refusals._lingering)  # type: ignore[union-attr]
            assert not listener._refusals._input


async def test_no_more_than_a_few_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_LINGERING", 3)
    monkeypatch.setattr(refusals, "LINGER", PATIENCE)
    async with serving(ok, ONE) as listener, connected(listener.port) as first:
        await assert_served(first)
        others = [RawClient(*await asyncio.open_connection("127.0.0.1", listener.port))
                  for _ in range(10)]  # fmt: skip
        for other in others:
            assert (await other.read_answer())[0] == 503
        assert listener._refusals is not None
        assert len(listener._refusals._lingering) == 3
        for other in others:
            await other.close()
        await until(lambda: not listener._refusals._lingering)  # type: ignore[union-attr]


async def test_a_crowd_costs_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(ok, ONE) as listener, connected(listener.port) as first:
        await assert_served(first)
        for _ in range(20):
            async with connected(listener.port) as other:
                assert (await other.read_answer())[0] == 503
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "refused" in line]) == 1
