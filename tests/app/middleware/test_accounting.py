"""What passes is counted, and shown as long as it is under way."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from tests.bodies import next_block
from xetserve.app.middleware.accounting import Accounting, count_answer
from xetserve.app.status.active_streams import STREAMS_SIZE, Stage, StreamReader, StreamTable
from xetserve.http.messages import Block, Record, Request, Response
from xetserve.metrics.catalogue import ACTIVE_REQUESTS, CUT_REQUESTS, DURATION, FIRST_BYTE, REQUESTS

Answer = Callable[[Request], Awaitable[Response]]


async def blocks() -> AsyncGenerator[Block, None]:
    yield [b"one"]
    yield [b"three"]


def make(answer: Answer) -> tuple[Accounting, StreamReader]:
    buffer = memoryview(bytearray(STREAMS_SIZE))
    return Accounting(answer, StreamTable(buffer), lambda: 9.0), StreamReader(buffer)


async def stream(request: Request) -> Response:
    request.record.route, request.record.repo, request.record.file = "download", "o/n", "a.bin"
    return Response(200, body=blocks(), length=8)


async def test_a_body_is_shown_while_it_is_sent() -> None:
    watch, reader = make(stream)
    before = ACTIVE_REQUESTS.get()
    request = Request("GET", "/x?secret=1", peer="192.0.2.1", request_id="abc")
    response = await watch.handle(request)
    assert list(reader.read()) == []  # nothing was asked for: it may be HEAD
    assert await next_block(response) == [b"one"]
    (state,) = reader.read()
    assert state.text == {
        "route": "download", "repo": "o/n", "file": "a.bin", "client": "192.0.2.1", "id": "abc",
    }  # fmt: skip
    assert (state.started, state.sent, state.size, state.stage) == (9.0, 0, 8, Stage.SENDING)
    request.record.sent = 3
    await response.observers[0].before_block()
    (state,) = reader.read()
    assert (state.sent, state.stage) == (3, Stage.READING)
    response.observers[0].on_block(5)
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

    watch, _ = make(answer)
    if fails:
        with pytest.raises(ValueError, match=r"^$"):
            await watch.handle(Request("GET", "/"))
    else:
        assert (await watch.handle(Request("GET", "/"))).body == b"all"
    assert ACTIVE_REQUESTS.get() == before


async def test_a_body_that_nobody_reads_is_not_shown() -> None:
    watch, reader = make(stream)
    before = ACTIVE_REQUESTS.get()
    response = await watch.handle(Request("HEAD", "/"))
    await response.aclose()
    assert list(reader.read()) == []
    assert ACTIVE_REQUESTS.get() == before


def test_an_answer_is_counted_by_what_it_was() -> None:
    before = REQUESTS.values["download", "206"], CUT_REQUESTS.values["download",]
    record = Record(206, 10, False, 0.1, 0.2, 0.3, route="download")
    count_answer(Request("GET", "/", record=record))
    assert REQUESTS.values["download", "206"] == before[0] + 1
    assert CUT_REQUESTS.values["download",] == before[1] + 1


def test_a_status_that_nobody_knows_makes_no_label_of_its_own() -> None:
    for status in range(430, 600):
        count_answer(Request("GET", "/", record=Record(status, is_complete=True, route="api")))
    statuses = {status for route, status in REQUESTS.values if route == "api"}
    assert {"4xx", "5xx", "500", "451"} <= statuses
    assert len(statuses) < 40


def test_what_sent_nothing_has_no_first_byte() -> None:
    def num(instrument: object) -> float:
        cells = instrument._registry.cells.values  # type: ignore[attr-defined]
        place = instrument._find(("raw",))  # type: ignore[attr-defined]
        num_bounds = len(instrument.bounds)  # type: ignore[attr-defined]
        return float(sum(cells[place : place + num_bounds + 1]))

    before = num(FIRST_BYTE), num(DURATION)
    count_answer(Request("GET", "/", record=Record(304, is_complete=True, route="raw")))
    assert (num(FIRST_BYTE), num(DURATION)) == (before[0], before[1] + 1)
