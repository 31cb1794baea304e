"""A client's connection, from a raw socket: requests in any shape, and every way out."""

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from tests.peers import RawClient, connected, gather_answers, serving, turn
from tests.waiting import PATIENCE, until
from xetserve.errors import BrokenStream, IntegrityError, RequestError, UpstreamError
from xetserve.http.framing import CHUNKS_PER_TURN
from xetserve.http.messages import Block, Handler, Request, Response, json_response
from xetserve.http.protocol import NeedData, ServerProtocol
from xetserve.net.loop_turns import MAX_PLACES
from xetserve.net.server_connection import ConnectionLimits

BIG = 16 * 1024 * 1024  # more than the kernel's buffers take
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSING_GET = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
LINGER = 0.2


class Body:
    """A streamed body that tells what becomes of it."""

    def __init__(
        self, *blocks: bytes, error: Exception | None = None, stalls: bool = False
    ) -> None:
        self._blocks = list(blocks)
        self._error = error
        self._stalls = stalls
        self.num_given = 0
        self.is_waiting = asyncio.Event()
        self.is_closed = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        if self.num_given < len(self._blocks):
            self.num_given += 1
            return [self._blocks[self.num_given - 1]]
        if self._error is not None:
            raise self._error
        if self._stalls:
            self.is_waiting.set()
            await asyncio.get_running_loop().create_future()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed.set()


def giving(make: Callable[[], Response]) -> Handler:
    async def handle(request: Request) -> Response:
        return make()

    return handle


async def echo(request: Request) -> Response:
    """Answer with the body, however long."""
    return Response(200, [("X-Target", request.target)], await request.body.read(1 << 20))


async def ignore(request: Request) -> Response:
    """Answer without looking at the body."""
    return Response(200, [], b"ok")


def streaming(body: Body, length: int | None = None, *, chunked: bool = False) -> Handler:
    return giving(lambda: Response(200, [], body, length=length, chunked=chunked))


class Turns:
    """Turns of the event loop."""

    count = 0


@contextlib.asynccontextmanager
async def counted_turns() -> AsyncIterator[Turns]:
    turns = Turns()

    async def count() -> None:
        while True:
            turns.count += 1
            await asyncio.sleep(0)

    task = asyncio.ensure_future(count())
    try:
        yield turns
    finally:
        task.cancel()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno > logging.WARNING]


class TestRequests:
    async def test_one_after_the_other_on_one_connection(self) -> None:
        async with serving(echo) as listener, connected(listener.port) as client:
            for body in (b"", b"first", b"second"):
                await client.send(
                    b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                status, headers, answer = await client.read_answer()
                assert (status, answer) == (200, body)
                assert headers["x-target"] == "/x"
            assert listener.num_connections == 1

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        async with serving(echo) as listener, connected(listener.port) as client:
            await client.send(
                b"".join(
                    b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n%d" % (n, n)
                    for n in range(5)
                )
                + b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            )
            answers = await gather_answers(client, 6)
            targets = [headers["x-target"] for _, headers, _ in answers]
            assert targets == ["/0", "/1", "/2", "/3", "/4", "/last"]
            assert [body for _, _, body in answers] == [b"0", b"1", b"2", b"3", b"4", b""]
            assert await client.read_end() == (b"", "closed")

    @pytest.mark.parametrize("num_ahead", [1, 5])
    async def test_of_heads_that_come_at_once_so_many_are_read_in_a_turn(
        self, num_ahead: int
    ) -> None:
        seen: Counter[int] = Counter()

        async def note(request: Request) -> Response:
            seen[turns.count] += 1
            return Response(200)

        num_clients = 3 * MAX_PLACES
        async with (
            counted_turns() as turns,
            serving(note) as listener,
            contextlib.AsyncExitStack() as stack,
        ):
            clients = [
                await stack.enter_async_context(connected(listener.port))
                for _ in range(num_clients)
            ]
            for client in clients:
                await client.send(GET * num_ahead)
            for client in clients:
                await gather_answers(client, num_ahead)
        assert seen.total() == num_clients * num_ahead
        assert max(seen.values()) <= MAX_PLACES

    async def test_between_pipelined_requests_others_have_their_turn(self) -> None:
        seen = []

        async def note(request: Request) -> Response:
            seen.append(turns.count)
            return Response(200)

        async with (
            counted_turns() as turns,
            serving(note) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET * 50)
            await gather_answers(client, 50)
        assert len(set(seen)) == 50

    async def test_a_request_may_come_byte_by_byte(self) -> None:
        async with serving(echo) as listener, connected(listener.port) as client:
            head = b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            for byte in head + b"3\r\nabc\r\n0\r\n\r\n":
                await client.send(bytes([byte]))
                await turn()
            assert (await client.read_answer())[2] == b"abc"

    async def test_every_answer_has_a_date_and_its_own_request_id(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(GET + GET)
            (_, first, _), (_, second, _) = await gather_answers(client, 2)
            assert first["date"].endswith("GMT")
            assert first["x-request-id"] != second["x-request-id"]

    async def test_a_client_that_shuts_its_side_down_still_gets_its_answer(self) -> None:
        async with serving(echo) as listener, connected(listener.port) as client:
            await client.send(GET)
            client.writer.write_eof()
            assert (await client.read_answer())[0] == 200
            assert await client.read_end() == (b"", "closed")

    async def test_an_upgrade_is_declined_and_the_connection_kept(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(
                b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n"
                b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n" + GET
            )
            assert [status for status, _, _ in await gather_answers(client, 2)] == [200, 200]

    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
            pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="a TLS hello"),
            pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no host"),
            pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, id="two hosts"),
            pytest.param(
                b"GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="absolute form without a host"
            ),
            pytest.param(b"HEAD http:///x HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="HEAD, absolute"),
            pytest.param(b"CONNECT x:1 HTTP/1.1\r\nHost: h\r\n\r\n", 501, id="CONNECT"),
            pytest.param(b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, id="HTTP/2.0"),
            pytest.param(
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
                id="both framings",
            ),
            pytest.param(
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
                400,
                id="two lengths",
            ),
            pytest.param(
                b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
                431,
                id="huge head",
            ),
            pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", 400, id="a null"),
            pytest.param(b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, id="space before colon"),
        ],
    )
    async def test_what_cannot_be_served_is_refused_and_closed(
        self, raw: bytes, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(raw)
            answer = await client.read_answer(is_head=raw.startswith(b"HEAD"))
            assert answer[0] == status
            assert answer[1]["connection"] == "close"
            assert await client.read_end() == (b"", "closed")
        assert warnings_in(caplog) == []

    async def test_nothing_after_a_malformed_request_is_served(self) -> None:
        seen: list[str] = []

        async def handle(request: Request) -> Response:
            seen.append(request.target)
            return Response(200)

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(b"nonsense\r\n\r\n" + GET)
            assert (await client.read_answer())[0] == 400
            assert await client.read_end() == (b"", "closed")
        assert seen == []


class TestRequestBodies:
    async def test_one_that_nobody_read_is_passed_over(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000\r\n\r\n")
            await client.send(bytes(50000) + GET)
            assert [status for status, _, _ in await gather_answers(client, 2)] == [200, 200]

    @pytest.mark.parametrize("is_read", [True, False])
    async def test_between_the_pieces_of_one_others_have_their_turn(self, is_read: bool) -> None:
        num_pieces = 5000

        async def handle(request: Request) -> Response:
            if is_read:
                await request.body.read(num_pieces)
            return Response(200, [], b"%d" % turns.count)

        async with (
            counted_turns() as turns,
            serving(handle) as listener,
            connected(listener.port) as client,
        ):
            head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
            await client.send(head + b"1\r\nx\r\n" * num_pieces + b"0\r\n\r\n" + head)
            _, _, before = await client.read_answer()
            await client.send(b"0\r\n\r\n")
            _, _, after = await client.read_answer()
        taken = int(before) if is_read else int(after) - int(before)
        assert taken >= num_pieces // CHUNKS_PER_TURN

    @pytest.mark.parametrize("is_read", [True, False])
    async def test_of_bodies_that_come_at_once_so_many_pieces_are_read_in_a_turn(
        self, monkeypatch: pytest.MonkeyPatch, is_read: bool
    ) -> None:
        seen: Counter[int] = Counter()
        next_body_data = ServerProtocol.next_body_data

        def count(protocol: ServerProtocol) -> bytes | NeedData:
            seen[turns.count] += 1
            return next_body_data(protocol)

        async def handle(request: Request) -> Response:
            if is_read:
                await request.body.read(BIG)
            return Response(200)

        monkeypatch.setattr(ServerProtocol, "next_body_data", count)
        num_clients = 3 * MAX_PLACES
        head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with (
            counted_turns() as turns,
            serving(handle) as listener,
            contextlib.AsyncExitStack() as stack,
        ):
            clients = [
                await stack.enter_async_context(connected(listener.port))
                for _ in range(num_clients)
            ]
            for client in clients:
                await client.send(head + b"1\r\nx\r\n" * 5 * CHUNKS_PER_TURN + b"0\r\n\r\n")
            for client in clients:
                assert (await client.read_answer())[0] == 200
        assert max(seen.values()) <= MAX_PLACES

    async def test_one_too_long_to_pass_over_costs_the_connection(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % BIG)
            await client.send(bytes(200_000))
            assert (await client.read_answer())[0] == 200
            assert await client.read_end() == (b"", "closed")

    async def test_one_above_the_handlers_limit_is_413(self) -> None:
        async def handle(request: Request) -> Response:
            return Response(200, [], await request.body.read(10))

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n01234567890"
            )
            assert (await client.read_answer())[0] == 413

    async def test_the_client_is_told_to_go_on_only_when_the_body_is_wanted(self) -> None:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        async with serving(echo) as listener, connected(listener.port) as client:
            await client.send(head)
            assert (await client.read_answer())[0] == 100
            await client.send(b"abc" + GET)
            assert [body for _, _, body in await gather_answers(client, 2)] == [b"abc", b""]

    async def test_a_body_that_was_never_asked_for_costs_the_connection(self) -> None:
        head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(head)
            status, headers, _ = await client.read_answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.read_end() == (b"", "closed")

    @pytest.mark.parametrize("handler", [echo, ignore], ids=["read", "not read"])
    async def test_broken_framing_never_reaches_the_next_request(self, handler: Handler) -> None:
        async with serving(handler) as listener, connected(listener.port) as client:
            await client.send(
                b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + GET
            )
            assert (await client.read_answer())[0] == (400 if handler is echo else 200)
            assert await client.read_end() == (b"", "closed")

    async def test_one_that_ends_early_is_400(self) -> None:
        async with serving(echo) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
            client.writer.write_eof()
            assert (await client.read_answer())[0] == 400
            assert await client.read_end() == (b"", "closed")

    async def test_one_that_stops_coming_is_408(self) -> None:
        limits = ConnectionLimits(body_timeout=0.02, linger_timeout=LINGER)
        async with serving(echo, limits) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
            status, headers, _ = await client.read_answer()
            assert (status, headers["connection"]) == (408, "close")
            assert await client.read_end() == (b"", "closed")


class TestResponses:
    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    @pytest.mark.parametrize("length", [None, 6], ids=["length unknown", "length known"])
    @pytest.mark.parametrize("chunked", [False, True], ids=["plain", "end withheld"])
    async def test_a_stream_is_whole_in_every_framing(
        self, version: str, length: int | None, chunked: bool
    ) -> None:
        body = Body(b"abc", b"", b"def")
        async with (
            serving(streaming(body, length, chunked=chunked)) as listener,
            connected(listener.port) as client,
        ):
            await client.send(f"GET / HTTP/{version}\r\nHost: h\r\n\r\n".encode())
            _, headers, content = await client.read_answer()
            if version == "1.1" and (chunked or length is None):
                assert (headers["transfer-encoding"], content) == ("chunked", b"abcdef")
                assert "content-length" not in headers
            elif length is None:
                assert "transfer-encoding" not in headers
                content, how = await client.read_end()
                assert how == "closed"
            else:
                assert headers["content-length"] == "6"
                assert "transfer-encoding" not in headers
            assert content == b"abcdef"
            await asyncio.wait_for(body.is_closed.wait(), PATIENCE)

    async def test_http_1_0_is_closed_after_one_answer(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (await client.read_answer())[2] == b"ok"
            assert await client.read_end() == (b"", "closed")

    @pytest.mark.parametrize("length", [None, 6], ids=["length unknown", "length known"])
    async def test_head_takes_no_body_and_keeps_the_connection(self, length: int | None) -> None:
        body = Body(b"abc", b"def")
        async with serving(streaming(body, length)) as listener, connected(listener.port) as client:
            await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
            for _ in range(2):
                _, headers, _ = await client.read_answer(is_head=True)
                assert headers.get("content-length") == (None if length is None else "6")
            assert body.num_given == 0
            assert body.is_closed.is_set()

    async def test_head_of_a_body_in_memory_tells_its_length(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + GET)
            assert (await client.read_answer(is_head=True))[1]["content-length"] == "2"
            assert (await client.read_answer())[2] == b"ok"

    async def test_204_and_304_have_no_body(self) -> None:
        statuses = [204, 304]
        handler = giving(lambda: Response(statuses.pop(0), [], b"not to be sent"))
        async with serving(handler) as listener, connected(listener.port) as client:
            await client.send(GET + GET)
            assert [s for s, _, _ in await gather_answers(client, 2)] == [204, 304]

    @pytest.mark.parametrize(
        ("body", "length"),
        [
            pytest.param(lambda: Body(b"abc", error=UpstreamError("gone")), None, id="chunked"),
            pytest.param(lambda: Body(b"abc", error=IntegrityError("bad")), 10, id="counted"),
            pytest.param(lambda: Body(b"abc"), 10, id="too short"),
            pytest.param(lambda: Body(b"abc", b"defg"), 5, id="too long"),
            pytest.param(lambda: Body(b"abc", error=TimeoutError()), None, id="timed out"),
            pytest.param(lambda: Body(b"abc", error=ZeroDivisionError()), None, id="a bug"),
            pytest.param(lambda: Body(error=UpstreamError("gone")), None, id="before a byte"),
            pytest.param(lambda: Body(), 10, id="nothing"),
        ],
    )
    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    async def test_a_failing_body_is_cut_with_a_reset(
        self,
        body: Callable[[], Body],
        length: int | None,
        version: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        made = body()
        async with serving(streaming(made, length)) as listener, connected(listener.port) as client:
            await client.send(f"GET / HTTP/{version}\r\nHost: h\r\n\r\n".encode())
            content, how = await client.read_end()
            assert how == "reset"
            assert not content.endswith(b"0\r\n\r\n")
            await asyncio.wait_for(made.is_closed.wait(), PATIENCE)
        assert warnings_in(caplog) == []

    async def test_a_body_whose_closing_takes_time_is_closed_to_its_end(self) -> None:
        ended = asyncio.Event()

        class Slow(Body):
            async def aclose(self) -> None:
                await turn(20)  # more than the reset needs to be noticed
                ended.set()

        body = Slow(b"abc", error=UpstreamError("gone"))
        async with serving(streaming(body)) as listener, connected(listener.port) as client:
            await client.send(GET)
            assert (await client.read_end())[1] == "reset"
            await asyncio.wait_for(ended.wait(), PATIENCE)

    async def test_a_client_that_leaves_does_not_interrupt_the_closing_of_its_body(self) -> None:
        closing, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Slow(Body):
            async def aclose(self) -> None:
                closing.set()
                await may_end.wait()
                ended.set()

        async with (
            serving(streaming(Slow(b"abc"))) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET)
            await client.read_answer()
            await closing.wait()
            client.reset()
            await turn(20)
            may_end.set()
            await asyncio.wait_for(ended.wait(), PATIENCE)
            await until(lambda: not listener.num_connections)

    async def test_a_refusal_of_the_handler_is_json_with_its_headers(self) -> None:
        async def handle(request: Request) -> Response:
            raise RequestError(405, "only GET", [("Allow", "GET")])

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(GET)
            status, headers, body = await client.read_answer()
            assert (status, headers["allow"], body) == (405, "GET", b'{"error": "only GET"}\n')

    async def test_a_bug_in_the_handler_is_500_and_says_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def handle(request: Request) -> Response:
            raise KeyError("hf_secret")

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(GET + GET)
            for _ in range(2):
                status, headers, body = await client.read_answer()
                assert status == 500
                assert b"secret" not in body
                assert headers["x-request-id"].encode() in body

    async def test_a_header_that_cannot_be_sent_is_not_sent(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        body = Body(b"x")
        handler = giving(lambda: Response(200, [("X-Bad", "a\r\nSet-Cookie: b")], body))
        async with serving(handler) as listener, connected(listener.port) as client:
            await client.send(GET)
            content, _ = await client.read_end()
            assert b"Set-Cookie" not in content
            assert body.is_closed.is_set()


class TestSlowClients:
    async def test_one_that_reads_nothing_is_cut(self) -> None:
        body = Body(*[bytes(1 << 20)] * 64)
        limits = ConnectionLimits(write_timeout=0.05, linger_timeout=LINGER)
        async with serving(streaming(body), limits) as listener, connected(listener.port) as client:
            await client.send(GET)
            await asyncio.wait_for(body.is_closed.wait(), PATIENCE)
            assert body.num_given < 64
            assert (await client.read_end())[1] == "reset"

    async def test_the_next_block_is_asked_for_only_when_the_last_has_left(self) -> None:
        body = Body(bytes(BIG), b"rest")
        async with serving(streaming(body)) as listener, connected(listener.port) as client:
            await client.send(GET)
            await client.reader.readexactly(1000)
            assert body.num_given == 1
            content, how = b"", ""
            await client.send(CLOSING_GET)
            content, how = await client.read_end()
            assert how == "closed"
            assert b"rest" in content[-200_000:]

    @pytest.mark.parametrize("waits_for", ["first", "next"])
    async def test_a_silent_one_is_closed_without_a_word(self, waits_for: str) -> None:
        limits = ConnectionLimits(keep_alive_timeout=0.02, linger_timeout=LINGER)
        async with serving(ignore, limits) as listener, connected(listener.port) as client:
            if waits_for == "next":
                await client.send(GET)
                await client.read_answer()
            assert await client.read_end() == (b"", "closed")

    @pytest.mark.parametrize("waits_for", ["first", "next"])
    async def test_a_request_that_has_come_when_the_time_is_over_is_served(
        self, waits_for: str
    ) -> None:
        keep_alive = 0.5
        limits = ConnectionLimits(keep_alive_timeout=keep_alive, linger_timeout=LINGER)
        async with serving(echo, limits) as listener, connected(listener.port) as client:
            if waits_for == "next":
                await client.send(GET)
                await client.read_answer()
            await until(lambda: listener.num_connections == 1)
            # The loop stands still while the request comes and the time runs out: of both, it
            # looks at the clock first.
            request = b"POST /late HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab"
            os.write(client.writer.get_extra_info("socket").fileno(), request)
            time.sleep(keep_alive + 0.01)  # noqa: ASYNC251
            status, headers, body = await client.read_answer()
            assert (status, headers["x-target"], body) == (200, "/late", b"ab")

    async def test_a_request_that_has_come_when_the_server_stops_is_served(self) -> None:
        async with serving(echo) as listener, connected(listener.port) as client:
            await client.send(GET)
            await client.read_answer()
            os.write(client.writer.get_extra_info("socket").fileno(), GET)
            draining = asyncio.ensure_future(listener.drain(PATIENCE))
            status, headers, _ = await client.read_answer()
            assert (status, headers["connection"]) == (200, "close")
            await draining

    async def test_a_head_that_stops_is_408(self) -> None:
        limits = ConnectionLimits(head_timeout=0.02, linger_timeout=LINGER)
        async with serving(ignore, limits) as listener, connected(listener.port) as client:
            await client.send(GET[:-2])
            status, headers, _ = await client.read_answer()
            assert (status, headers["connection"]) == (408, "close")
            assert await client.read_end() == (b"", "closed")

    async def test_a_head_that_trickles_is_408_too(self) -> None:
        limits = ConnectionLimits(head_timeout=0.1, linger_timeout=LINGER)
        async with serving(ignore, limits) as listener, connected(listener.port) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX: ")
            answer = asyncio.ensure_future(client.read_answer())
            for _ in range(100):
                await client.send(b"x")
                done, _ = await asyncio.wait((answer,), timeout=0.02)
                if done:
                    break
            assert answer.done(), "two seconds of bytes one by one, and still no end"
            assert (await answer)[0] == 408

    async def test_a_body_that_trickles_is_408(self) -> None:
        limits = ConnectionLimits(body_timeout=0.1, min_body_rate=1000, linger_timeout=LINGER)
        async with serving(echo, limits) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n")
            answer = asyncio.ensure_future(client.read_answer())
            for _ in range(100):
                await client.send(b"x")
                done, _ = await asyncio.wait((answer,), timeout=0.02)
                if done:
                    break
            assert answer.done(), "two seconds of bytes one by one, and still no end"
            assert (await answer)[0] == 408

    async def test_a_body_of_which_only_framing_comes_is_408(self) -> None:
        limits = ConnectionLimits(body_timeout=0.1, min_body_rate=0, linger_timeout=LINGER)
        async with serving(echo, limits) as listener, connected(listener.port) as client:
            head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n1;a="
            await client.send(head)
            answer = asyncio.ensure_future(client.read_answer())
            for _ in range(100):
                await client.send(b"b")
                done, _ = await asyncio.wait((answer,), timeout=0.02)
                if done:
                    break
            assert answer.done(), "two seconds of an extension byte by byte, and still no end"
            assert (await answer)[0] == 408

    async def test_a_body_at_the_rate_that_is_asked_for_may_take_its_time(self) -> None:
        limits = ConnectionLimits(body_timeout=0.1, min_body_rate=50, linger_timeout=LINGER)
        async with serving(echo, limits) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n")
            # 200 bytes buy 4 s: ten waits of 0.03 s are less than that, and more than body_timeout.
            for _ in range(10):
                await client.send(bytes(200))
                await asyncio.sleep(0.03)
            assert (await client.read_answer())[2] == bytes(2000)

    async def test_time_in_which_nobody_wanted_the_body_is_not_the_clients(self) -> None:
        may_read = asyncio.Event()

        async def handle(request: Request) -> Response:
            await may_read.wait()
            return Response(200, [], await request.body.read(1 << 20))

        limits = ConnectionLimits(body_timeout=0.05, min_body_rate=1000, linger_timeout=LINGER)
        async with serving(handle, limits) as listener, connected(listener.port) as client:
            await client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
            await asyncio.sleep(0.1)
            may_read.set()
            assert (await client.read_answer())[0] == 200

    async def test_one_that_takes_too_little_is_cut(self) -> None:
        body = Body(*[bytes(1 << 20)] * 64)
        # It reads all the time, so it is not dead; but nobody is as fast as this asks for.
        limits = ConnectionLimits(
            min_write_rate=1e12, write_window=0.001, write_timeout=PATIENCE, linger_timeout=LINGER
        )
        async with serving(streaming(body), limits) as listener, connected(listener.port) as client:
            await client.send(GET)
            assert (await client.read_end())[1] == "reset"
            await asyncio.wait_for(body.is_closed.wait(), PATIENCE)
            assert body.num_given < 64

    async def test_a_connection_has_so_many_requests_and_no_more(self) -> None:
        limits = ConnectionLimits(max_requests=2, linger_timeout=LINGER)
        async with serving(ignore, limits) as listener, connected(listener.port) as client:
            await client.send(GET * 3)
            assert "connection" not in (await client.read_answer())[1]
            assert (await client.read_answer())[1]["connection"] == "close"
            assert (await client.read_end())[0] == b""

    async def test_limits_may_be_off(self) -> None:
        limits = ConnectionLimits(
            keep_alive_timeout=0, head_timeout=0, body_timeout=0, min_body_rate=0
        )
        async with serving(echo, limits) as listener, connected(listener.port) as client:
            for part in (b"POST / HTTP/1.1\r\nHost: h\r\n", b"Content-Length: 2\r\n\r\na", b"b"):
                await turn(20)
                await client.send(part)
            assert (await client.read_answer())[2] == b"ab"


class TestClientsThatLeave:
    async def leave(self, client: RawClient, how: str) -> None:
        if how == "reset":
            client.reset()
        else:
            await client.close()

    async def test_a_handler_is_cancelled_when_its_client_resets(self) -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handle(request: Request) -> Response:
            started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                cancelled.set()
            raise AssertionError

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(GET)
            await started.wait()
            client.reset()
            await asyncio.wait_for(cancelled.wait(), PATIENCE)
            await until(lambda: not listener.num_connections)

    async def test_a_body_that_waits_is_closed_when_its_client_resets(self) -> None:
        body = Body(b"x", stalls=True)
        async with serving(streaming(body)) as listener, connected(listener.port) as client:
            await client.send(GET)
            await body.is_waiting.wait()
            client.reset()
            await asyncio.wait_for(body.is_closed.wait(), PATIENCE)
            await until(lambda: not listener.num_connections)

    async def test_one_that_closed_its_side_while_a_body_waits_counts_as_gone(self) -> None:
        body = Body(b"x", stalls=True)
        limits = ConnectionLimits(half_closed_timeout=0.01, linger_timeout=LINGER)
        async with serving(streaming(body), limits) as listener, connected(listener.port) as client:
            await client.send(GET)
            await body.is_waiting.wait()
            client.writer.write_eof()
            await asyncio.wait_for(body.is_closed.wait(), PATIENCE)
            assert (await client.read_end())[1] == "reset"
            await until(lambda: not listener.num_connections)

    async def test_one_that_closed_its_side_and_reads_slowly_gets_the_body(self) -> None:
        body = Body(bytes(BIG), bytes(1))
        limits = ConnectionLimits(half_closed_timeout=0.01, linger_timeout=LINGER)
        async with serving(streaming(body), limits) as listener, connected(listener.port) as client:
            await client.send(CLOSING_GET)
            client.writer.write_eof()
            await until(lambda: body.num_given == 1)
            loop = asyncio.get_running_loop()
            seen = loop.time()
            await until(lambda: loop.time() > seen + 0.05)
            rest, how = await client.read_end()
            assert how == "closed"
            assert len(rest) > BIG

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_a_body_that_is_being_sent_is_closed(self, how: str) -> None:
        body = Body(*[bytes(1 << 20)] * 64)
        async with serving(streaming(body)) as listener, connected(listener.port) as client:
            await client.send(GET)
            await client.reader.readexactly(1000)
            await self.leave(client, how)
            await asyncio.wait_for(body.is_closed.wait(), PATIENCE)
            assert body.num_given < 64
            await until(lambda: not listener.num_connections)

    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_an_idle_one_is_forgotten(
        self, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(GET)
            await client.read_answer()
            await self.leave(client, how)
            await until(lambda: not listener.num_connections)
        assert warnings_in(caplog) == []

    async def test_a_request_that_breaks_off_is_forgotten(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(GET[:10])
            client.reset()
            await until(lambda: not listener.num_connections)
        assert warnings_in(caplog) == []

    async def test_a_broken_stream_in_the_handler_ends_the_connection(self) -> None:
        async def handle(request: Request) -> Response:
            raise BrokenStream("gone")

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(GET)
            assert await client.read_end() == (b"", "reset")


class Watching:
    """An observer that records its calls, with the block's size."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def before_block(self) -> None:
        self.log.append("before")

    def on_block(self, size: int) -> None:
        self.log.append(f"block {size}")

    def on_end(self) -> None:
        self.log.append("end")


def watched(body: Body, watching: Watching, length: int | None = None) -> Handler:
    return giving(lambda: Response(200, [], body, length, observer=watching))


class TestObserver:
    async def test_each_block_is_seen_before_and_as_it_is_sent(self) -> None:
        body, seen = Body(b"abc", b"", b"d"), Watching()
        async with (
            serving(watched(body, seen)) as listener,
            connected(listener.port) as client,
        ):
            await client.send(CLOSING_GET)
            await client.read_end()
            await until(lambda: "end" in seen.log)
        assert seen.log == [
            "before", "block 3", "before", "block 0", "before", "block 1", "before", "end",
        ]  # fmt: skip

    async def test_for_head_there_is_only_an_end(self) -> None:
        body, seen = Body(b"abc"), Watching()
        async with (
            serving(watched(body, seen, 3)) as listener,
            connected(listener.port) as client,
        ):
            await client.send(b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            await client.read_end()
            await body.is_closed.wait()
        assert seen.log == ["end"]
        assert body.num_given == 0

    async def test_a_body_that_breaks_has_an_end(self) -> None:
        body, seen = Body(b"abc", error=UpstreamError("gone")), Watching()
        async with (
            serving(watched(body, seen)) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET)
            await client.read_end()
            await body.is_closed.wait()
        assert seen.log == ["before", "block 3", "before", "end"]

    async def test_a_client_that_leaves_before_the_first_block_closes_the_body(self) -> None:
        is_waiting = asyncio.Event()

        class Waiting(Watching):
            async def before_block(self) -> None:
                is_waiting.set()
                await asyncio.get_running_loop().create_future()

        body, seen = Body(b"abc"), Waiting()
        async with (
            serving(watched(body, seen)) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET)
            await is_waiting.wait()
            client.reset()
            await body.is_closed.wait()
            await until(lambda: not listener.num_connections)
        assert seen.log == ["end"]
        assert body.num_given == 0


class TestRecords:
    async def test_a_request_tells_what_became_of_it(self) -> None:
        answered: list[Request] = []
        body = Body(b"abc", b"def")
        async with (
            serving(streaming(body), on_answer=answered.append) as listener,
            connected(listener.port) as client,
        ):
            await client.send(b"GET /file HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            await client.read_end()
        (request,) = answered
        record = request.record
        assert (request.target, request.peer) == ("/file", "127.0.0.1")
        assert request.client == "127.0.0.1"
        assert (record.status, record.sent, record.is_complete) == (200, 6, True)
        assert record.first_byte_time is not None
        assert 0 <= record.head_time <= record.first_byte_time <= record.total_time

    async def test_an_ipv6_client_is_counted_by_its_network(self) -> None:
        answered: list[Request] = []
        async with serving(ignore, host="::1", on_answer=answered.append) as listener:
            reader, writer = await asyncio.open_connection("::1", listener.port)
            writer.write(CLOSING_GET)
            await reader.read()
            writer.close()
        assert [(r.peer, r.client) for r in answered] == [("::1", "::/64")]

    async def test_every_request_is_told_of_once(self) -> None:
        answered: list[Request] = []
        async with (
            serving(ignore, on_answer=answered.append) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET + b"HEAD /head HTTP/1.1\r\nHost: h\r\n\r\n" + b"nonsense\r\n\r\n")
            await client.read_end()
        assert [(r.method, r.target) for r in answered] == [
            ("GET", "/"), ("HEAD", "/head"), ("-", "-"),
        ]  # fmt: skip
        assert [r.record.status for r in answered] == [200, 200, 400]
        assert [r.record.sent for r in answered][:2] == [2, 0]
        assert all(r.record.is_complete for r in answered)

    async def test_a_cut_answer_is_not_complete(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        answered: list[Request] = []
        body = Body(b"abc", error=UpstreamError("the data host answered 500"))
        async with (
            serving(streaming(body), on_answer=answered.append) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET)
            await client.read_end()
            await until(lambda: bool(answered))
        record = answered[0].record
        assert (record.status, record.sent, record.is_complete) == (200, 3, False)
        lines = [r.getMessage() for r in caplog.records]
        assert any("cut after 3 body bytes: the data host answered 500" in line for line in lines)

    async def test_an_answer_whose_client_leaves_is_not_complete(self) -> None:
        answered: list[Request] = []
        body = Body(b"abc", stalls=True)
        async with (
            serving(streaming(body), on_answer=answered.append) as listener,
            connected(listener.port) as client,
        ):
            await client.send(GET)
            await body.is_waiting.wait()
            client.reset()
            await until(lambda: bool(answered))
        assert (answered[0].record.sent, answered[0].record.is_complete) == (3, False)

    @pytest.mark.parametrize(
        ("value", "is_taken"),
        [
            pytest.param("7f3a-9b.1_c~d:e+f/g=@", True, id="all that a token may have"),
            pytest.param("x" * 128, True, id="as long as it may be"),
            pytest.param("x" * 129, False, id="too long"),
            pytest.param("", False, id="empty"),
            pytest.param("a b", False, id="blank inside"),
            pytest.param('a"b', False, id="quotation mark"),
            pytest.param("a\tb", False, id="tab"),
            pytest.param("caf\xe9", False, id="not ASCII"),
        ],
    )
    async def test_the_clients_request_id_is_taken_if_it_is_fit_to_be_one(
        self, value: str, is_taken: bool
    ) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            field = f"X-Request-Id: {value}".encode("latin-1")
            await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n%b\r\n\r\n" % field)
            answer = (await client.read_answer())[1]["x-request-id"]
            assert (answer == value) == is_taken
            assert len(answer) == (len(value) if is_taken else 16)

    async def test_two_request_ids_are_none(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(GET[:-2] + b"X-Request-Id: a\r\nX-Request-Id: b\r\n\r\n")
            assert (await client.read_answer())[1]["x-request-id"] not in ("a", "b", "a, b")

    async def test_a_refused_request_has_an_id_too(self) -> None:
        async with serving(ignore) as listener, connected(listener.port) as client:
            await client.send(b"nonsense\r\n\r\n")
            assert len((await client.read_answer())[1]["x-request-id"]) == 16

    async def test_json_with_half_a_surrogate_pair_is_sent(self) -> None:
        handler = giving(lambda: json_response(200, "\ud800"))
        async with serving(handler) as listener, connected(listener.port) as client:
            await client.send(GET)
            with contextlib.suppress(UnicodeDecodeError):
                assert (await client.read_answer())[2] == b'"\\ud800"\n'
