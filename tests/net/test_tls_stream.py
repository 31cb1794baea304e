"""Serving over TLS: the same promises as without."""

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator

import pytest

from tests.peers import Certificates, RawClient, connected, serving, turn
from tests.waiting import PATIENCE, until
from xetserve.http.messages import Block, Request, Response
from xetserve.net.loop_turns import Turns
from xetserve.net.server_connection import ConnectionLimits
from xetserve.net.tls import VERSIONS, ServerTls

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
MIB = 1024 * 1024


@pytest.fixture
def tls(certificates: Certificates) -> ServerTls:
    return ServerTls(certificates.chain, certificates.key)


async def ok(request: Request) -> Response:
    return Response(200, [], b"secure" if request.secure else b"plain")


def blocks(num: int, size: int = 200_000) -> list[bytes]:
    return [bytes([index % 251]) * (size + index) for index in range(num)]


class Stream:
    """A handler whose body is made of blocks; one buffer holds all of them in turn. `given` counts
    them.
    """

    def __init__(self, parts: list[bytes], error: Exception | None = None) -> None:
        self.parts = parts
        self.error = error
        self.given = 0
        self.closed = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        return Response(200, [], self.body(), chunked=True)

    async def body(self) -> AsyncGenerator[Block, None]:
        buffer = bytearray(max(map(len, self.parts)))
        try:
            for part in self.parts:
                buffer[: len(part)] = part
                self.given += 1
                yield [memoryview(buffer)[: len(part)]]
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


def last_line(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.records[-1].message


class Recording(Turns):
    """Notes who waits for a place."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def take(self, client: str, *, begins: bool) -> None:
        self.asked.append(client)
        await super().take(client, begins=begins)


async def test_a_handshake_takes_its_turn(tls: ServerTls, trusting: ssl.SSLContext) -> None:
    turns = Recording()
    async with (
        serving(ok, tls=tls, turns=turns) as listener,
        connected(listener.port, tls=trusting) as client,
    ):
        await client.send(GET)
        assert (await client.read_answer())[0] == 200
        assert turns.asked == ["127.0.0.1, handshakes", "127.0.0.1, heads"]


async def test_requests_share_a_connection(tls: ServerTls, trusting: ssl.SSLContext) -> None:
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    async with serving(ok, tls=tls) as listener, connected(listener.port, tls=trusting) as client:
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        for _ in range(3):
            await client.send(GET)
            assert (await client.read_answer())[2] == b"secure"
        await client.send(GET + GET)
        assert (await client.read_answer())[2] == b"secure"
        assert (await client.read_answer())[2] == b"secure"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_large_body_arrives_as_it_was_sent(
    tls: ServerTls, trusting: ssl.SSLContext, version: str
) -> None:
    trusting.minimum_version = trusting.maximum_version = VERSIONS[version]
    parts = [*blocks(40), b"x", *blocks(3, 2 * MIB)]
    async with (
        serving(Stream(parts), tls=tls) as listener,
        connected(listener.port, tls=trusting) as client,
    ):
        await client.send(GET)
        assert (await client.read_answer())[2] == b"".join(parts)


async def test_a_client_that_does_not_read_is_not_written_for(
    tls: ServerTls, trusting: ssl.SSLContext
) -> None:
    stream = Stream(blocks(500))
    async with serving(stream, tls=tls) as listener:
        async with connected(listener.port, tls=trusting) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(GET)
            given = -1
            # The kernels' buffers fill up; after that, nothing is asked for.
            while given != stream.given:
                given = stream.given
                await turn(300)
            assert 0 < given < 100
        await asyncio.wait_for(stream.closed.wait(), PATIENCE)


async def test_a_client_that_takes_nothing_is_cut(tls: ServerTls, trusting: ssl.SSLContext) -> None:
    stream = Stream(blocks(500))
    limits = ConnectionLimits(linger_timeout=0.2, write_timeout=0.05)
    async with (
        serving(stream, limits, tls=tls) as listener,
        connected(listener.port, tls=trusting) as client,
    ):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(GET)
        await asyncio.wait_for(stream.closed.wait(), PATIENCE)
        assert stream.given < 500
        await until(lambda: not listener.num_connections)


async def test_a_body_that_breaks_is_no_clean_end(tls: ServerTls, trusting: ssl.SSLContext) -> None:
    stream = Stream(blocks(3, 1000), error=RuntimeError("broken"))
    async with (
        serving(stream, tls=tls) as listener,
        connected(listener.port, tls=trusting) as client,
    ):
        await client.send(GET)
        received, how = await client.read_end()
        assert how == "reset"
        assert not received.endswith(b"\r\n0\r\n\r\n")


async def test_the_end_is_said_before_the_connection_is_closed(
    tls: ServerTls, certificates: Certificates
) -> None:
    """A close_notify: whoever reads to the end knows that it is the end."""
    context = ssl.create_default_context(cafile=str(certificates.ca))
    async with serving(ok, tls=tls) as listener:

        def ask() -> bytes:
            with (
                socket.create_connection(("127.0.0.1", listener.port), timeout=PATIENCE) as raw,
                context.wrap_socket(
                    raw, server_hostname="localhost", suppress_ragged_eofs=False
                ) as client,
            ):
                client.sendall(CLOSING)
                answer = b""
                while piece := client.recv(65536):
                    answer += piece
                return answer

        assert (await asyncio.to_thread(ask)).endswith(b"secure")
        await until(lambda: not listener.num_connections)


async def test_a_client_that_leaves_ends_its_request(
    tls: ServerTls, trusting: ssl.SSLContext
) -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def wait(request: Request) -> Response:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return Response(200)

    async with serving(wait, tls=tls) as listener, connected(listener.port, tls=trusting) as client:
        await client.send(GET)
        await started.wait()
        client.reset()
        await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_an_idle_connection_is_closed(tls: ServerTls, trusting: ssl.SSLContext) -> None:
    limits = ConnectionLimits(linger_timeout=0.2, keep_alive_timeout=0.01)
    async with (
        serving(ok, limits, tls=tls) as listener,
        connected(listener.port, tls=trusting) as client,
    ):
        assert await client.read_end() == (b"", "closed")


async def test_a_request_that_has_come_when_the_time_is_over_is_served(
    tls: ServerTls, certificates: Certificates
) -> None:
    keep_alive = 0.5
    limits = ConnectionLimits(linger_timeout=0.2, keep_alive_timeout=keep_alive)
    async with serving(ok, limits, tls=tls) as listener, connected(listener.port) as client:
        secure = await speak_tls(client, certificates)
        secure.tls.write(CLOSING)
        mark = len(client.received)
        os.write(client.writer.get_extra_info("socket").fileno(), secure.outgoing.read())
        # The loop stands still while the request comes and the time runs out.
        time.sleep(keep_alive + 0.01)  # noqa: ASYNC251
        received, _ = await client.read_end()
        secure.incoming.write(received[mark:])
        assert secure.tls.read(1 << 16).startswith(b"HTTP/1.1 200 ")


async def test_parts_of_a_record_are_not_waited_for_longer_than_nothing(
    tls: ServerTls, certificates: Certificates
) -> None:
    limits = ConnectionLimits(linger_timeout=0.2, keep_alive_timeout=0.05)
    async with serving(ok, limits, tls=tls) as listener, connected(listener.port) as client:
        secure = await speak_tls(client, certificates)
        secure.tls.write(GET)
        await client.send(secure.outgoing.read()[:10])
        assert (await client.read_end())[1] == "closed"


async def test_a_head_that_does_not_end_is_too_late(
    tls: ServerTls, trusting: ssl.SSLContext
) -> None:
    limits = ConnectionLimits(linger_timeout=0.2, head_timeout=0.05)
    async with (
        serving(ok, limits, tls=tls) as listener,
        connected(listener.port, tls=trusting) as client,
    ):
        await client.send(GET[:-4])
        assert (await client.read_answer())[0] == 408


class Secure:
    """TLS by hand, on a raw client."""

    def __init__(self, certificates: Certificates) -> None:
        context = ssl.create_default_context(cafile=str(certificates.ca))
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # no tickets after the handshake
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")


async def speak_tls(client: RawClient, certificates: Certificates) -> Secure:
    secure = Secure(certificates)
    while True:
        try:
            secure.tls.do_handshake()
        except ssl.SSLWantReadError:
            await client.send(secure.outgoing.read())
            data = await client.read()
            assert data
            secure.incoming.write(data)
        else:
            if secure.outgoing.pending:
                await client.send(secure.outgoing.read())
            return secure


async def test_bytes_that_are_no_record_end_the_connection(
    tls: ServerTls, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "xetserve")
    async with serving(ok, tls=tls) as listener, connected(listener.port) as client:
        await speak_tls(client, certificates)
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.read_end()
        await until(lambda: not listener.num_connections)
    assert "ended: TLS: " in last_line(caplog)
    assert not [r for r in caplog.records if r.exc_info]


# Handshakes that fail


class TestHandshake:
    async def test_plain_http_is_told_so(self, tls: ServerTls) -> None:
        async with serving(ok, tls=tls) as listener, connected(listener.port) as client:
            await client.send(GET)
            status, headers, body = await client.read_answer()
            assert (status, headers["connection"]) == (400, "close")
            assert b"https" in body
            assert (await client.read_end())[1] == "closed"

    @pytest.mark.parametrize(
        "sent", [b"\x16", b"\x16\x03\x01\x00\x05\x01\x00", b"\x16garbage" * 20], ids=repr
    )
    async def test_a_client_that_stops_is_closed_in_time(
        self, tls: ServerTls, sent: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "xetserve")
        limits = ConnectionLimits(linger_timeout=0.2, handshake_timeout=0.05)
        async with serving(ok, limits, tls=tls) as listener, connected(listener.port) as client:
            await client.send(sent)
            await client.read_end()
            await until(lambda: not listener.num_connections)
        assert "no request from 127.0.0.1" in last_line(caplog)
        assert not [r for r in caplog.records if r.exc_info or r.levelno > logging.DEBUG]

    async def test_one_that_says_nothing_is_closed_in_time(self, tls: ServerTls) -> None:
        limits = ConnectionLimits(linger_timeout=0.2, handshake_timeout=0.01)
        async with serving(ok, limits, tls=tls) as listener, connected(listener.port) as client:
            assert await client.read_end() == (b"", "closed")

    async def test_an_old_client_gets_an_alert(
        self, tls: ServerTls, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "xetserve")
        # TLS 1.0, a random number, no session, one cipher suite (RSA, AES-128, SHA-1), no
        # compression.
        hello = b"\x03\x01" + bytes(32) + b"\x00" + b"\x00\x02\x00\x2f" + b"\x01\x00"
        hello = b"\x01" + len(hello).to_bytes(3, "big") + hello
        old = b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello
        async with serving(ok, tls=tls) as listener, connected(listener.port) as client:
            await client.send(old)
            received, _ = await client.read_end()
        assert received[:1] == b"\x15"
        assert received[-2:] == b"\x02\x46"  # fatal, protocol_version
        assert "UNSUPPORTED_PROTOCOL" in caplog.text

    async def test_a_client_that_leaves_is_forgotten(
        self, tls: ServerTls, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serving(ok, tls=tls) as listener:
            for leave in (RawClient.reset, RawClient.close):
                async with connected(listener.port) as client:
                    await until(lambda: listener.num_connections == 1)
                    await client.send(b"\x16\x03")
                    await turn(5)
                    if (waiting := leave(client)) is not None:
                        await waiting
                    await until(lambda: not listener.num_connections)
        assert not caplog.records

    async def test_a_drain_does_not_wait_for_one_that_hesitates(self, tls: ServerTls) -> None:
        limits = ConnectionLimits(linger_timeout=0.2, handshake_timeout=60, drain_grace=0.01)
        async with serving(ok, limits, tls=tls) as listener, connected(listener.port) as client:
            await client.send(b"\x16")
            await until(lambda: listener.num_connections == 1)
            async with asyncio.timeout(PATIENCE):
                await listener.drain(PATIENCE)
            assert listener.num_connections == 0

    async def test_there_is_an_alert_for_clients_there_is_no_room_for(
        self, tls: ServerTls, trusting: ssl.SSLContext
    ) -> None:
        limits = ConnectionLimits(linger_timeout=0.2, max_connections=1)
        async with (
            serving(ok, limits, tls=tls) as listener,
            connected(listener.port, tls=trusting),
        ):
            with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
                async with connected(listener.port, tls=trusting):
                    pass

    async def test_new_connections_get_the_new_context(
        self, tls: ServerTls, trusting: ssl.SSLContext, certificates: Certificates
    ) -> None:
        async with (
            serving(ok, tls=tls) as listener,
            connected(listener.port, tls=trusting) as first,
        ):
            other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            other.load_cert_chain(certificates.chain, certificates.key)
            other.maximum_version = ssl.TLSVersion.TLSv1_2
            tls.context = other
            async with connected(listener.port, tls=trusting) as second:
                await second.send(GET)
                assert (await second.read_answer())[2] == b"secure"
                assert second.writer.get_extra_info("cipher")[1] == "TLSv1.2"
            await first.send(GET)
            assert (await first.read_answer())[2] == b"secure"
            assert first.writer.get_extra_info("cipher")[1] == "TLSv1.3"
