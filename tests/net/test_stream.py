"""A byte stream over a real socket."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.peers import Certificates, ScriptedPeer, Wire, turn
from tests.waiting import PATIENCE, until
from xetserve.errors import BrokenStream
from xetserve.net.stream import RECEIVE_LIMIT, ByteStream

BIG = 8 * 1024 * 1024  # more than the kernel's buffers take


@asynccontextmanager
async def open_stream(
    peer: ScriptedPeer, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ByteStream]:
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(ByteStream, "127.0.0.1", peer.port)
    try:
        if tls is not None:
            transport = await loop.start_tls(
                stream.transport, stream, tls, server_hostname="localhost"
            )
            assert transport is not None
            stream.replace_transport(transport)
        yield stream
    finally:
        await closed(stream)


async def closed(stream: ByteStream) -> None:
    stream.abort()
    await stream.aclose()


async def silent(wire: Wire) -> None:
    """Say nothing, read nothing."""
    await asyncio.get_running_loop().create_future()


async def read_slowly(sock: socket.socket, is_over: asyncio.Event) -> None:
    """Take 8 KiB now and then."""
    loop = asyncio.get_running_loop()
    while not is_over.is_set():
        await loop.sock_recv(sock, 8 * 1024)
        await asyncio.sleep(0.01)


async def test_progress_in_the_kernels_queue_counts_as_taken() -> None:
    """A client that reads all the time, behind a queue so long that the write buffer stands
    still.
    """
    loop = asyncio.get_running_loop()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        sock = socket.create_connection(listening.getsockname())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BIG)
        sock.setblocking(False)
        peer, _ = listening.accept()
    peer.setblocking(False)
    _, stream = await loop.create_connection(ByteStream, sock=sock)
    is_over = asyncio.Event()
    reading = asyncio.ensure_future(read_slowly(peer, is_over))
    sending = asyncio.ensure_future(stream.send_all([bytes(4 * BIG)], timeout=0.15))
    try:
        await turn(5)
        assert stream.transport.get_write_buffer_size() > 0
        # Four times the timeout. The kernel takes more only when a third of its queue is free.
        done, _ = await asyncio.wait([sending], timeout=0.6)
        assert not done
        # And one that stops is given up.
        is_over.set()
        with pytest.raises(TimeoutError, match="reads nothing"):
            await asyncio.wait_for(sending, PATIENCE)
    finally:
        is_over.set()
        await asyncio.wait([reading])
        peer.close()
        await closed(stream)


class TricklingTransport(asyncio.Transport):
    """A transport that has so much unsent, each time that it is asked."""

    def __init__(self, stream: ByteStream, sizes: list[int]) -> None:
        super().__init__()
        self._stream = stream
        self.sizes = sizes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def writelines(self, list_of_data: object) -> None:
        self._stream.pause_writing()

    def get_write_buffer_size(self) -> int:
        size = self.sizes.pop(0)
        if not self.sizes:
            self._stream.resume_writing()
        return size


def sending(*parts: bytes, close: bool = False, reset: bool = False) -> "ScriptedPeer":
    async def play(wire: Wire) -> None:
        for part in parts:
            await wire.send(part)
        if reset:
            wire.reset()
        if close:
            wire.writer.write_eof()

    return ScriptedPeer(play)


class TestReceive:
    async def test_gives_what_has_arrived_then_the_end(self) -> None:
        async with sending(b"hello", close=True) as peer, open_stream(peer) as stream:
            data = b""
            while part := await stream.receive(PATIENCE):
                data += part
            assert data == b"hello"
            assert await stream.receive(PATIENCE) == b""

    async def test_a_reset_is_not_an_end(self) -> None:
        async with sending(reset=True) as peer, open_stream(peer) as stream:
            with pytest.raises(BrokenStream, match="reset"):
                await stream.receive(PATIENCE)
            with pytest.raises(BrokenStream, match="reset"):
                await stream.receive_into(memoryview(bytearray(4)), PATIENCE)
            with pytest.raises(BrokenStream, match="reset"):
                await stream.send_all([b"x"])

    async def test_a_silent_peer_times_out_and_may_still_be_heard(self) -> None:
        go = asyncio.Event()

        async def play(wire: Wire) -> None:
            await go.wait()
            await wire.send(b"late")

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            with pytest.raises(TimeoutError):
                await stream.receive(0.01)
            with pytest.raises(TimeoutError):
                await stream.receive_into(memoryview(bytearray(4)), 0.01)
            go.set()
            assert await stream.receive(PATIENCE) == b"late"

    async def test_a_cancelled_wait_before_it_is_granted_loses_nothing(self) -> None:
        go = asyncio.Event()

        async def play(wire: Wire) -> None:
            await go.wait()
            await wire.send(b"data")

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            view = memoryview(bytearray(4))
            for wait in (stream.receive(), stream.receive_into(view)):
                task = asyncio.ensure_future(wait)
                await turn()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            go.set()
            assert await stream.receive(PATIENCE) == b"data"
            assert bytes(view) == bytes(4)

    async def test_a_cancelled_receive_just_after_it_is_granted_loses_nothing(self) -> None:
        async with ScriptedPeer(silent) as peer, open_stream(peer) as stream:
            task = asyncio.ensure_future(stream.receive())
            await turn()
            stream.get_buffer(0)[:4] = b"data"
            stream.buffer_updated(4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await stream.receive(PATIENCE) == b"data"

    async def test_while_nobody_asks_the_peer_is_stopped(self) -> None:
        async def play(wire: Wire) -> None:
            wire.writer.write(bytes(BIG))

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            received = len(await stream.receive(PATIENCE))
            transport = peer.wires[0].writer.transport
            left = -1
            while left != transport.get_write_buffer_size():
                left = transport.get_write_buffer_size()
                await turn(50)
            assert left > 0
            inbox = await stream.receive(PATIENCE)
            assert len(inbox) < 2 * RECEIVE_LIMIT
            received += len(inbox)
            while received < BIG:
                received += len(await stream.receive(PATIENCE))
            assert received == BIG

    async def test_into_a_view_never_more_than_it_holds(self) -> None:
        content = bytes(range(256)) * 1000
        async with sending(content, close=True) as peer, open_stream(peer) as stream:
            view = memoryview(bytearray(b"\xff" * 1003))
            data = b""
            while count := await stream.receive_into(view[:1000], PATIENCE):
                data += view[:count]
                assert bytes(view[1000:]) == b"\xff" * 3
            assert data == content

    async def test_both_ways_of_receiving_may_alternate(self) -> None:
        content = bytes(range(256)) * 2000
        async with sending(content, close=True) as peer, open_stream(peer) as stream:
            view = memoryview(bytearray(777))
            data = b""
            while True:
                if not (part := await stream.receive(PATIENCE)):
                    break
                data += part
                count = await stream.receive_into(view, PATIENCE)
                data += view[:count]
            assert data == content

    async def test_a_quiet_stream_is_one_whose_peer_has_said_nothing_unread(self) -> None:
        go = asyncio.Event()

        async def play(wire: Wire) -> None:
            await go.wait()
            await wire.send(b"unasked")

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            assert stream.is_quiet
            go.set()
            # Nobody asks, but the loop takes it off the socket.
            await until(lambda: not stream.is_quiet)
            assert await stream.receive() == b"unasked"
            assert stream.is_quiet


class TestSend:
    async def test_when_it_returns_the_buffers_are_free(self) -> None:
        block = bytearray(BIG)
        received = bytearray()

        async def play(wire: Wire) -> None:
            while data := await wire.reader.read(1 << 16):
                received.extend(data)

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            for value in range(4):
                block[:] = bytes([value]) * BIG
                await stream.send_all([b"", memoryview(block), b""], PATIENCE)
                assert stream.transport.get_write_buffer_size() == 0
            await stream.aclose(PATIENCE)
            await peer.wires[0].ended.wait()
            assert received == b"".join(bytes([value]) * BIG for value in range(4))

    async def test_a_peer_that_takes_nothing_times_out(self) -> None:
        async with ScriptedPeer(silent) as peer, open_stream(peer) as stream:
            with pytest.raises(TimeoutError):
                await stream.send_all([bytes(BIG)] * 4, 0.05)

    async def test_a_peer_that_takes_a_little_is_not_given_up(self) -> None:
        stream = ByteStream()
        transport = TricklingTransport(stream, [9, 7, 7, 5, 5, 1, 1, 0])
        stream.connection_made(transport)
        await stream.send_all([b"123456789"], 0.001)
        assert transport.sizes == []

    async def test_a_peer_that_resets_ends_the_wait(self) -> None:
        async def play(wire: Wire) -> None:
            await wire.reader.readexactly(1000)
            wire.reset()

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            with pytest.raises(BrokenStream):
                await stream.send_all([bytes(BIG)] * 4, PATIENCE)

    async def test_a_cancelled_wait_leaves_a_stream_that_can_be_aborted(self) -> None:
        async with ScriptedPeer(silent) as peer, open_stream(peer) as stream:
            task = asyncio.ensure_future(stream.send_all([bytes(BIG)] * 4))
            await turn()
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


class TestEnds:
    async def ended(self, act: str) -> tuple[bytes, str]:
        """Send something, leave in a way; what the peer saw."""
        seen: asyncio.Future[tuple[bytes, str]] = asyncio.get_running_loop().create_future()

        async def play(wire: Wire) -> None:
            how = await wire.wait_end()
            seen.set_result((bytes(wire.received), how))

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            await stream.send_all([b"answer"])
            if act.startswith("abort"):
                stream.abort()
                if act == "abort, then aclose":
                    await stream.aclose(PATIENCE)
                stream.abort()
            elif act == "close":
                stream.close()
            else:
                await stream.aclose(PATIENCE if act == "linger" else 0)
            return await asyncio.wait_for(seen, PATIENCE)

    @pytest.mark.parametrize("act", ["close", "aclose", "linger"])
    async def test_closing_is_seen_as_an_end(self, act: str) -> None:
        assert await self.ended(act) == (b"answer", "closed")

    @pytest.mark.parametrize("act", ["abort", "abort, then aclose"])
    async def test_aborting_is_seen_as_a_reset(self, act: str) -> None:
        _, how = await self.ended(act)
        assert how == "reset"

    async def test_lingering_lets_the_peer_read_an_answer_to_what_it_still_sends(self) -> None:
        async def play(wire: Wire) -> None:
            wire.writer.write(bytes(BIG))
            assert await wire.read() == b"answer"
            assert await wire.read() == b""
            await wire.writer.drain()

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            await stream.receive(PATIENCE)
            await stream.send_all([b"answer"])
            await stream.aclose(PATIENCE)

    async def test_lingering_has_a_limit(self) -> None:
        async with ScriptedPeer(silent) as peer, open_stream(peer) as stream:
            await stream.aclose(0.01)
            assert not stream.is_quiet

    async def test_a_receive_after_an_abort_is_broken(self) -> None:
        async with ScriptedPeer(silent) as peer, open_stream(peer) as stream:
            stream.abort()
            with pytest.raises(BrokenStream):
                await stream.receive(PATIENCE)

    async def test_the_owner_is_told_once_that_the_connection_is_gone(self) -> None:
        lost: list[int] = []
        go = asyncio.Event()

        async def play(wire: Wire) -> None:
            await go.wait()
            wire.reset()

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            stream.on_lost = lambda: lost.append(1)
            go.set()
            with pytest.raises(BrokenStream):
                await stream.receive(PATIENCE)
            await stream.aclose()
        assert lost == [1]

    async def test_a_peer_that_only_stops_sending_is_not_gone(self) -> None:
        seen: list[bytes] = []

        async def play(wire: Wire) -> None:
            wire.writer.write_eof()
            seen.append(await wire.read())

        async with ScriptedPeer(play) as peer, open_stream(peer) as stream:
            stream.on_lost = lambda: pytest.fail("lost")
            assert await stream.receive(PATIENCE) == b""
            await stream.send_all([b"still here"])
            await stream.aclose()
            await peer.wires[0].ended.wait()
            assert seen == [b"still here"]

    async def test_what_was_never_connected_can_be_closed(self) -> None:
        stream = ByteStream()
        stream.abort()
        stream.close()
        await stream.aclose(1)
        with pytest.raises(BrokenStream, match="not connected"):
            await stream.send_all([b"x"])


class TestTls:
    async def test_both_directions_in_blocks(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        content = bytes(range(256)) * 8192

        async def play(wire: Wire) -> None:
            wire.received += await wire.reader.readexactly(len(content))
            await wire.send(content)
            await wire.close()

        async with (
            ScriptedPeer(play, tls=certificates.server_context()) as peer,
            open_stream(peer, trusting) as stream,
        ):
            await stream.send_all([content[:1000], memoryview(content)[1000:]], PATIENCE)
            view = memoryview(bytearray(100_000))
            data = b""
            while count := await stream.receive_into(view, PATIENCE):
                data += view[:count]
            assert data == content
            assert peer.wires[0].received == content

    async def test_small_messages_do_not_wait_for_ever(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        async def play(wire: Wire) -> None:
            while data := await wire.read():
                await wire.send(data)

        async with (
            ScriptedPeer(play, tls=certificates.server_context()) as peer,
            open_stream(peer, trusting) as stream,
        ):
            for number in range(20):
                await stream.send_all([b"%d" % number], PATIENCE)
                assert await stream.receive(PATIENCE) == b"%d" % number

    async def test_an_end_leaves_no_warning(
        self,
        certificates: Certificates,
        trusting: ssl.SSLContext,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        async def play(wire: Wire) -> None:
            await wire.close()

        async with (
            ScriptedPeer(play, tls=certificates.server_context()) as peer,
            open_stream(peer, trusting) as stream,
        ):
            assert await stream.receive(PATIENCE) == b""
            assert not stream.is_quiet
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []

    async def test_a_cut_without_a_tls_end_is_a_reset(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        async def play(wire: Wire) -> None:
            await wire.send(b"half")
            await wire.read()
            wire.reset()

        async with (
            ScriptedPeer(play, tls=certificates.server_context()) as peer,
            open_stream(peer, trusting) as stream,
        ):
            assert await stream.receive(PATIENCE) == b"half"
            await stream.send_all([b"go"], PATIENCE)
            with pytest.raises(BrokenStream):
                await stream.receive(PATIENCE)

    async def test_a_slow_peer_holds_the_sender(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        go = asyncio.Event()

        async def play(wire: Wire) -> None:
            await go.wait()

        async with (
            ScriptedPeer(play, tls=certificates.server_context()) as peer,
            open_stream(peer, trusting) as stream,
        ):
            with contextlib.suppress(TimeoutError):
                while True:
                    await stream.send_all([bytes(1 << 20)], 0.05)
            go.set()
