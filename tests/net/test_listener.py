"""Accepting clients, and letting them go."""

import asyncio
import contextlib
import logging
import socket
from typing import Any

import pytest

from tests.peers import connected, serving, turn
from tests.waiting import PATIENCE, until
from xetserve.http.messages import Request, Response
from xetserve.net.listener import Listener, bind_sockets
from xetserve.net.server_connection import ConnectionLimits

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Gate:
    """A handler that answers once it may."""

    def __init__(self) -> None:
        self.num_started = 0
        self.num_ended = 0
        self.started = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        self.num_started += 1
        self.started.set()
        try:
            await self.may_answer.wait()
        finally:
            self.num_ended += 1
        return Response(200, [], b"done")


async def ok(request: Request) -> Response:
    return Response(200, [], b"ok")


class TestIdle:
    async def test_it_is_idle_since_the_last_client_left(self) -> None:
        async with serving(ok) as listener:
            first = listener.idle_since
            assert first is not None
            async with connected(listener.port) as client:
                await client.send(GET)
                await client.read_answer()
                assert listener.idle_since is None
            await until(lambda: listener.idle_since is not None)
            assert (listener.idle_since or 0) > first

    async def test_who_is_here_when_it_leaves_is_served(self) -> None:
        gate = Gate()
        async with serving(gate) as listener, connected(listener.port) as client:
            await client.send(GET)
            await gate.started.wait()
            assert not listener.has_left
            listener.leave()
            assert listener.has_left
            gate.may_answer.set()
            assert (await client.read_answer())[2] == b"done"

    async def test_one_that_left_before_it_started_takes_nobody(self) -> None:
        listener = Listener(ok, ConnectionLimits())
        (sock,) = bind_sockets("127.0.0.1", 0)
        listener.leave()
        await listener.start([sock])
        assert sock.fileno() < 0
        await listener.drain(0)


class TestDrain:
    async def test_a_response_that_is_under_way_is_finished(self) -> None:
        gate = Gate()
        async with serving(gate) as listener, connected(listener.port) as client:
            await client.send(GET)
            await gate.started.wait()
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            await turn()
            gate.may_answer.set()
            status, headers, body = await client.read_answer()
            assert (status, headers["connection"], body) == (200, "close", b"done")
            assert await client.read_end() == (b"", "closed")
            await client.close()
            await drain
            assert listener.num_connections == 0

    async def test_a_response_that_takes_too_long_is_cut(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        gate = Gate()
        async with serving(gate) as listener, connected(listener.port) as client:
            await client.send(GET)
            await gate.started.wait()
            await listener.drain(0.01)
            assert gate.num_ended == 1
            assert await client.read_end() == (b"", "reset")
        assert [r.levelno for r in caplog.records] == [logging.WARNING]

    async def test_an_idle_connection_is_closed_at_once(self) -> None:
        async with serving(ok) as listener, connected(listener.port) as client:
            await client.send(GET)
            await client.read_answer()
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            assert await client.read_end() == (b"", "closed")
            await client.close()
            await drain

    async def test_a_client_that_has_just_connected_may_still_ask(self) -> None:
        async with serving(ok) as listener, connected(listener.port) as client:
            await until(lambda: listener.num_connections == 1)
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            await turn(20)
            await client.send(GET)
            status, headers, body = await client.read_answer()
            assert (status, headers["connection"], body) == (200, "close", b"ok")
            assert await client.read_end() == (b"", "closed")
            await client.close()
            await drain

    async def test_one_that_asks_for_nothing_is_closed_after_a_while(self) -> None:
        limits = ConnectionLimits(drain_grace=0.01, linger_timeout=0.2)
        async with serving(ok, limits) as listener, connected(listener.port) as client:
            await until(lambda: listener.num_connections == 1)
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            assert await client.read_end() == (b"", "closed")
            await client.close()
            await drain

    async def test_a_request_that_has_begun_to_come_is_answered(self) -> None:
        async with serving(ok) as listener, connected(listener.port) as client:
            await client.send(GET + GET[:10])
            await client.read_answer()
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            await turn(20)
            await client.send(GET[10:])
            status, headers, body = await client.read_answer()
            assert (status, headers["connection"], body) == (200, "close", b"ok")
            assert await client.read_end() == (b"", "closed")
            await client.close()
            await drain

    async def test_a_pipelined_request_is_still_answered(self) -> None:
        gate = Gate()
        async with serving(gate) as listener, connected(listener.port) as client:
            await client.send(GET + GET)
            await gate.started.wait()
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            await turn()
            gate.may_answer.set()
            # The head says that it was the last; what came after it was not served.
            assert (await client.read_answer())[1]["connection"] == "close"
            assert (await client.read_end())[1] in ("closed", "reset")
            await drain
            assert gate.num_started == 1

    async def test_nobody_is_accepted_any_more(self) -> None:
        async with serving(ok) as listener:
            await listener.drain(PATIENCE)
            with pytest.raises(ConnectionRefusedError):
                async with connected(listener.port):
                    pass

    @pytest.mark.parametrize("num_turns", range(5))
    async def test_a_second_drain_at_any_moment_cuts_what_is_left(self, num_turns: int) -> None:
        gate = Gate()
        async with (
            serving(gate) as listener,
            connected(listener.port) as busy,
            connected(listener.port) as idle,
        ):
            await busy.send(GET)
            await gate.started.wait()
            await until(lambda: listener.num_connections == 2)
            first = asyncio.ensure_future(listener.drain(PATIENCE))
            await turn(num_turns)
            first.cancel()
            await listener.drain(0)
            assert listener.num_connections == 0
            assert gate.num_ended == 1
            assert (await idle.read_end())[0] == b""
            assert await busy.read_end() == (b"", "reset")

    async def test_clients_in_the_queue_are_answered_before_the_socket_is_closed(self) -> None:
        listener = Listener(ok, ConnectionLimits(linger_timeout=0.2))
        (sock,) = bind_sockets("127.0.0.1", 0)
        await listener.start([sock])
        # Connected by the kernel; the loop has not turned since.
        clients = [socket.create_connection(sock.getsockname()) for _ in range(3)]
        drain = asyncio.ensure_future(listener.drain(PATIENCE))
        loop = asyncio.get_running_loop()
        for client in clients:
            with client:
                client.setblocking(False)
                await loop.sock_sendall(client, GET)
                async with asyncio.timeout(PATIENCE):
                    assert (await loop.sock_recv(client, 15)) == b"HTTP/1.1 200 OK"
        await drain

    async def test_clients_that_are_cut_before_their_task_has_begun_leave_nothing_open(
        self,
    ) -> None:
        listener = Listener(ok, ConnectionLimits())
        (sock,) = bind_sockets("127.0.0.1", 0)
        await listener.start([sock])
        with socket.create_connection(sock.getsockname()) as client:
            drain = asyncio.ensure_future(listener.drain(PATIENCE))
            await turn()
            drain.cancel()
            await listener.drain(0)
            client.setblocking(False)
            async with asyncio.timeout(PATIENCE):
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""
        assert listener.num_connections == 0


class TestClients:
    async def test_many_at_once_are_all_known_and_all_forgotten(self) -> None:
        gate = Gate()
        async with serving(gate) as listener:

            async def ask() -> bytes:
                async with connected(listener.port) as client:
                    await client.send(GET)
                    return (await client.read_answer())[2]

            asks = [asyncio.ensure_future(ask()) for _ in range(50)]
            await until(lambda: gate.num_started == 50)
            assert listener.num_connections == 50
            gate.may_answer.set()
            assert await asyncio.gather(*asks) == [b"done"] * 50
            await until(lambda: not listener.num_connections)

    async def test_the_handler_sees_the_peer(self) -> None:
        seen: list[tuple[str, bool]] = []

        async def handle(request: Request) -> Response:
            seen.append((request.peer, request.secure))
            return Response(200)

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send(GET)
            await client.read_answer()
        assert seen == [("127.0.0.1", False)]


class TestBinding:
    def test_port_0_is_a_free_one(self) -> None:
        (sock,) = bind_sockets("127.0.0.1", 0)
        with sock:
            assert sock.getsockname()[1] > 0
            assert not sock.getblocking()

    def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(self) -> None:
        (sock,) = bind_sockets("127.0.0.1", 0)
        with sock:
            sock.listen()
            with pytest.raises(OSError, match="in use"):
                bind_sockets("127.0.0.1", sock.getsockname()[1])

    def test_both_families_share_a_port(self) -> None:
        (four,) = bind_sockets("127.0.0.1", 0)
        with four:
            (six,) = bind_sockets("::1", four.getsockname()[1])
            six.close()

    @pytest.mark.parametrize(
        ("hosts", "expected", "reached"),
        [
            pytest.param("127.0.0.1", ["127.0.0.1"], "4", id="one"),
            pytest.param("127.0.0.1, ::1", ["127.0.0.1", "::1"], "46", id="two"),
            pytest.param("::1,127.0.0.1,::1", ["::1", "127.0.0.1"], "46", id="one of them twice"),
            pytest.param("::", ["::"], "46", id="both families"),
            pytest.param("::,127.0.0.2", ["::", "127.0.0.2"], "6", id="IPv6, and one of IPv4"),
            pytest.param("::,0.0.0.0", ["::", "0.0.0.0"], "46", id="a socket for each family"),
            pytest.param("127.0.0.1,0.0.0.0", ["0.0.0.0"], "4", id="0.0.0.0 includes it"),
            pytest.param("::1,::,127.0.0.1", ["::", "127.0.0.1"], "46", id=":: includes it"),
            pytest.param("::1", ["::1"], "6", id="IPv6"),
        ],
    )
    async def test_several_addresses(self, hosts: str, expected: list[str], reached: str) -> None:
        listener = Listener(ok, ConnectionLimits(linger_timeout=0.2))
        sockets = bind_sockets(hosts, 0)
        names = [each.getsockname()[:2] for each in sockets]
        await listener.start(sockets)
        ((port,), found) = {port for _, port in names}, ""
        assert [host for host, _ in names] == expected
        for family, host in (("4", "127.0.0.1"), ("6", "::1")):
            with contextlib.suppress(ConnectionRefusedError):
                async with connected(port, host) as client:
                    await client.send(GET)
                    assert (await client.read_answer())[2] == b"ok"
                    found += family
        await listener.drain(0)
        assert found == reached

    def test_an_error_names_the_address(self) -> None:
        with pytest.raises(OSError, match="assign") as caught:
            bind_sockets("127.0.0.1,192.0.2.1", 0)
        assert caught.value.filename == "192.0.2.1"
        with pytest.raises(OSError, match=r"not known|resolution") as caught:
            bind_sockets("127.0.0.1,nowhere.invalid", 0)
        assert caught.value.filename == "nowhere.invalid"

    def test_a_port_that_is_free_at_one_address_only_is_not_taken(self) -> None:
        (taken,) = bind_sockets("::1", 0)
        in_use = taken.getsockname()[1]
        ports = iter([in_use])
        real = socket.socket.bind

        class Sock(socket.socket):
            def bind(self, address: Any) -> None:
                host, port, *scope = address
                if host == "127.0.0.1":
                    port = next(ports, port)
                real(self, (host, port, *scope))

        taken.listen()
        with taken, pytest.MonkeyPatch.context() as patch:
            patch.setattr("xetserve.net.listener.socket.socket", Sock)
            four, six = bind_sockets("127.0.0.1,::1", 0)
        with four, six:
            assert four.getsockname()[1] == six.getsockname()[1] != in_use

    async def test_ipv6_clients_are_served(self) -> None:
        listener = Listener(ok, ConnectionLimits(linger_timeout=0.2))
        sockets = bind_sockets("::1", 0)
        await listener.start(sockets)
        async with connected(sockets[0].getsockname()[1], "::1") as client:
            await client.send(GET)
            assert (await client.read_answer())[2] == b"ok"
        await listener.drain(0)
