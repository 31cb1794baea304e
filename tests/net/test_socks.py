"""The handshake with a SOCKS proxy, against scripted ones."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.peers import ScriptedPeer, Wire
from tests.waiting import PATIENCE
from xetserve.errors import BrokenStream
from xetserve.net.socks import SocksRefused, open_socks
from xetserve.net.stream import ByteStream

LOGIN = ("me", "wörd")
GRANTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"


class SocksPeer(ScriptedPeer):
    """A proxy that sends one answer for each message, byte by byte if told to."""

    def __init__(self, *answers: bytes, in_pieces: bool = False, closes: bool = False) -> None:
        super().__init__(self._talk)
        self._answers = answers
        self._in_pieces = in_pieces
        self._closes = closes
        self.messages: list[bytes] = []

    async def _talk(self, wire: Wire) -> None:
        for answer in self._answers:
            self.messages.append(await wire.read())
            pieces = [bytes([each]) for each in answer] if self._in_pieces else [answer]
            for piece in pieces:
                await wire.send(piece)
                await asyncio.sleep(0)
        if self._closes:
            await wire.close()


@asynccontextmanager
async def connected(peer: SocksPeer) -> AsyncIterator[ByteStream]:
    loop = asyncio.get_running_loop()
    async with peer:
        _, stream = await loop.create_connection(ByteStream, "127.0.0.1", peer.port)
        yield stream
        stream.abort()
        await stream.aclose()


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("host", "packed"),
    [
        pytest.param("hub.test", b"\x03\x08hub.test", id="a name"),
        pytest.param("192.0.2.1", b"\x01\xc0\x00\x02\x01", id="IPv4"),
        pytest.param("2001:db8::1", b"\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x01", id="IPv6"),
    ],
)
async def test_without_a_login(host: str, packed: bytes, in_pieces: bool) -> None:
    peer = SocksPeer(b"\x05\x00", GRANTED + b"hello", in_pieces=in_pieces)
    async with connected(peer) as stream:
        await open_socks(stream, host, 443, None, PATIENCE)
        assert peer.messages == [b"\x05\x01\x00", b"\x05\x01\x00" + packed + b"\x01\xbb"]
        data = b""
        while len(data) < 5:
            data += await stream.receive(PATIENCE)
        assert data == b"hello"  # nothing of what follows is lost


@pytest.mark.parametrize("is_asked", [False, True])
async def test_with_a_login(is_asked: bool) -> None:
    answers = [b"\x05\x02", b"\x01\x00", GRANTED] if is_asked else [b"\x05\x00", GRANTED]
    peer = SocksPeer(*answers)
    async with connected(peer) as stream:
        await open_socks(stream, "hub.test", 80, LOGIN, PATIENCE)
    assert peer.messages[0] == b"\x05\x02\x00\x02"
    assert (b"\x01\x02me\x05w\xc3\xb6rd" in peer.messages) is is_asked


@pytest.mark.parametrize("bound", [b"\x01" + bytes(4), b"\x03\x04host", b"\x04" + bytes(16)])
async def test_the_address_that_it_connects_from_may_be_of_any_kind(bound: bytes) -> None:
    peer = SocksPeer(b"\x05\x00", b"\x05\x00\x00" + bound + b"\x00\x00!")
    async with connected(peer) as stream:
        await open_socks(stream, "hub.test", 80, None, PATIENCE)
        assert await stream.receive(PATIENCE) == b"!"


@pytest.mark.parametrize(
    ("status", "reason"),
    [(2, "its rules do not allow it"), (4, "host unreachable"), (5, "connection refused"),
     (99, "failure 99")],
)  # fmt: skip
async def test_a_host_that_it_cannot_reach(status: int, reason: str) -> None:
    peer = SocksPeer(b"\x05\x00", bytes([5, status]) + GRANTED[2:])
    async with connected(peer) as stream:
        with pytest.raises(SocksRefused, match=f"cannot connect to hub.test: {reason}"):
            await open_socks(stream, "hub.test", 80, None, PATIENCE)


@pytest.mark.parametrize(
    ("answers", "login", "reason"),
    [
        pytest.param([b"HTTP/1.1 400"], None, "does not speak SOCKS 5", id="HTTP"),
        pytest.param([b"\x04\x00"], None, "does not speak SOCKS 5", id="version 4"),
        pytest.param([b"\x05\xff"], None, "wants a user and a password", id="a login"),
        pytest.param([b"\x05\xff"], LOGIN, "wants another kind of login", id="another login"),
        pytest.param([b"\x05\x01"], LOGIN, "does not speak SOCKS 5", id="an unknown method"),
        pytest.param([b"\x05\x02"], None, "does not speak SOCKS 5", id="a method not offered"),
        pytest.param([b"\x05\x02", b"\x01\x01"], LOGIN, "refuses user and password", id="refused"),
        pytest.param([b"\x05\x00", b"\x00\x00\x00\x00"], None, "does not speak", id="nonsense"),
        pytest.param([b"\x05"], None, "closed the connection", id="closes"),
        pytest.param([b"\x05\x00", b"\x05\x00\x00\x01"], None, "closed", id="closes within"),
    ],
)
async def test_a_proxy_that_says_no(
    answers: list[bytes], login: tuple[str, str] | None, reason: str
) -> None:
    peer = SocksPeer(*answers, closes=True)
    async with connected(peer) as stream:
        with pytest.raises(BrokenStream, match=reason) as caught:
            await open_socks(stream, "hub.test", 80, login, PATIENCE)
        assert not isinstance(caught.value, SocksRefused)


async def test_a_name_that_is_too_long() -> None:
    peer = SocksPeer(b"\x05\x00", GRANTED)
    async with connected(peer) as stream:
        with pytest.raises(BrokenStream, match="not a host name"):
            await open_socks(stream, "a" * 256, 80, None, PATIENCE)


async def test_a_silent_proxy_times_out() -> None:
    peer = SocksPeer(b"\x05")
    async with connected(peer) as stream:
        with pytest.raises(TimeoutError):
            await open_socks(stream, "hub.test", 80, None, 0.02)
