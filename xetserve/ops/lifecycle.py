"""From listening sockets to a clean end: the event loop, signals, drain."""

import asyncio
import logging
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from xetserve.net.listener import Listener
from xetserve.net.preamble import Endpoint
from xetserve.ops.watchdog import Watchdog

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a worker and its supervisor tell each other. When the other side is gone, the channel ends.
READY: Final = b"r"  # the worker: clients can connect
DRAIN: Final = b"d"  # the supervisor: stop accepting, finish what has begun
LEAVE: Final = b"l"  # the same, but leave who waits in the queue to the service manager
CUT: Final = b"c"  # the supervisor: end now


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop; on the standard loop where uvloop is not available."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop is missing: running on the slower standard event loop")
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def raise_file_limit() -> int:
    """Allow as many open files as the system lets us: a client is one, and often 1024 is the soft
    limit.

    Gives their number.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logger.debug("open files: at most %d, it was %d", hard, soft)
    return hard if hard != resource.RLIM_INFINITY else sys.maxsize


async def serve_until_signal(
    listener: Listener,
    endpoints: Sequence[Endpoint | socket.socket],
    *,
    drain_timeout: float,
    drain_delay: float = 0.0,
    on_ready: Callable[[], Awaitable[None]] | None = None,
    on_drain: Callable[[], None] | None = None,
    on_reload: Callable[[], object] | None = None,
    channel: socket.socket | None = None,
    watch: Watchdog | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts what is left.

    Nobody wanting anything for long enough ends it, too: see watch.

    Args:
        drain_timeout: seconds that responses may go on once nobody is accepted any more.
        drain_delay: seconds from the first signal until then.
        on_ready: awaited once clients can connect; serving ends when it raises.
        on_drain: called at the first signal.
        on_reload: called at SIGHUP.
        channel: of a worker, to its supervisor: READY is said on it, DRAIN, CUT and its end are
            obeyed. SIGTERM then means drain however often it comes, and SIGINT is left alone.
        watch: told of this process; without a channel it looks after all, and decides when to
            leave.
    """
    drain, cut = asyncio.Event(), asyncio.Event()

    def leave() -> None:
        listener.leave()
        drain.set()

    def on_idle() -> None:
        leave()
        logger.info("nobody is connected: leaving until somebody is")

    heeding = (
        _heeding_signals(drain, cut) if channel is None else _heeding(channel, drain, cut, leave)
    )
    following = None
    with heeding, _heeding_hangups(on_reload):
        try:
            await listener.start(endpoints)
            if on_ready is not None:
                await on_ready()
            if channel is not None:
                channel.send(READY)
            if watch is not None:
                look = on_idle if channel is None else None
                following = asyncio.ensure_future(watch.follow(listener, look))
            await drain.wait()
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


@contextmanager
def _heeding_signals(drain: asyncio.Event, cut: asyncio.Event) -> Iterator[None]:
    """Turn the first signal into drain and the second into cut."""
    loop = asyncio.get_running_loop()
    heard: list[str] = []  # the server may be draining without a signal

    def on_signal(name: str) -> None:
        if heard:
            cut.set()
        heard.append(name)
        logger.info("%s: %s", name, "cutting" if cut.is_set() else "draining")
        drain.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def _heeding_hangups(on_reload: Callable[[], object] | None) -> Iterator[None]:
    """Turn SIGHUP into a call."""
    if on_reload is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, on_reload)
    # One that came before this was kept waiting.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


@contextmanager
def _heeding(
    channel: socket.socket, drain: asyncio.Event, cut: asyncio.Event, leave: Callable[[], None]
) -> Iterator[None]:
    """Turn what the supervisor says into drain, cut and leave."""
    loop = asyncio.get_running_loop()
    channel.setblocking(False)

    def on_order() -> None:
        try:
            order = channel.recv(16)
        except ConnectionResetError:  # it died before it had read that we are ready
            order = b""
        if not order:
            loop.remove_reader(channel)
            logger.warning("the supervisor is gone: draining")
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
