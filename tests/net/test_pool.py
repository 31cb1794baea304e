"""Which connection serves which request."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.peers import (
    CLOSE,
    RESET,
    STALL,
    Received,
    Script,
    ScriptedPeer,
    Wire,
    answering,
    http_answer,
    open_pool,
    turn,
)
from tests.waiting import PATIENCE, until
from xetserve.errors import BrokenStream, OutOfFiles
from xetserve.net import pool as pool_module
from xetserve.net.pool import MAX_IDLE, ConnectionPool
from xetserve.net.url import Origin, parse_url

OK = http_answer(200, b"ok")


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    async with open_pool() as made:
        yield made


async def get(pool: ConnectionPool, peer: ScriptedPeer, method: str = "GET") -> bytes:
    async with pool.request(method, peer.url(), timeout=PATIENCE) as response:
        return await response.read(1000, PATIENCE)


async def test_a_connection_is_kept_for_the_next_request(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(OK)) as peer:
        for _ in range(5):
            assert await get(pool, peer) == b"ok"
        assert (len(peer.wires), len(peer.requests), pool.num_idle) == (1, 5, 1)


async def test_requests_at_once_get_a_connection_each(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(OK)) as peer:
        await asyncio.gather(*(get(pool, peer) for _ in range(5)))
        assert (len(peer.wires), pool.num_idle) == (5, 5)


@contextmanager
def no_files_left() -> Iterator[None]:
    """Have this process open no file more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest, before[1]))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.dup(0))
    try:
        yield
    finally:
        for file in taken:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_file_for_a_connection_is_our_own_trouble(pool: ConnectionPool, host: str) -> None:
    async with ScriptedPeer(answering(OK)) as peer:
        with no_files_left(), pytest.raises(OutOfFiles) as caught:
            async with pool.request("GET", parse_url(f"http://{host}:{peer.port}/"), timeout=9):
                pass
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
        assert caught.value.retriable
        assert await get(pool, peer) == b"ok"


async def test_idle_connections_make_room(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(OK)) as one, ScriptedPeer(answering(OK)) as other:
        await asyncio.gather(*(get(pool, one) for _ in range(5)))
        assert (pool.num_idle, pool.num_open) == (5, 5)
        with no_files_left():
            assert await get(pool, other) == b"ok"
        assert (pool.num_idle, pool.num_open) == (1, 1)


async def test_another_port_is_another_origin(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(OK)) as one, ScriptedPeer(answering(OK)) as other:
        await get(pool, one)
        await get(pool, other)
        assert (len(one.wires), len(other.wires), pool.num_idle) == (1, 1, 2)


async def test_not_too_many_are_kept(pool: ConnectionPool) -> None:
    count = MAX_IDLE + 3
    inside = 0

    async def ask() -> None:
        nonlocal inside
        async with pool.request("GET", peer.url(), timeout=PATIENCE) as response:
            inside += 1
            await until(lambda: inside == count)
            await response.read(10, PATIENCE)

    async with ScriptedPeer(answering(OK)) as peer:
        await asyncio.gather(*(ask() for _ in range(count)))
        assert (len(peer.wires), pool.num_idle) == (count, MAX_IDLE)


@pytest.mark.parametrize("num_read", [0, 1])
async def test_a_body_that_was_not_read_to_its_end_costs_the_connection(
    pool: ConnectionPool, num_read: int
) -> None:
    async with ScriptedPeer(answering(OK)) as peer:
        async with pool.request("GET", peer.url(), timeout=PATIENCE) as response:
            assert pool.num_active == 1
            await response.receive_into(memoryview(bytearray(1))[:num_read], PATIENCE)
        assert pool.num_idle == 0
        await peer.wires[0].ended.wait()


async def test_an_error_in_the_callers_block_releases_the_connection(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(OK)) as peer:
        with pytest.raises(ZeroDivisionError):
            async with pool.request("GET", peer.url(), timeout=PATIENCE):
                raise ZeroDivisionError
        await peer.wires[0].ended.wait()


@pytest.mark.parametrize("how", [CLOSE, RESET])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_kept_connection_that_has_gone_is_replaced(
    pool: ConnectionPool, method: str, how: str
) -> None:
    def second(request: Received) -> bytes:
        return http_answer(200) if method == "HEAD" else OK

    async with ScriptedPeer(answering(second, how, second)) as peer:
        await get(pool, peer, method)
        await get(pool, peer, method)
        assert [len(wire.requests) for wire in peer.wires] == [2, 1]


async def in_two_parts(wire: Wire) -> None:
    """Answer; the body comes by itself, so that it is received without h11."""
    while await wire.read_request() is not None:
        await wire.send(OK[:-2])
        await turn(5)
        await wire.send(OK[-2:])


async def get_slowly(pool: ConnectionPool, peer: ScriptedPeer) -> bytes:
    async with pool.request("GET", peer.url(), timeout=PATIENCE) as response:
        view = memoryview(bytearray(2))
        assert await response.receive_into(view, PATIENCE) == 2
        return bytes(view)


@pytest.mark.parametrize("play", [answering(OK), in_two_parts], ids=["in one", "in two parts"])
async def test_a_kept_connection_that_has_gone_before_is_not_even_tried(
    pool: ConnectionPool, play: Script
) -> None:
    async with ScriptedPeer(play) as peer:
        await get_slowly(pool, peer)
        await peer.wires[0].close()
        await turn(20)
        await get_slowly(pool, peer)
        assert [len(wire.requests) for wire in peer.wires] == [1, 1]


@pytest.mark.parametrize("play", [answering(OK), in_two_parts], ids=["in one", "in two parts"])
async def test_a_kept_connection_on_which_something_unasked_came_is_not_used(
    pool: ConnectionPool, play: Script
) -> None:
    async with ScriptedPeer(play) as peer:
        await get_slowly(pool, peer)
        await peer.wires[0].send(http_answer(200, b"no"))
        await turn(20)
        assert await get_slowly(pool, peer) == b"ok"
        assert len(peer.wires) == 2


async def test_a_post_on_a_kept_connection_that_has_gone_is_not_repeated(
    pool: ConnectionPool,
) -> None:
    async with ScriptedPeer(answering(OK, RESET, OK)) as peer:
        await get(pool, peer)
        with pytest.raises(BrokenStream):
            await get(pool, peer, "POST")
        assert len(peer.requests) == 2


async def test_a_streamed_body_goes_out_on_a_fresh_connection(pool: ConnectionPool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"

    async with ScriptedPeer(answering(OK)) as peer:
        await get(pool, peer)
        assert pool.num_idle == 1
        async with pool.request("POST", peer.url(), body=pieces(), timeout=PATIENCE) as response:
            assert await response.read(1000, PATIENCE) == b"ok"
        assert len(peer.wires) == 2


async def test_a_fresh_connection_that_breaks_is_not_retried(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(CLOSE)) as peer:
        with pytest.raises(BrokenStream):
            await get(pool, peer)
        assert len(peer.wires) == 1


async def test_a_silent_server_is_not_retried_and_its_connection_dropped(
    pool: ConnectionPool,
) -> None:
    async with ScriptedPeer(answering(OK, STALL)) as peer:
        await get(pool, peer)
        with pytest.raises(TimeoutError):
            async with pool.request("GET", peer.url(), timeout=0.02):
                pytest.fail("an answer")
        await peer.wires[0].ended.wait()
        assert len(peer.wires) == 1


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3, 5, 8, 20])
async def test_a_request_cancelled_at_any_moment_leaks_nothing(
    pool: ConnectionPool, num_turns: int
) -> None:
    async with ScriptedPeer(answering(STALL)) as peer:
        task = asyncio.ensure_future(get(pool, peer))
        await turn(num_turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await turn(20)
        for wire in peer.wires:
            await asyncio.wait_for(wire.ended.wait(), PATIENCE)


@pytest.mark.parametrize("num_turns", range(0, 30, 3))
async def test_a_body_cancelled_at_any_moment_leaks_nothing(
    pool: ConnectionPool, num_turns: int
) -> None:
    async def play(wire: Wire) -> None:
        await wire.read_request()
        await wire.send(http_answer(200, b"content")[:-1])

    async with ScriptedPeer(play) as peer:
        task = asyncio.ensure_future(get(pool, peer))
        await turn(num_turns)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (pool.num_active, pool.num_idle) == (0, 0)
        await turn(20)
        for wire in peer.wires:
            await asyncio.wait_for(wire.ended.wait(), PATIENCE)


async def test_idle_connections_are_closed_after_a_while(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "IDLE_TIMEOUT", 0.02)
    async with ScriptedPeer(answering(OK)) as peer:
        await get(pool, peer)
        await asyncio.wait_for(peer.wires[0].ended.wait(), PATIENCE)
        assert pool.num_idle == 0


async def test_one_timer_watches_over_an_origin_however_many_requests_it_serves(
    pool: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Origin] = []
    original = ConnectionPool._expire

    def expire(self: ConnectionPool, origin: Origin) -> None:
        calls.append(origin)
        original(self, origin)

    monkeypatch.setattr(pool_module, "IDLE_TIMEOUT", 0.1)
    monkeypatch.setattr(ConnectionPool, "_expire", expire)
    async with ScriptedPeer(answering(OK)) as peer:
        for _ in range(10):
            await get(pool, peer)
        await asyncio.wait_for(peer.wires[0].ended.wait(), PATIENCE)
        # Timers that were set before this one have gone off when it does.
        later = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, later.set_result, None)
        await later
    assert len(calls) <= 2


async def test_closing_the_pool_closes_its_idle_connections(pool: ConnectionPool) -> None:
    async with ScriptedPeer(answering(OK)) as peer:
        await asyncio.gather(*(get(pool, peer) for _ in range(3)))
        await pool.aclose()
        for wire in peer.wires:
            await asyncio.wait_for(wire.ended.wait(), PATIENCE)
        assert pool.num_idle == 0
