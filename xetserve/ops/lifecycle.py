"""The life of a serving process: event loop, signals, drain and exit."""

import asyncio
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.net.listener import Listener
from xetserve.net.preamble import Endpoint
from xetserve.ops.generations import Predecessor, Upgrade
from xetserve.ops.watchdog import Watchdog

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Messages between a worker and its supervisor. When one side dies, the other reads the end of the
# channel.
READY: Final = b"r"  # from the worker: clients can connect
DRAIN: Final = b"d"  # from the supervisor: stop accepting, finish active requests
LEAVE: Final = b"l"  # the same, but leave queued clients to the service manager's socket
CUT: Final = b"c"  # from the supervisor: end now
ACCEPT: Final = b"a"  # from the supervisor: accept clients, if the worker waits for that


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop, or on the standard event loop if uvloop is not installed."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop is not installed: running on the slower standard event loop")
        return asyncio.run(_run_main(main))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_main(main))


async def _run_main(main: Coroutine[Any, Any, T]) -> T:
    try:
        return await main
    finally:
        LOG_LIMIT.flush()


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard limit; return the limit.

    Each client needs a file, and the soft limit is often 1024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logger.debug("limit of open files: %d, raised from %d", hard, soft)
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


async def serve_until_signal(
    listener: Listener,
    endpoints: Sequence[Endpoint | socket.socket],
    *,
    drain_timeout: float,
    drain_delay: float = 0.0,
    on_ready: Callable[[], Awaitable[None]] | None = None,
    on_drain: Callable[[], None] | None = None,
    describe_drain: Callable[[], str] = lambda: "draining",
    on_reload: Callable[[], object] | None = None,
    channel: socket.socket | None = None,
    watch: Watchdog | None = None,
    predecessor: Predecessor | None = None,
    upgrade: Upgrade | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal closes all connections.

    An idle server also exits if idle_exit is set, see watch. At SIGUSR2, a successor takes over the
    sockets, and this server drains, see upgrade.

    Args:
        drain_timeout: seconds that responses may take after the server has stopped accepting.
        drain_delay: seconds between the first signal and the end of accepting.
        on_ready: awaited once clients can connect; serving ends if it raises.
        on_drain: called at the first signal.
        describe_drain: returns what the log says at the first signal.
        on_reload: called at SIGHUP.
        channel: a worker's channel to its supervisor: the worker sends READY, and follows DRAIN,
            LEAVE, CUT and the channel's end. Each SIGTERM then means drain, and SIGINT is ignored.
        watch: receives heartbeats of this process. Without a channel it also watches all processes
            and decides on an idle exit.
        predecessor: the server whose sockets these are. While it waits, this one reports that it is
            ready and accepts no client; a worker reports to the supervisor, and follows ACCEPT.
        upgrade: is begun at SIGUSR2; None: SIGUSR2 is not handled.
    """
    drain, cut, accept = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def leave() -> None:
        listener.leave()
        drain.set()

    def on_idle() -> None:
        if drain.is_set() or (upgrade is not None and upgrade.successor is not None):
            return
        leave()
        logger.info("no client is connected: exiting until the next one")

    handling = (
        _handling_signals(drain, cut, describe_drain)
        if channel is None
        else _following_orders(channel, drain, cut, accept, leave)
    )
    following = None
    with handling, _reloading_on_hangup(on_reload), _upgrading(upgrade, leave):
        try:
            is_held = predecessor is not None and predecessor.is_waiting
            if predecessor is not None and is_held:
                if channel is None:
                    _follow_predecessor(predecessor, accept, drain)
                else:
                    channel.send(READY)
                await _wait_for_any(accept, drain)
            if accept.is_set() or not is_held:
                await listener.start(endpoints)
                if on_ready is not None:
                    await on_ready()
                if channel is not None and not is_held:
                    channel.send(READY)
                if watch is not None:
                    look = on_idle if channel is None else None
                    following = asyncio.ensure_future(watch.follow(listener, look))
            await drain.wait()
            if upgrade is not None:
                upgrade.give_up()
            if watch is not None and channel is None:
                watch.stopping("idle" if listener.has_left else "draining")
            if on_drain is not None and not listener.has_left:
                on_drain()
            if drain_delay and not listener.has_left:
                with suppress(TimeoutError):
                    await asyncio.wait_for(cut.wait(), drain_delay)
        finally:
            draining = asyncio.ensure_future(listener.drain(drain_timeout))
            cutting = asyncio.ensure_future(cut.wait())
            await asyncio.wait((draining, cutting), return_when=asyncio.FIRST_COMPLETED)
            cutting.cancel()
            if not draining.done():
                draining.cancel()
                await listener.drain(0)
            if following is not None:
                following.cancel()
            if predecessor is not None and channel is None and cut.is_set():
                asyncio.get_running_loop().remove_reader(predecessor.channel)
                predecessor.close()


@contextmanager
def _handling_signals(
    drain: asyncio.Event, cut: asyncio.Event, describe_drain: Callable[[], str]
) -> Iterator[None]:
    """Set drain at the first SIGTERM or SIGINT, and cut at the second."""
    loop = asyncio.get_running_loop()
    heard: list[str] = []  # not the state of drain: the server may drain without a signal

    def on_signal(name: str) -> None:
        if heard:
            cut.set()
        heard.append(name)
        logger.info("%s: %s", name, "cutting" if cut.is_set() else describe_drain())
        drain.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def _reloading_on_hangup(on_reload: Callable[[], object] | None) -> Iterator[None]:
    """Call on_reload at SIGHUP while the block runs."""
    if on_reload is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_reload)
    # A SIGHUP that arrived earlier was blocked until now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def _upgrading(upgrade: Upgrade | None, leave: Callable[[], None]) -> Iterator[None]:
    """Begin an upgrade at SIGUSR2 while the block runs, and call leave when it is done."""
    if upgrade is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def begin() -> None:
        if upgrade.begin() and (successor := upgrade.successor) is not None:
            # A little more than the deadline: the clock of the loop is coarser.
            patience = successor.deadline - time.monotonic() + 0.1
            timer = loop.call_later(patience, proceed, successor.channel)
            timers[successor.channel] = timer
            loop.add_reader(successor.channel, proceed, successor.channel)

    def proceed(channel: socket.socket) -> None:
        if upgrade.proceed():
            return
        loop.remove_reader(channel)
        timers.pop(channel).cancel()
        if upgrade.is_done:
            leave()
        else:
            channel.close()

    timers: dict[socket.socket, asyncio.TimerHandle] = {}
    loop.add_signal_handler(signal.SIGUSR2, begin)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    try:
        yield
    finally:
        upgrade.give_up()
        for channel, timer in timers.items():
            loop.remove_reader(channel)
            timer.cancel()
            channel.close()
        loop.remove_signal_handler(signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _follow_predecessor(
    predecessor: Predecessor, accept: asyncio.Event, drain: asyncio.Event
) -> None:
    """Report that this server is ready; set accept when it may accept clients.

    If the other server ends before, this one is ended as well, by drain.
    """
    loop = asyncio.get_running_loop()

    def on_message() -> None:
        lives = predecessor.read()
        if lives and predecessor.is_waiting:
            return
        loop.remove_reader(predecessor.channel)
        if lives:
            accept.set()
        else:
            logger.error("the server before this one ended without handing over: ending")
            drain.set()

    loop.add_reader(predecessor.channel, on_message)
    predecessor.report_ready()


async def _wait_for_any(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


@contextmanager
def _following_orders(
    channel: socket.socket,
    drain: asyncio.Event,
    cut: asyncio.Event,
    accept: asyncio.Event,
    leave: Callable[[], None],
) -> Iterator[None]:
    """Follow the supervisor's orders: set accept, drain and cut, or call leave."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)

    def on_order() -> None:
        try:
            order = channel.recv(16)
        except ConnectionResetError:  # the supervisor died before it read READY
            order = b""
        if not order:
            loop.remove_reader(channel)
            logger.warning("the supervisor has died: draining")
        if ACCEPT in order:
            accept.set()
        if order and not order.strip(ACCEPT):  # nothing else, however often
            return
        if LEAVE in order:
            leave()
        drain.set()
        if CUT in order:
            cut.set()

    loop.add_reader(channel, on_order)
    loop.add_signal_handler(signal.SIGTERM, drain.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_reader(channel)
