"""What passes is counted, shown as long as it is under way, and takes its turns."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import pytest

from tests.bodies import iter_blocks, next_block
from tests.peers import connected, serving
from tests.waiting import until
from xetserve.app.middleware.admission import Admission, AdmissionLimits
from xetserve.app.middleware.traffic_control import Places, TrafficControl
from xetserve.app.status.active_streams import STREAMS_SIZE, Stage, StreamReader, StreamTable
from xetserve.errors import UpstreamError
from xetserve.http.messages import Block, Request, Response
from xetserve.metrics.catalogue import ACTIVE_REQUESTS
from xetserve.net.loop_turns import Turns

Answer = Callable[[Request], Awaitable[Response]]


async def blocks() -> AsyncGenerator[Block, None]:
    yield [b"one"]
    yield [b"three"]


def make(answer: Answer, turns: Places | None = None) -> tuple[TrafficControl, StreamReader]:
    buffer = memoryview(bytearray(STREAMS_SIZE))
    streams, admission = StreamTable(buffer), Admission(AdmissionLimits())
    control = TrafficControl(answer, admission, turns or Turns(), streams, lambda: 9.0)
    return control, StreamReader(buffer)


async def stream(request: Request) -> Response:
    request.record.route, request.record.repo, request.record.file = "download", "o/n", "a.bin"
    return Response(200, body=blocks(), length=8)


async def test_a_body_is_shown_while_it_is_sent() -> None:
    control, reader = make(stream)
    before = ACTIVE_REQUESTS.get()
    request = Request("GET", "/x?secret=1", peer="192.0.2.1", request_id="abc")
    response = await control.handle(request)
    assert list(reader.read()) == []  # nothing was asked for: it may be HEAD
    assert await next_block(response) == [b"one"]
    (state,) = reader.read()
    assert state.text == {
        "route": "download", "repo": "o/n", "file": "a.bin", "client": "192.0.2.1", "id": "abc",
    }  # fmt: skip
    assert (state.started, state.sent, state.size, state.stage) == (9.0, 0, 8, Stage.SENDING)
    request.record.sent = 3
    assert response.observer is not None
    await response.observer.before_block()
    (state,) = reader.read()
    assert (state.sent, state.stage) == (3, Stage.READING)
    response.observer.on_block(5)
    (state,) = reader.read()
    assert (state.sent, state.stage) == (3, Stage.SENDING)
    assert ACTIVE_REQUESTS.get() == before + 1
    await response.aclose()
    await response.aclose()
    assert list(reader.read()) == []
    assert ACTIVE_REQUESTS.get() == before


@pytest.mark.parametrize("fails", [False, True])
async def test_a_request_that_is_answered_at_once_is_active_no_more(fails: bool) -> None:
    before = ACTIVE_REQUESTS.get()

    async def answer(request: Request) -> Response:
        assert ACTIVE_REQUESTS.get() == before + 1
        if fails:
            raise ValueError
        return Response(200, body=b"all")

    control, _ = make(answer)
    if fails:
        with pytest.raises(ValueError, match=r"^$"):
            await control.handle(Request("GET", "/"))
    else:
        assert (await control.handle(Request("GET", "/"))).body == b"all"
    assert ACTIVE_REQUESTS.get() == before


async def test_a_body_that_nobody_reads_is_not_shown() -> None:
    control, reader = make(stream)
    before = ACTIVE_REQUESTS.get()
    response = await control.handle(Request("HEAD", "/"))
    await response.aclose()
    assert list(reader.read()) == []
    assert ACTIVE_REQUESTS.get() == before


@pytest.mark.parametrize("leaves", [False, True], ids=["the body breaks", "the client leaves"])
async def test_a_body_that_is_cut_counts_no_more(leaves: bool) -> None:
    is_waiting = asyncio.Event()

    async def cut() -> AsyncGenerator[Block, None]:
        yield [b"one"]
        is_waiting.set()
        if leaves:
            await asyncio.get_running_loop().create_future()
        raise UpstreamError("gone")

    async def answer(request: Request) -> Response:
        return Response(200, body=cut(), length=8)

    control, reader = make(answer)
    before = ACTIVE_REQUESTS.get()
    async with serving(control.handle) as listener, connected(listener.port) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await is_waiting.wait()
        if leaves:
            (state,) = reader.read()
            assert (state.sent, state.stage) == (3, Stage.READING)
            client.reset()
        await until(lambda: not listener.num_connections)
    assert list(reader.read()) == []
    assert ACTIVE_REQUESTS.get() == before


# Turns


class Blocks:
    """A body of some blocks."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return [b"x"]

    async def aclose(self) -> None:
        self.is_closed = True


class Recording:
    """Notes who asks for a place; everybody gets one."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []

    async def take(self, client: str, *, begins: bool) -> None:
        self.asked.append((client, begins))


async def test_each_block_but_the_first_takes_a_place_and_the_body_is_closed() -> None:
    body = Blocks(3)

    async def handler(request: Request) -> Response:
        return Response(200, [], body)

    turns = Recording()
    control, _ = make(handler, turns)
    response = await control.handle(Request("GET", "/x", client="a"))
    assert turns.asked == [("a", True)]
    assert [block async for block in iter_blocks(response)] == [[b"x"]] * 3
    assert turns.asked == [("a", True), ("a", True), ("a", False), ("a", False)]
    await response.aclose()
    assert body.is_closed


@pytest.mark.parametrize(("path", "num_places"), [("/download/o/n/f", 1), ("/health", 0)])
async def test_what_an_operator_asks_for_takes_none(path: str, num_places: int) -> None:
    async def handler(request: Request) -> Response:
        return Response(200)

    turns = Recording()
    control, _ = make(handler, turns)
    await control.handle(Request("GET", path))
    assert len(turns.asked) == num_places
