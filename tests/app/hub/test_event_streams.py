"""Server-sent events, passed on as they come."""

import asyncio
import gzip

import pytest

from tests.app.world import World
from tests.peers import RawClient, ScriptedPeer, Wire, http_head
from tests.waiting import PATIENCE
from xetserve.app.hub.event_streams import may_stream
from xetserve.http.messages import Headers, Request

LOGS = "/api/jobs/o/5/logs"
EVENTS = "Content-Type: text/event-stream; charset=utf-8"


class Stream:
    """A Hub that sends a stream step by step."""

    def __init__(self, *fields: str) -> None:
        self._fields = fields
        self.steps: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.world = World()
        self.world.hub = ScriptedPeer(self._play)

    async def _play(self, wire: Wire) -> None:
        assert await wire.read_request() is not None
        await wire.send(
            http_head(200, EVENTS, "Transfer-Encoding: chunked", "Cache-Control: no-cache",
                      *self._fields)
        )  # fmt: skip
        while (data := await self.steps.get()) is not None:
            await wire.send(b"%x\r\n%b\r\n" % (len(data), data))
        await wire.send(b"0\r\n\r\n")


async def begin(client: RawClient, path: str = LOGS, *fields: str) -> dict[str, str]:
    """Ask for a stream; gives the fields of the answer, which has no event yet."""
    lines = [f"GET {path} HTTP/1.1", "Host: files.test", "Accept-Encoding: gzip, zstd", *fields]
    await client.send("\r\n".join([*lines, "", ""]).encode())
    head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), PATIENCE)
    line, *rest = head.decode("latin-1").split("\r\n")[:-2]
    assert line.split(" ")[1] == "200"
    return {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in rest)}


async def read_chunk(client: RawClient) -> bytes:
    """Read one chunk; b"" is the last one."""
    size = int(await asyncio.wait_for(client.reader.readline(), PATIENCE), 16)
    return (await client.reader.readexactly(size + 2))[:-2]


async def test_each_event_comes_at_once() -> None:
    stream = Stream()
    async with stream.world.run() as client:
        fields = await begin(client)
        assert fields["content-type"] == "text/event-stream; charset=utf-8"
        assert fields["cache-control"] == "no-cache"
        assert fields["x-accel-buffering"] == "no"
        assert "content-encoding" not in fields
        for data in (b": ping\n\n", b'data: {"xetHash": "1"}\n\n', b"data:\n\n"):
            stream.steps.put_nowait(data)
            assert await read_chunk(client) == data
        stream.steps.put_nowait(None)
        assert await read_chunk(client) == b""
        await client.send(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await client.read_answer())[0] == 200
    (request,) = stream.world.hub.requests
    assert request.get("accept-encoding") == "identity"


async def test_a_coded_stream_is_decoded_as_it_comes() -> None:
    stream = Stream("Content-Encoding: gzip")
    async with stream.world.run() as client:
        fields = await begin(client)
        assert "content-encoding" not in fields
        for data in (b"data: 1\n\n", b"data: 2\n\n"):
            stream.steps.put_nowait(gzip.compress(data))
            assert await read_chunk(client) == data


@pytest.mark.parametrize("num_events", [0, 1])
async def test_a_client_that_leaves_ends_the_stream_at_the_hub(num_events: int) -> None:
    stream = Stream()
    async with stream.world.run() as client:
        await begin(client)
        for _ in range(num_events):
            stream.steps.put_nowait(b"data: 1\n\n")
            await read_chunk(client)
        client.reset()
        (wire,) = stream.world.hub.wires
        stream.steps.put_nowait(None)
        await asyncio.wait_for(wire.ended.wait(), PATIENCE)


async def test_a_stream_that_breaks_off_looks_broken() -> None:
    stream = Stream()
    async with stream.world.run() as client:
        await begin(client)
        stream.steps.put_nowait(b"data: 1\n\n")
        await read_chunk(client)
        stream.world.hub.wires[0].reset()
        assert (await client.read_end())[1] == "reset"


async def test_a_drain_ends_a_quiet_stream() -> None:
    stream = Stream()
    async with stream.world.run() as client:
        await begin(client)
        stream.steps.put_nowait(b"data: 1\n\n")
        await read_chunk(client)
        await asyncio.wait_for(stream.world.listener.drain(PATIENCE), PATIENCE)
        assert await read_chunk(client) == b""
        assert (await client.read_end())[1] == "closed"


async def test_a_client_that_does_not_read_stops_the_hub() -> None:
    stream = Stream()
    sent = 0

    async def flood(wire: Wire) -> None:
        nonlocal sent
        assert await wire.read_request() is not None
        await wire.send(http_head(200, EVENTS))
        while True:
            await wire.send(b"data: " + b"x" * 65_530)
            sent += 65_536

    stream.world.hub = ScriptedPeer(flood)
    stream.world.write_timeout = 0.3
    async with stream.world.run() as client:
        await begin(client)
        (wire,) = stream.world.hub.wires
        await asyncio.wait_for(wire.ended.wait(), PATIENCE)
    assert sent < 64 * 1024 * 1024  # what the kernel's buffers hold


@pytest.mark.parametrize(
    ("path", "accept", "expected"),
    [
        ("/api/jobs/o/5/logs", "*/*", True),
        ("/api/jobs/o/5/metrics", None, True),
        ("/api/spaces/o/n/logs/build", None, True),
        ("/api/buckets/o/n/events", None, True),
        ("/api/anything", "text/event-stream", True),
        ("/api/models/o/n/tree/main", "application/json", False),
        ("/api/spaces/o/logs", None, False),
        ("/api/jobs/o/5", None, False),
        ("/o/buckets/a/b/logs", None, False),
    ],
)
def test_which_answers_may_be_streams(path: str, accept: str | None, expected: bool) -> None:
    fields = [] if accept is None else [("Accept", accept)]
    assert may_stream(Request("GET", path, Headers(fields))) is expected
