"""From listening sockets to a clean end: the event loop, signals, drain."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from xetserve.net.listener import Listener

logger = logging.getLogger(__name__)

T = TypeVar("T")


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop; on the standard loop where uvloop is not available."""
    try:
        import uvloop
    except ImportError:
        logger.warning("uvloop is missing: running on the slower standard event loop")
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def serve_until_signal(
    listener: Listener,
    sockets: list[socket.socket],
    *,
    drain_timeout: float,
    on_ready: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal cuts what is left.

    Args:
        drain_timeout: seconds that responses may go on after the first signal.
        on_ready: awaited once clients can connect; serving ends when it raises.
    """
    loop = asyncio.get_running_loop()
    stop, cut = asyncio.Event(), asyncio.Event()

    def on_signal(name: str) -> None:
        if stop.is_set():
            cut.set()
        logger.info("%s: %s", name, "cutting" if cut.is_set() else "draining")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number.name)
    try:
        await listener.start(sockets)
        if on_ready is not None:
            await on_ready()
        await stop.wait()
    finally:
        drain = asyncio.ensure_future(listener.drain(drain_timeout))
        cutting = asyncio.ensure_future(cut.wait())
        await asyncio.wait((drain, cutting), return_when=asyncio.FIRST_COMPLETED)
        cutting.cancel()
        if not drain.done():
            drain.cancel()
            await listener.drain(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
