"""Watchdog: check the processes of a server, notify the service manager, and detect idleness.

The process that the manager has started, a single server or the supervisor, checks all processes
periodically. It sends signs of life only while every event loop runs. If a loop is stuck, the
manager receives none, and acts as its unit file says (WatchdogSec=).
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

LOOK_INTERVAL: Final = 1.0  # seconds; the longest interval between two checks
START_GRACE: Final = 30.0  # seconds that a process may take until its event loop runs


class Figures(NamedTuple):
    """The figures of all processes: open connections, answered requests, sent body bytes."""

    num_connections: int = 0
    num_requests: int = 0
    num_bytes: int = 0


class HasIdleTime(Protocol):
    """An object that knows whether it has clients."""

    @property
    def idle_since(self) -> float | None:
        """Return when the last client left, by the monotonic clock; None: there are clients."""
        ...


class Watchdog:
    """A watchdog over num_processes processes.

    Args:
        notifier: sends notifications to the service manager.
        idle_exit: seconds without connections after which the server may exit; 0: never.
        read_figures: returns the figures for the service manager.
    """

    def __init__(
        self,
        num_processes: int = 1,
        notifier: Notifier | None = None,
        idle_exit: float = 0.0,
        read_figures: Callable[[], Figures] = Figures,
    ) -> None:
        self.heartbeats = Heartbeats(num_processes)
        self._notifier = notifier or Notifier()
        self._idle_exit = idle_exit
        self._read_figures = read_figures
        self._next_sign = 0.0
        self._is_silent = False
        self._state = ""  # the start of the status line, before the figures

    @property
    def interval(self) -> float | None:
        """Return the seconds between two checks; None: no check is needed."""
        if not self._notifier.is_active and not self._idle_exit:
            return None
        wanted = [LOOK_INTERVAL]
        if self._notifier.watchdog is not None:
            wanted.append(self._notifier.watchdog / 8)
        if self._idle_exit:
            wanted.append(self._idle_exit / 4)
        return min(wanted)

    # In every process that has clients

    async def follow(self, clients: HasIdleTime, on_idle: Callable[[], None] | None) -> None:
        """Write heartbeats of this process from its event loop, until cancelled.

        Args:
            on_idle: called once after idle_exit seconds without connections, in the turn of the
                loop that finds this; None: another process checks for idleness.
        """
        interval = self.interval
        while interval is not None:
            self.heartbeats.write(clients.idle_since)
            if on_idle is not None and self.look():
                on_idle()
                on_idle = _nothing
            await asyncio.sleep(interval)

    # In the process that the service manager knows

    def look(self) -> bool:
        """Check the heartbeats and notify the manager; return whether to exit as idle."""
        watchdog = self._notifier.watchdog
        now = time.monotonic()
        if watchdog is not None and now >= self._next_sign:
            silence = self.heartbeats.silence()
            if silence < watchdog / 2:
                self._notifier.alive()
                self._next_sign = now + watchdog / 2
            elif not self._is_silent:
                logger.critical("an event loop is stuck: no more signs of life to the manager")
            self._is_silent = silence >= watchdog / 2
        if self._notifier.is_active:
            self._notifier.status(self._describe())
        return self._idle_exit > 0 and self.heartbeats.idle_time() >= self._idle_exit

    def ready(self) -> None:
        """Notify the manager that clients can connect."""
        self._notifier.ready()

    def stopping(self, why: str) -> None:
        """Notify the manager that the server stops accepting clients."""
        self._state = f"{why}; "
        self._notifier.stopping(why)

    def name_successor(self, pid: int) -> None:
        """Notify the manager of a new main process, which has clients from now on."""
        self._notifier.name_successor(pid)

    def close(self) -> None:
        """Notify the manager of nothing more: it knows another main process."""
        self._notifier.close()

    def note(self, what: str) -> None:
        """Begin the status line with a text, until the server stops."""
        self._state = f"{what}; "

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables by which a successor notifies the manager."""
        return self._notifier.variables

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Notify the manager of the start and the end of a reload."""
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
