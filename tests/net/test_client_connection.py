"""One upstream connection, against peers that answer in every way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.peers import STALL, Answer, ScriptedPeer, Wire, answering, http_answer, turn
from tests.waiting import PATIENCE, until
from xetserve.errors import BrokenStream, UpstreamError
from xetserve.net.client_connection import ClientConnection, ClientResponse
from xetserve.net.stream import ByteStream

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def connection_to(peer: ScriptedPeer) -> AsyncIterator[ClientConnection]:
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(ByteStream, "127.0.0.1", peer.port)
    try:
        yield ClientConnection(stream)
    finally:
        stream.abort()
        await stream.aclose()


async def get(
    connection: ClientConnection, peer: ScriptedPeer, method: str = "GET"
) -> ClientResponse:
    return await connection.request(method, peer.url("/x?y=%20"), (), b"", PATIENCE)


async def get_all(connection: ClientConnection, peer: ScriptedPeer) -> bytes:
    response = await get(connection, peer)
    return await response.read(1 << 24, PATIENCE)


def saying(*parts: bytes, then: str = "close") -> ScriptedPeer:
    """Answer the first request in several segments."""

    async def play(wire: Wire) -> None:
        await wire.read_request()
        for part in parts:
            await wire.send(part)
            await turn(5)
        if then == "close":
            wire.writer.write_eof()
        elif then == "reset":
            wire.reset()

    return ScriptedPeer(play)


class TestRequests:
    async def test_the_request_is_what_was_asked_for(self) -> None:
        async with (
            ScriptedPeer(answering(http_answer(200))) as peer,
            connection_to(peer) as connection,
        ):
            headers = [("X-A", "1"), ("Range", "bytes=0-1")]
            await connection.request("GET", peer.url("/a%2Fb?c=d%2B+"), headers, b"", PATIENCE)
            assert peer.received == (
                b"GET /a%2Fb?c=d%2B+ HTTP/1.1\r\nHost: 127.0.0.1:" + str(peer.port).encode()
                + b"\r\nX-A: 1\r\nRange: bytes=0-1\r\n\r\n"
            )  # fmt: skip

    @pytest.mark.parametrize(("method", "body"), [("POST", b"abc"), ("POST", b""), ("PUT", b"x")])
    async def test_a_body_has_its_length(self, method: str, body: bytes) -> None:
        async with (
            ScriptedPeer(answering(http_answer(200))) as peer,
            connection_to(peer) as connection,
        ):
            await connection.request(method, peer.url(), (), body, PATIENCE)
            (request,) = peer.requests
            assert (request.method, request.body) == (method, body)
            assert request.get("content-length") == str(len(body))

    @pytest.mark.parametrize("has_answer", [True, False])
    @pytest.mark.parametrize("num_more", [0, 3])
    async def test_an_answer_before_the_end_of_a_streamed_body(
        self, has_answer: bool, num_more: int
    ) -> None:
        has_come = asyncio.Event()

        async def play(wire: Wire) -> None:
            await wire.reader.readuntil(b"first")
            if has_answer:
                await wire.send(http_answer(413, b"too large"))
                await has_come.wait()
            wire.reset()

        async with ScriptedPeer(play) as peer, connection_to(peer) as connection:

            async def pieces() -> AsyncIterator[bytes]:
                yield b"first"
                if has_answer:
                    await until(lambda: not connection.stream.is_quiet)
                    has_come.set()
                await until(lambda: connection.stream._lost)
                for _ in range(num_more):
                    yield b"more"

            asked = connection.request("POST", peer.url(), (), pieces(), PATIENCE)
            if not has_answer:
                with pytest.raises(BrokenStream, match="connection reset"):
                    await asked
                return
            response = await asked
            assert response.status == 413
            assert await response.read(100, PATIENCE) == b"too large"
            assert not connection.is_reusable

    async def test_several_on_one_connection(self) -> None:
        answers: list[Answer] = [
            http_answer(200, b"one"),
            CHUNKED + b"3\r\ntwo\r\n0\r\nTrailer: x\r\n\r\n",
            http_answer(404, b""),
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
            http_answer(200, b"six"),
        ]
        async with ScriptedPeer(answering(*answers)) as peer, connection_to(peer) as connection:
            contents = []
            for _ in answers:
                contents.append(await get_all(connection, peer))
                assert connection.is_reusable
            assert contents == [b"one", b"two", b"", b"", b"", b"six"]
            assert connection.num_requests == 6
            assert len(peer.wires) == 1


class TestBodies:
    @pytest.mark.parametrize(
        "parts",
        [
            pytest.param([http_answer(200, b"content")], id="one segment"),
            pytest.param([http_answer(200, b"content")[:-3], b"ent"], id="two segments"),
            pytest.param([bytes([c]) for c in http_answer(200, b"content")], id="byte by byte"),
            pytest.param([CHUNKED + b"7\r\ncontent\r\n0\r\n\r\n"], id="chunked"),
            pytest.param(
                [bytes([c]) for c in CHUNKED + b"3;x=y\r\ncon\r\n4\r\ntent\r\n0\r\n\r\n"],
                id="chunked, byte by byte",
            ),
            pytest.param(
                [CHUNKED + b"3 \r\ncon\r\n04; x y=\r\ntent\r\n0  \r\nX: y\r\n\r\n"],
                id="chunked, oddly",
            ),
            pytest.param([b"HTTP/1.1 200 OK\r\n\r\ncont", b"ent"], id="until the end"),
            pytest.param([b"HTTP/1.0 200 OK\r\n\r\ncontent"], id="HTTP/1.0"),
            pytest.param(
                [
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n",
                    http_answer(200, b"content"),
                ],
                id="interim answers",
            ),
        ],
    )
    @pytest.mark.parametrize("view_size", [1, 3, 100])
    async def test_content_comes_out_in_every_framing(
        self, parts: list[bytes], view_size: int
    ) -> None:
        async with saying(*parts) as peer, connection_to(peer) as connection:
            response = await get(connection, peer)
            view = memoryview(bytearray(view_size))
            content = b""
            while count := await response.receive_into(view, PATIENCE):
                content += view[:count]
            assert content == b"content"
            assert await response.receive_into(view, PATIENCE) == 0

    async def test_a_large_one_goes_straight_into_the_callers_buffer(self) -> None:
        content = bytes(range(256)) * 10_000
        async with saying(http_answer(200, content)) as peer, connection_to(peer) as connection:
            response = await get(connection, peer)
            buffer = memoryview(bytearray(len(content) + 10))
            filled = 0
            while count := await response.receive_into(buffer[filled:], PATIENCE):
                filled += count
            assert (filled, bytes(buffer[:filled])) == (len(content), content)

    async def test_head_tells_a_length_and_has_no_body(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
        async with saying(answer) as peer, connection_to(peer) as connection:
            response = await get(connection, peer, "HEAD")
            assert response.content_length == 5
            assert await response.read(10, PATIENCE) == b""

    @pytest.mark.parametrize(
        "parts",
        [
            pytest.param([http_answer(200, b"content")[:-1]], id="counted"),
            pytest.param([CHUNKED + b"7\r\ncont"], id="in a chunk"),
            pytest.param([CHUNKED + b"7\r\ncontent\r\n"], id="without a last chunk"),
            pytest.param([CHUNKED + b"7\r\ncontent\r\n0\r\n"], id="without the last line"),
        ],
    )
    @pytest.mark.parametrize("then", ["close", "reset"])
    async def test_one_that_ends_early_is_broken(self, parts: list[bytes], then: str) -> None:
        async with saying(*parts, then=then) as peer, connection_to(peer) as connection:
            with pytest.raises(BrokenStream):
                await get_all(connection, peer)
            assert not connection.is_reusable

    async def test_a_reset_is_no_end_of_a_body_without_a_length(self) -> None:
        parts = [b"HTTP/1.1 200 OK\r\n\r\n", b"cont"]
        async with saying(*parts, then="reset") as peer, connection_to(peer) as connection:
            with pytest.raises(BrokenStream):
                await get_all(connection, peer)

    async def test_a_silent_one_times_out(self) -> None:
        peer = saying(http_answer(200, b"content")[:-1], then="")
        async with peer, connection_to(peer) as connection:
            response = await get(connection, peer)
            with pytest.raises(TimeoutError):
                await response.read(100, 0.02)
            assert not connection.is_reusable

    async def test_one_above_the_limit_is_refused(self) -> None:
        async with saying(http_answer(200, b"x" * 99)) as peer, connection_to(peer) as connection:
            response = await get(connection, peer)
            with pytest.raises(UpstreamError, match="more than 10 bytes"):
                await response.read(10, PATIENCE)
            assert not connection.is_reusable

    async def test_a_cancelled_read_leaves_a_connection_that_is_not_reused(self) -> None:
        peer = saying(http_answer(200, b"content")[:-1], then="")
        async with peer, connection_to(peer) as connection:
            response = await get(connection, peer)
            task = asyncio.ensure_future(response.read(100, None))
            await turn(3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not connection.is_reusable

    async def test_a_read_cancelled_just_after_its_bytes_came_is_not_reused(self) -> None:
        async with (
            saying(http_answer(200, b"content")[:-7], then="") as peer,
            connection_to(peer) as connection,
        ):
            response = await get(connection, peer)
            task = asyncio.ensure_future(response.receive_into(memoryview(bytearray(7)), None))
            await turn()
            connection.stream.get_buffer(0)[:7] = b"content"
            connection.stream.buffer_updated(7)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not connection.is_reusable


class TestBadAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"HTTP/1.1 200", id="half a head"),
            pytest.param(b"220 smtp ready\r\n\r\n", id="another protocol"),
            pytest.param(b"\x15\x03\x01\x00\x02\x02\x16", id="a TLS alert"),
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="bad length"),
            pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", id="negative length"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
                id="two lengths",
            ),
            pytest.param(http_answer(200, b"ab") + b"c", id="more than announced"),
            pytest.param(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", id="unknown framing"
            ),
            pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000, id="a head without an end"),
            pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", id="switching protocols"),
            pytest.param(CHUNKED + b"zz\r\n", id="bad chunk"),
        ],
    )
    async def test_what_is_not_http_is_a_broken_stream(self, answer: bytes) -> None:
        async with saying(answer) as peer, connection_to(peer) as connection:
            with pytest.raises(BrokenStream):
                await get_all(connection, peer)
            assert not connection.is_reusable

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(b"HTTP/1.1 200 OK\r\nX:%b\x0b\r\n\r\n", id="field"),
            pytest.param(CHUNKED + b"2;%b\n\r\nok\r\n0\r\n\r\n", id="chunk extension"),
            pytest.param(CHUNKED + b"0\r\nX:%b\x0b\r\n\r\n", id="trailer"),
        ],
    )
    async def test_a_long_run_of_blanks_costs_no_time(self, answer: bytes) -> None:
        # If each of them were tried as a value's end, this would take longer than a test may.
        peer = saying(answer % (b" " * 100_000))
        async with peer, connection_to(peer) as connection:
            with pytest.raises(BrokenStream):
                await get_all(connection, peer)

    async def test_interim_answers_have_an_end(self) -> None:
        async def play(wire: Wire) -> None:
            await wire.read_request()
            with suppress(ConnectionError):
                while True:
                    await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

        async with ScriptedPeer(play) as peer, connection_to(peer) as connection:
            with pytest.raises(BrokenStream, match="too large"):
                await get_all(connection, peer)
            connection.stream.abort()

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 302 Found\r\nLocation: http://h/?sig=s3cret\x01\r\n\r\n",
            CHUNKED + b"s3cret\r\n",
            CHUNKED + b"0" * 21 + b";s3cret\r\n",
            CHUNKED + b"0\r\ns3cret\r\n\r\n",
        ],
    )
    async def test_no_message_quotes_an_answer(self, answer: bytes) -> None:
        async with saying(answer) as peer, connection_to(peer) as connection:
            with pytest.raises(BrokenStream, match="not HTTP") as caught:
                await get_all(connection, peer)
            assert "s3cret" not in str(caught.value)

    async def test_no_answer_times_out(self) -> None:
        async with ScriptedPeer(answering(STALL)) as peer, connection_to(peer) as connection:
            with pytest.raises(TimeoutError):
                await connection.request("GET", peer.url(), (), b"", 0.02)
            assert not connection.is_reusable

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param("HTTP/1.1 200 OK\r\nConnection: close\r\n", id="close"),
            pytest.param("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n", id="Close among others"),
            pytest.param("HTTP/1.0 200 OK\r\n", id="HTTP/1.0"),
        ],
    )
    async def test_a_server_that_will_close_is_not_asked_again(self, head: str) -> None:
        answer = f"{head}Content-Length: 2\r\n\r\nok".encode()
        async with saying(answer, then="") as peer, connection_to(peer) as connection:
            assert await get_all(connection, peer) == b"ok"
            assert not connection.is_reusable

    @pytest.mark.parametrize(
        ("method", "answer"),
        [
            pytest.param("HEAD", http_answer(200, b"unasked"), id="a body to HEAD"),
            pytest.param("GET", b"HTTP/1.1 204 X\r\n\r\nunasked", id="a body with 204"),
            pytest.param(
                "GET", CHUNKED + b"2\r\nok\r\n0\r\n\r\nunasked", id="after the last chunk"
            ),
        ],
    )
    async def test_bytes_that_were_not_announced_are_no_answer_to_the_next_request(
        self, method: str, answer: bytes
    ) -> None:
        async with saying(answer, then="") as peer, connection_to(peer) as connection:
            response = await get(connection, peer, method)
            await response.read(100, PATIENCE)
            assert not connection.is_reusable


def test_nothing_secret_shows() -> None:
    connection = ClientConnection(ByteStream())
    assert "Bearer" not in repr(connection)
