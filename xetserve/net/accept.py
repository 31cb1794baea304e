"""Accepting from a listening socket: a few clients per turn of the event loop, and never spinning.

Two things are done here that loop.create_server does not do.

When the process is out of files or memory, accept() fails and the socket stays readable: a loop
that goes on watching it spins at full speed and logs at full speed. Here it is not watched for
FULL_PAUSE, whoever waits stays in the kernel's queue, and an episode costs one line in the log.

When several processes share the socket, all of them wake up for a client, and the quickest would
take everybody. Here each lets those that have less to do go first: with n clients of its own it
waits for as many milliseconds as n has binary digits, at most MAX_DELAY. So an idle process takes a
client at once, the numbers stay within a factor of two of each other, and no process has to know of
another one.
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
TURN: Final = 16  # clients at most in one turn of the loop
FULL_PAUSE: Final = 0.1  # seconds
DELAY: Final = 0.001  # seconds; the event loop's timers know no less
MAX_DELAY: Final = 4 * DELAY
PATIENCE: Final = 4  # clients taken one by one before a queue counts as long

_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# A client that has left, or trouble on the way to it; the next one may be well: see accept(2).
_OF_ONE_CLIENT: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET),
    }
)


class Acceptor:
    """Takes clients from one listening socket, which belongs to it from now on.

    Args:
        sock: bound; it is made to listen unless it does so already.
        on_client: called with each connected socket, which is not blocking, and the peer's address.
        num_clients: how many clients this process has, when the socket is shared with others.
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
        self._num_in_a_row = 0  # taken since the queue was last seen empty
        self._is_full = False  # in an episode of failures
        self.num_attempts = 0  # calls of accept()

    def start(self) -> None:
        """Begin to listen and to accept."""
        self._sock.setblocking(False)
        if not self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._sock.listen(BACKLOG)
        self._watch()

    def stop(self) -> None:
        """Take those who are connected but were not accepted yet, and close the socket."""
        if self._sock.fileno() < 0:
            return
        self._rest()
        # Closing would reset those in the queue.
        for _ in range(BACKLOG):
            if not self._accept():
                break
        self._rest()
        self._sock.close()

    def leave(self) -> None:
        """Close the socket at once; those in its queue are left to whoever else has it."""
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
        # One by one leaves the others their part; a long queue has enough for all.
        self._accept_several(min(1 + self._num_in_a_row // PATIENCE, TURN))

    def _accept_several(self, limit: int) -> None:
        for _ in range(limit):
            if not self._accept():
                self._num_in_a_row = 0
                break
            self._num_in_a_row += 1

    def _accept(self) -> bool:
        """Take one client; False: there is none, or no room for it."""
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
            with contextlib.suppress(OSError):  # a log file may be among what cannot be opened
                logger.log(level, "cannot accept clients: %s", os.strerror(error.errno or 0))
        self._rest()
        self._timer = self._loop.call_later(FULL_PAUSE, self._watch)
