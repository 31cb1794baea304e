"""Accept clients from a listening socket, a few in each turn of the event loop.

This module does two things that loop.create_server does not do.

It does not spin. When the process is out of files or memory, accept() fails and the socket stays
readable, so a loop that watches it runs and logs at full speed. The acceptor stops watching for
FULL_PAUSE, clients wait in the kernel's queue, and the log gets one line per episode.

It balances processes that share the socket. A new client wakes all of them, and the fastest one
would accept every client. An acceptor therefore waits before it accepts: with n clients of its own,
as many milliseconds as n has binary digits, at most MAX_DELAY. An idle process accepts at once, the
numbers of clients stay within a factor of two, and the processes need no communication.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from xetserve.metrics.catalogue import ACCEPT_PAUSES

logger = logging.getLogger(__name__)

BACKLOG: Final = 1024
TURN: Final = 16  # the most clients accepted in one turn of the loop
FULL_PAUSE: Final = 0.1  # seconds
DELAY: Final = 0.001  # seconds; the resolution of the event loop's timers
MAX_DELAY: Final = 4 * DELAY
BATCH_STEP: Final = 4  # clients in a row after which a batch grows by one

_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Errors of one client or its network path; the next accept() may succeed: see accept(2).
_OF_ONE_CLIENT: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET),
    }
)


class Acceptor:
    """An accept loop that owns one listening socket.

    Args:
        sock: a bound socket; start makes it listen unless it does already.
        on_client: called with each connected, non-blocking socket and the peer's address.
        num_clients: returns the number of this process's clients; None: the socket is not shared.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_client: Callable[[socket.socket, Any], None],
        num_clients: Callable[[], int] | None = None,
    ) -> None:
        self._sock = sock
        self._on_client = on_client
        self._num_clients = num_clients
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # while the socket is not watched
        self._num_in_a_row = 0  # clients accepted since the queue was last empty
        self._is_full = False  # accept() has failed since the last client
        self.num_attempts = 0  # calls of accept()

    def start(self) -> None:
        """Start listening and accepting."""
        self._sock.setblocking(False)
        if not self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._sock.listen(BACKLOG)
        self._watch()

    def stop(self) -> None:
        """Accept all clients in the kernel's queue, then close the socket."""
        if self._sock.fileno() < 0:
            return
        self._rest()
        # Closing resets the connections in the queue.
        for _ in range(BACKLOG):
            if not self._accept():
                break
        self._rest()
        self._sock.close()

    def leave(self) -> None:
        """Close the socket at once; other processes that share it accept the queued clients."""
        if self._sock.fileno() >= 0:
            self._rest()
            self._sock.close()

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock, self._on_readable)

    def _rest(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def _on_readable(self) -> None:
        if self._num_clients is None:
            self._accept_several(TURN)
        elif delay := min(self._num_clients().bit_length() * DELAY, MAX_DELAY):
            self._rest()
            self._timer = self._loop.call_later(delay, self._after_delay)
        else:
            self._accept_several(1)

    def _after_delay(self) -> None:
        self._watch()
        # Accepting one by one leaves clients to other processes; a long queue has enough for all.
        self._accept_several(min(1 + self._num_in_a_row // BATCH_STEP, TURN))

    def _accept_several(self, limit: int) -> None:
        for _ in range(limit):
            if not self._accept():
                self._num_in_a_row = 0
                break
            self._num_in_a_row += 1

    def _accept(self) -> bool:
        """Accept one client; return False if none is waiting or accept() failed."""
        self.num_attempts += 1
        try:
            client, address = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            if exc.errno in _OF_ONE_CLIENT:
                return True
            self._pause(exc)
            return False
        if self._is_full:
            self._is_full = False
            logger.info("accepting again")
        client.setblocking(False)
        self._on_client(client, address)
        return True

    def _pause(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        ACCEPT_PAUSES.add(name)
        if not self._is_full:
            self._is_full = True
            level = logging.WARNING if error.errno in _FULL else logging.ERROR
            with contextlib.suppress(OSError):  # opening a log file may fail too
                logger.log(level, "cannot accept clients: %s", os.strerror(error.errno or 0))
        self._rest()
        self._timer = self._loop.call_later(FULL_PAUSE, self._watch)
