"""Behind a proxy: what a connection begins with, who it is then, and who is not let in."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import Certificates, RawClient, connected, serving
from tests.waiting import PATIENCE, until
from xetserve.http.messages import Request, Response, json_response
from xetserve.http.proxy_headers import Forwarding, TrustedProxies
from xetserve.net.listener import ProxyPolicy
from xetserve.net.server_connection import ConnectionLimits
from xetserve.net.tls import ServerTls

ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
V1 = b"PROXY TCP4 203.0.113.7 192.0.2.2 1234 443\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\xc0\x00\x02\x02\x04\xd2\x01\xbb"
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
QUICK = ConnectionLimits(linger_timeout=0.2, handshake_timeout=0.05)


def policy(trusted: str = "127.0.0.0/8", *, needs_header: bool = True) -> ProxyPolicy:
    proxies = TrustedProxies(trusted)
    return ProxyPolicy(proxies, Forwarding(proxies), needs_header)


async def tell(request: Request) -> Response:
    return json_response(200, [request.peer, request.secure, request.host])


async def ask(client: RawClient, data: bytes) -> bytes:
    await client.send(data)
    status, _, body = await client.read_answer()
    assert status == 200
    return body.strip()


@pytest.mark.parametrize(
    ("header", "peer"), [(V1, b"203.0.113.7"), (V2, b"203.0.113.7"), (LOCAL, b"127.0.0.1")]
)
async def test_the_client_is_the_one_that_is_told(header: bytes, peer: bytes) -> None:
    async with serving(tell, proxies=policy()) as listener, connected(listener.port) as client:
        expected = b'["%b", false, "h"]' % peer
        assert await ask(client, header + GET) == expected
        assert await ask(client, GET) == expected


async def test_a_header_may_come_byte_by_byte() -> None:
    async with serving(tell, proxies=policy()) as listener, connected(listener.port) as client:
        for at in range(len(V2)):
            await client.send(V2[at : at + 1])
        assert b"203.0.113.7" in await ask(client, GET)


@pytest.mark.parametrize("header", [V1, V2, LOCAL], ids=["v1", "v2", "LOCAL"])
async def test_tls_begins_behind_it(certificates: Certificates, header: bytes) -> None:
    tls = ServerTls(certificates.chain, certificates.key)
    context = ssl.create_default_context(cafile=str(certificates.ca))
    async with (
        serving(tell, tls=tls, proxies=policy()) as listener,
        connected(listener.port) as client,
    ):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secure = context.wrap_bio(incoming, outgoing, server_hostname="localhost")

        async def finish(step: Callable[[], bytes | None]) -> bytes:
            while True:
                try:
                    return step() or b""
                except ssl.SSLWantReadError:
                    await client.send(outgoing.read())
                    data = await asyncio.wait_for(client.read(), PATIENCE)
                    assert data
                    incoming.write(data)

        await client.send(header)
        await finish(secure.do_handshake)
        secure.write(GET)
        answer = b""
        while b"]" not in answer:
            answer += await finish(secure.read)
        assert b', true, "h"]' in answer


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(GET, id="HTTP"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", id="TLS"),
        pytest.param(V1.replace(b"TCP4", b"TCP5") + GET, id="malformed"),
        pytest.param(b"PROXY " + b"x" * 200, id="without an end"),
    ],
)
async def test_what_does_not_begin_so_is_closed(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "xetserve")
    async with serving(tell, proxies=policy()) as listener, connected(listener.port) as client:
        await client.send(data)
        received, _ = await client.read_end()
        assert received == b""
        await until(lambda: not listener.num_connections)
    assert "no request from 127.0.0.1: " in caplog.text
    assert not [r for r in caplog.records if r.exc_info]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno > logging.DEBUG]
    assert warning.startswith("refused 1 connections, the last: 127.0.0.1: ")
    assert "proxy_protocol is on, so the proxy must send one (HAProxy: send-proxy" in warning


@pytest.mark.parametrize("data", [b"", b"PROXY TCP4 ", V2[:20]])
async def test_what_does_not_come_in_time_is_closed(data: bytes) -> None:
    async with (
        serving(tell, QUICK, proxies=policy()) as listener,
        connected(listener.port) as client,
    ):
        if data:
            await client.send(data)
        assert (await client.read_end())[0] == b""


async def test_strangers_are_refused() -> None:
    async with (
        serving(tell, proxies=policy("192.0.2.0/24")) as listener,
        connected(listener.port) as client,
    ):
        await client.send(V1 + GET)
        assert (await client.read_answer())[0] == 403
        await until(lambda: not listener.num_connections)


UNKNOWN = b"PROXY UNKNOWN\r\n"


@pytest.mark.parametrize("header", [LOCAL, UNKNOWN], ids=["LOCAL", "UNKNOWN"])
@pytest.mark.parametrize(
    ("path", "status"), [(b"/health", 200), (b"/ready", 200), (b"/", 403), (b"/health?x", 200)]
)
async def test_this_machine_may_ask_for_its_health_only(
    header: bytes, path: bytes, status: int
) -> None:
    async with (
        serving(tell, proxies=policy("192.0.2.0/24")) as listener,
        connected(listener.port) as client,
    ):
        await client.send(header + GET.replace(b" / ", b" %b " % path))
        assert (await client.read_answer())[0] == status
        await client.send(GET)
        assert (await client.read_answer())[0] == 403


@pytest.mark.parametrize("data", [GET, V2 + GET.replace(b" / ", b" /health ")])
async def test_a_local_stranger_without_such_a_header_is_refused(data: bytes) -> None:
    async with (
        serving(tell, proxies=policy("192.0.2.0/24")) as listener,
        connected(listener.port) as client,
    ):
        await client.send(data)
        assert (await client.read_answer())[0] == 403
        await until(lambda: not listener.num_connections)


async def test_connections_are_counted_as_those_of_the_clients() -> None:
    limits = ConnectionLimits(linger_timeout=0.2, max_connections_per_client=1)
    other = V1.replace(b"203.0.113.7", b"203.0.113.8")
    async with serving(tell, limits, proxies=policy()) as listener:
        async with connected(listener.port) as first:
            await ask(first, V1 + GET)
            async with connected(listener.port) as second:
                await second.send(V1 + GET)
                status, headers, _ = await second.read_answer()
                assert (status, headers["retry-after"]) == (429, "1")
                assert (await second.read_end())[1] == "closed"
            async with connected(listener.port) as third:
                await ask(third, other + GET)
            await ask(first, GET)
        await until(lambda: not listener.num_connections)
        async with connected(listener.port) as again:
            await ask(again, V1 + GET)


async def test_a_proxy_may_have_more_connections_than_a_client() -> None:
    limits = ConnectionLimits(linger_timeout=0.2, max_connections_per_client=1)
    async with (
        serving(tell, limits, proxies=policy(needs_header=False)) as listener,
        connected(listener.port) as first,
        connected(listener.port) as second,
    ):
        for client in (first, second):
            await ask(client, GET)


async def test_the_fields_of_a_trusted_proxy_count() -> None:
    fields = b"X-Forwarded-For: 1.1.1.1, 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n"
    request = GET[:-2] + fields
    async with (
        serving(tell, proxies=policy(needs_header=False)) as listener,
        connected(listener.port) as client,
    ):
        assert await ask(client, request) == b'["203.0.113.7", true, "h"]'
        # Each request is another client's.
        assert await ask(client, GET) == b'["127.0.0.1", false, "h"]'
        # Those who are connected keep what counted when they came.
        listener.configure(ConnectionLimits(linger_timeout=0.2), ProxyPolicy())
        assert await ask(client, request) == b'["203.0.113.7", true, "h"]'
        async with connected(listener.port) as late:
            assert await ask(late, request) == b'["127.0.0.1", false, "h"]'


async def test_the_fields_of_a_client_behind_a_header_do_not() -> None:
    """The one that the header names is not trusted, though the proxy that wrote it is."""
    request = GET[:-2] + b"X-Forwarded-For: 1.1.1.1\r\n\r\n"
    async with serving(tell, proxies=policy()) as listener, connected(listener.port) as client:
        assert await ask(client, V1 + request) == b'["203.0.113.7", false, "h"]'


async def test_limits_change_for_those_who_come() -> None:
    async with serving(tell) as listener, connected(listener.port) as early:
        await ask(early, GET)
        listener.configure(
            ConnectionLimits(linger_timeout=0.2, max_connections_per_client=1), ProxyPolicy()
        )
        async with connected(listener.port) as late:
            assert (await late.read_answer())[0] == 429
        await ask(early, GET)


# Before the first certificate


@pytest.mark.parametrize("header", [b"", V2], ids=["no proxy", "proxy"])
async def test_before_the_first_certificate_health_checks_are_answered(
    tmp_path: Path, certificates: Certificates, header: bytes
) -> None:
    pair = tmp_path / "chain.pem", tmp_path / "key.pem"
    tls = ServerTls(*pair, may_wait=True)
    async with (
        serving(tell, tls=tls, proxies=policy(needs_header=bool(header))) as listener,
        connected(listener.port) as client,
    ):
        await client.send(header)
        for path in (b"/health", b"/healthz", b"/ready"):
            assert b"false" in await ask(client, GET.replace(b"/", path, 1))
        await client.send(GET)
        status, _, body = await client.read_answer()
        assert (status, b"no TLS certificate yet" in body) == (503, True)


async def test_before_the_first_certificate_handshakes_end_at_once(
    tmp_path: Path, certificates: Certificates
) -> None:
    pair = tmp_path / "chain.pem", tmp_path / "key.pem"
    tls = ServerTls(*pair, may_wait=True)
    context = ssl.create_default_context(cafile=str(certificates.ca))
    async with serving(tell, tls=tls) as listener:
        async with connected(listener.port) as client:
            await client.send(b"\x16\x03\x01")
            assert await client.read_end() == (ALERT, "closed")
        with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
            await asyncio.open_connection("localhost", listener.port, ssl=context)
        pair[0].write_bytes(certificates.chain.read_bytes())
        pair[1].write_bytes(certificates.key.read_bytes())
        tls.check()
        reader, writer = await asyncio.open_connection("localhost", listener.port, ssl=context)
        writer.write(GET)
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        async with connected(listener.port) as client:  # plain HTTP is over
            await client.send(GET)
            assert (await client.read_answer())[0] == 400
