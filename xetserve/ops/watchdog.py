"""Watching over the processes of a server: signs of life, figures for the service manager, and when
nobody wants it.

The process that the manager knows, alone or as the supervisor of workers, looks at all of them
every so often. Signs of life are passed on only while every event loop is at work: when one is
stuck the manager hears nothing any more, and does what it was told to do then (WatchdogSec=).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol

from xetserve.ops.heartbeats import Heartbeats
from xetserve.ops.sd_notify import Notifier

logger = logging.getLogger(__name__)

LOOK_INTERVAL: Final = 1.0  # seconds at most
START_PATIENCE: Final = 30.0  # seconds that a process may take until its loop runs


class Figures(NamedTuple):
    """What all processes have done, and have to do. Bytes are those of bodies."""

    num_connections: int = 0
    num_requests: int = 0
    num_bytes: int = 0


class Occupied(Protocol):
    """Whoever has clients."""

    @property
    def idle_since(self) -> float | None:
        """Since when there are none, by the monotonic clock; None: there are some."""
        ...


class Watchdog:
    """Looks after num_processes processes.

    Args:
        notifier: tells the service manager.
        idle_exit: seconds without connections after which the server may go; 0: it never may.
        read_figures: gives what the service manager is told.
    """

    def __init__(
        self,
        num_processes: int = 1,
        notifier: Notifier | None = None,
        idle_exit: float = 0.0,
        read_figures: Callable[[], Figures] = Figures,
    ) -> None:
        self.vitals = Heartbeats(num_processes)
        self._notifier = notifier or Notifier()
        self._idle_exit = idle_exit
        self._read_figures = read_figures
        self._next_sign = 0.0
        self._is_silent = False
        self._state = ""  # what is going on, before the figures

    @property
    def interval(self) -> float | None:
        """Seconds between two looks; None: there is nothing to look for."""
        if not self._notifier.is_heard and not self._idle_exit:
            return None
        wanted = [LOOK_INTERVAL]
        if self._notifier.watchdog is not None:
            wanted.append(self._notifier.watchdog / 8)
        if self._idle_exit:
            wanted.append(self._idle_exit / 4)
        return min(wanted)

    # In every process that has clients

    async def follow(self, clients: Occupied, on_idle: Callable[[], None] | None) -> None:
        """Say how this process is, again and again, from its event loop; for ever.

        Args:
            on_idle: in the process that is to look as well: called once when nobody was connected
                for long enough, in the same turn of the loop in which this was seen.
        """
        interval = self.interval
        while interval is not None:
            self.vitals.write(clients.idle_since)
            if on_idle is not None and self.look():
                on_idle()
                on_idle = _nothing
            await asyncio.sleep(interval)

    # In the process that the service manager knows

    def look(self) -> bool:
        """Tell the manager how things are; True: nobody has been connected for idle_exit."""
        watchdog = self._notifier.watchdog
        now = time.monotonic()
        if watchdog is not None and now >= self._next_sign:
            silence = self.vitals.silence()
            if silence < watchdog / 2:
                self._notifier.alive()
                self._next_sign = now + watchdog / 2
            elif not self._is_silent:
                logger.critical("an event loop is stuck: the service manager gets no sign of life")
            self._is_silent = silence >= watchdog / 2
        if self._notifier.is_heard:
            self._notifier.status(self._describe())
        return self._idle_exit > 0 and self.vitals.idle_time() >= self._idle_exit

    def ready(self) -> None:
        """Clients can connect."""
        self._notifier.ready()

    def stopping(self, why: str) -> None:
        """No more clients are accepted."""
        self._state = f"{why}; "
        self._notifier.stopping(why)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Have the manager know that settings are read, for as long as that takes."""
        self._notifier.reloading()
        try:
            yield
        finally:
            self._notifier.ready()

    def _describe(self) -> str:
        figures = self._read_figures()
        return (
            f"{self._state}{figures.num_connections} connections, "
            f"{figures.num_requests} requests answered, {figures.num_bytes / 1e6:.1f} MB sent"
        )


def _nothing() -> None:
    """Do nothing."""
