"""From sockets to a clean end, inside the test's own loop."""

import asyncio
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.peers import connected
from tests.waiting import PATIENCE, until
from xetserve.http.messages import Request, Response
from xetserve.net.listener import Listener, bind_sockets
from xetserve.net.server_connection import ConnectionLimits
from xetserve.ops.lifecycle import (
    ACCEPT,
    CUT,
    DRAIN,
    LEAVE,
    READY,
    _following_orders,
    raise_file_limit,
    serve_until_signal,
)
from xetserve.ops.watchdog import Watchdog

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Served:
    """A server that answers its one client when it may, and the task that serves."""

    def __init__(self) -> None:
        self.listener = Listener(self._handle, ConnectionLimits(linger_timeout=0.2))
        self.sockets = bind_sockets("127.0.0.1", 0)
        self.port: int = self.sockets[0].getsockname()[1]
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.is_ready = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def _handle(self, request: Request) -> Response:
        self.is_asked.set()
        await self.may_answer.wait()
        return Response(200, [], b"done")

    async def _on_ready(self) -> None:
        self.is_ready.set()

    def start(self, channel: socket.socket | None = None) -> asyncio.Task[None]:
        self.task = asyncio.ensure_future(
            serve_until_signal(
                self.listener,
                self.sockets,
                drain_timeout=PATIENCE,
                on_ready=self._on_ready,
                channel=channel,
            )
        )
        return self.task

    async def is_draining(self) -> None:
        """Wait until nobody listens any more."""
        await until(lambda: self.sockets[0].fileno() < 0)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    yield served
    if served.task is not None and not served.task.done():
        served.may_answer.set()
        os.kill(os.getpid(), signal.SIGTERM)
        await served.task


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The supervisor's end and the worker's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def send_signal(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


# Alone: signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_signal_lets_a_response_finish(served: Served, number: signal.Signals) -> None:
    task = served.start()
    await served.is_ready.wait()
    async with connected(served.port) as client:
        await client.send(GET)
        await served.is_asked.wait()
        send_signal(number)
        await served.is_draining()
        assert not task.done()
        served.may_answer.set()
        assert (await client.read_answer())[2] == b"done"
        assert await client.read_end() == (b"", "closed")
        await client.close()
        async with asyncio.timeout(PATIENCE):
            await task


async def test_a_second_signal_cuts_it(served: Served) -> None:
    task = served.start()
    await served.is_ready.wait()
    async with connected(served.port) as client:
        await client.send(GET)
        await served.is_asked.wait()
        send_signal(signal.SIGTERM)
        await served.is_draining()
        send_signal(signal.SIGINT)
        async with asyncio.timeout(PATIENCE):
            await task
        assert await client.read_end() == (b"", "reset")


async def test_afterwards_signals_mean_what_they_mean_by_default(served: Served) -> None:
    task = served.start()
    await served.is_ready.wait()
    send_signal(signal.SIGTERM)
    await task
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


async def test_serving_ends_when_readiness_cannot_be_told(served: Served) -> None:
    async def fail() -> None:
        raise OSError("nobody to tell")

    with pytest.raises(OSError, match="nobody to tell"):
        await serve_until_signal(
            served.listener, served.sockets, drain_timeout=PATIENCE, on_ready=fail
        )
    assert served.sockets[0].fileno() < 0


async def test_clients_are_still_accepted_for_a_while_if_that_is_wanted(served: Served) -> None:
    told = asyncio.Event()
    task = asyncio.ensure_future(
        serve_until_signal(
            served.listener,
            served.sockets,
            drain_timeout=PATIENCE,
            drain_delay=PATIENCE,
            on_ready=served._on_ready,
            on_drain=told.set,
        )
    )
    await served.is_ready.wait()
    send_signal(signal.SIGTERM)
    await asyncio.wait_for(told.wait(), PATIENCE)
    served.may_answer.set()
    async with connected(served.port) as client:
        await client.send(GET)
        assert (await client.read_answer())[2] == b"done"
    assert not task.done()
    send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        await task


async def test_the_first_signal_is_told_of_before_the_sockets_are_closed(served: Served) -> None:
    open_then: list[bool] = []
    task = asyncio.ensure_future(
        serve_until_signal(
            served.listener,
            served.sockets,
            drain_timeout=PATIENCE,
            on_ready=served._on_ready,
            on_drain=lambda: open_then.append(served.sockets[0].fileno() >= 0),
        )
    )
    await served.is_ready.wait()
    send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        await task
    assert open_then == [True]


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP is kept waiting at first; in the end it is as it was."""
    before = signal.getsignal(signal.SIGHUP)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    yield
    signal.signal(signal.SIGHUP, before)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


async def test_sighup_is_a_call_and_nothing_else(served: Served, hangups: None) -> None:
    called = asyncio.Event()
    task = asyncio.ensure_future(
        serve_until_signal(
            served.listener,
            served.sockets,
            drain_timeout=PATIENCE,
            on_ready=served._on_ready,
            on_reload=called.set,
        )
    )
    # Before it can be heeded, and to this thread: others would not keep it waiting.
    signal.raise_signal(signal.SIGHUP)
    await served.is_ready.wait()
    async with asyncio.timeout(PATIENCE):
        await called.wait()
    called.clear()
    send_signal(signal.SIGHUP)
    async with asyncio.timeout(PATIENCE):
        await called.wait()
    assert not task.done()
    send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        await task


# Nobody wants it


async def test_it_ends_when_nobody_is_connected_and_leaves_the_queue_to_others(
    served: Served,
) -> None:
    told: list[str] = []
    with socket.socket(fileno=os.dup(served.sockets[0].fileno())) as manager:
        task = asyncio.ensure_future(
            serve_until_signal(
                served.listener,
                served.sockets,
                drain_timeout=PATIENCE,
                drain_delay=PATIENCE,
                on_ready=served._on_ready,
                on_drain=lambda: told.append("draining"),
                watch=Watchdog(idle_exit=0.05),
            )
        )
        await served.is_ready.wait()
        async with asyncio.timeout(PATIENCE):
            await task
        assert told == [], "who is still answered need not know"
        async with connected(served.port):
            manager.settimeout(PATIENCE)
            manager.accept()[0].close()


async def test_while_somebody_is_connected_it_stays_and_sigterm_drains(served: Served) -> None:
    watch = Watchdog(idle_exit=0.4)
    for sock in served.sockets:
        sock.listen()
    async with connected(served.port) as client:  # before it begins, as one who has it started
        task = asyncio.ensure_future(
            serve_until_signal(
                served.listener,
                served.sockets,
                drain_timeout=PATIENCE,
                on_ready=served._on_ready,
                watch=watch,
            )
        )
        await client.send(GET)
        await served.is_asked.wait()
        silences = [watch.heartbeats.silence()]

        def has_beaten() -> bool:
            silences.append(watch.heartbeats.silence())
            return silences[-1] < silences[-2]

        for _ in range(8):  # looks
            await until(has_beaten)
        assert not served.listener.has_left
        send_signal(signal.SIGTERM)
        await served.is_draining()
        served.may_answer.set()
        assert (await client.read_answer())[2] == b"done"
    async with asyncio.timeout(PATIENCE):
        await task


async def test_a_first_signal_after_that_cuts_nobody(served: Served) -> None:
    watch = Watchdog(idle_exit=1000.0)
    task = asyncio.ensure_future(
        serve_until_signal(
            served.listener,
            served.sockets,
            drain_timeout=PATIENCE,
            on_ready=served._on_ready,
            watch=watch,
        )
    )
    await served.is_ready.wait()
    async with connected(served.port) as client:
        await client.send(GET)
        await served.is_asked.wait()
        served.listener.leave()  # it came in the same moment
        send_signal(signal.SIGTERM)
        await until(lambda: served.listener.is_draining)
        served.may_answer.set()
        assert (await client.read_answer())[2] == b"done"
    async with asyncio.timeout(PATIENCE):
        await task


async def test_a_worker_is_told_to_leave_the_queue_to_others(
    served: Served, channel: tuple[socket.socket, socket.socket]
) -> None:
    with socket.socket(fileno=os.dup(served.sockets[0].fileno())) as manager:
        task = served.start(channel[1])
        await served.is_ready.wait()
        with socket.socket() as late:
            late.setblocking(False)
            late.connect_ex(("127.0.0.1", served.port))
            channel[0].send(LEAVE)
            # Whoever is quicker has the client, and answers it.
            await served.is_draining()
            served.may_answer.set()
            async with asyncio.timeout(PATIENCE):
                await task
            assert served.listener.has_left
        manager.close()


# A worker: orders


def say(data: bytes) -> Callable[[socket.socket], object]:
    return lambda supervisor: supervisor.send(data)


async def test_a_worker_says_that_it_is_ready(
    served: Served, channel: tuple[socket.socket, socket.socket]
) -> None:
    loop = asyncio.get_running_loop()
    task = served.start(channel[1])
    async with asyncio.timeout(PATIENCE):
        assert await loop.sock_recv(channel[0], 16) == READY
        channel[0].send(DRAIN)
        await task


async def test_two_orders_to_accept_are_no_order_to_drain(
    channel: tuple[socket.socket, socket.socket],
) -> None:
    """A worker in the place of a dead one may read two at once."""
    drain, cut, accept = asyncio.Event(), asyncio.Event(), asyncio.Event()
    channel[0].send(ACCEPT + ACCEPT)
    with _following_orders(channel[1], drain, cut, accept, lambda: None):
        async with asyncio.timeout(PATIENCE):
            await accept.wait()
            assert not drain.is_set()
            channel[0].send(ACCEPT + DRAIN)
            await drain.wait()
    assert not cut.is_set()


DRAINING = [
    pytest.param([say(DRAIN)], id="the order"),
    pytest.param([say(DRAIN), say(DRAIN)], id="the order twice"),
    pytest.param([lambda _: send_signal(signal.SIGTERM)] * 2, id="SIGTERM twice"),
    pytest.param([lambda _: send_signal(signal.SIGTERM), say(DRAIN)], id="SIGTERM and the order"),
    pytest.param([socket.socket.close], id="no supervisor any more"),
    pytest.param([say(DRAIN), socket.socket.close], id="the order, then no supervisor"),
]


@pytest.mark.parametrize("actions", DRAINING)
async def test_a_worker_drains(
    served: Served,
    channel: tuple[socket.socket, socket.socket],
    actions: list[Callable[[socket.socket], object]],
) -> None:
    task = served.start(channel[1])
    await served.is_ready.wait()
    assert await asyncio.get_running_loop().sock_recv(channel[0], 16) == READY
    async with connected(served.port) as client:
        await client.send(GET)
        await served.is_asked.wait()
        for action in actions:
            action(channel[0])
            await served.is_draining()
        assert not task.done()
        served.may_answer.set()
        assert (await client.read_answer())[2] == b"done"
        await client.close()
        async with asyncio.timeout(PATIENCE):
            await task


@pytest.mark.parametrize("orders", [[DRAIN, CUT], [DRAIN + CUT], [CUT]], ids=repr)
async def test_a_worker_cuts(
    served: Served, channel: tuple[socket.socket, socket.socket], orders: list[bytes]
) -> None:
    task = served.start(channel[1])
    await served.is_ready.wait()
    async with connected(served.port) as client:
        await client.send(GET)
        await served.is_asked.wait()
        for order in orders:
            channel[0].send(order)
            await served.is_draining()
        async with asyncio.timeout(PATIENCE):
            await task
        assert await client.read_end() == (b"", "reset")


async def test_a_supervisor_that_dies_before_it_heard_us_is_gone_too(
    served: Served, channel: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    task = served.start(channel[1])
    await served.is_ready.wait()
    channel[0].close()  # READY is unread: the worker's end sees a reset
    async with asyncio.timeout(PATIENCE):
        await task
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.WARNING, "the supervisor has died: draining")
    ]


# Limits


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
