"""Refuse clients beyond the connection limits: write a short response straight to the socket.

A refusal needs no task. A response is better than a wait in the kernel's queue: a load balancer
tries another server at once, a client reads when to retry, and neither runs into a timeout.
"""

import asyncio
import logging
import secrets
import socket
from typing import Final

from xetserve.http.messages import error_response
from xetserve.metrics.catalogue import CONNECTIONS_REFUSED
from xetserve.net.dates import http_date

logger = logging.getLogger(__name__)

LINGER: Final = 1.0  # seconds for the client to read the answer and close
MAX_LINGERING: Final = 64  # sockets; one more closes the one that has waited longest
MAX_INPUT: Final = 64 * 1024  # bytes of a request that are read and dropped
LOG_INTERVAL: Final = 10.0  # seconds between two log lines
TLS_ALERT: Final = b"\x15\x03\x03\x00\x02\x02\x50"  # fatal, internal_error (RFC 8446, 6)

_PASSING: Final = frozenset({429, 503})  # statuses after which the client may retry


class Refusals:
    """A sender of refusals, which keeps the sockets open until the clients have read the reason.

    Args:
        retry_after: seconds, for the Retry-After field.
    """

    def __init__(self, retry_after: int = 1) -> None:
        self._retry_after = retry_after
        self._loop = asyncio.get_running_loop()
        self._lingering: dict[socket.socket, asyncio.TimerHandle] = {}
        self._input: dict[socket.socket, int] = {}
        self._num_unlogged = 0
        self._next_log = 0.0

    def refuse(
        self, sock: socket.socket, status: int, reason: str, *, over_tls: bool = False
    ) -> None:
        """Send a response with this status to a new client, then close the connection."""
        try:
            # The send buffer of a new connection has room for this.
            sock.send(self.make_refusal(status, reason, over_tls=over_tls))
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if len(self._lingering) >= MAX_LINGERING:
            self._close(next(iter(self._lingering)))
        self._input[sock] = 0
        self._lingering[sock] = self._loop.call_later(LINGER, self._close, sock)
        self._loop.add_reader(sock, self._on_readable, sock)

    def close(self) -> None:
        """Close all lingering sockets."""
        for sock in list(self._lingering):
            self._close(sock)

    def make_refusal(self, status: int, reason: str, *, over_tls: bool = False) -> bytes:
        """Count and log a refusal; return the bytes to send: a response, or over TLS an alert."""
        CONNECTIONS_REFUSED.add(str(status))
        self.log(reason)
        return TLS_ALERT if over_tls else self._make_answer(status, reason)

    def _make_answer(self, status: int, reason: str) -> bytes:
        response = error_response(status, reason)
        assert isinstance(response.body, bytes)
        lines = [
            f"HTTP/1.1 {status} {response.reason}",
            f"Date: {http_date()}",
            *(f"{name}: {value}" for name, value in response.headers),
            *([f"Retry-After: {self._retry_after}"] if status in _PASSING else []),
            f"X-Request-Id: {secrets.token_hex(8)}",
            f"Content-Length: {len(response.body)}",
            "Connection: close",
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body

    def _on_readable(self, sock: socket.socket) -> None:
        # Closing with unread input resets the connection, and the client may lose the response
        # (RFC 9112, 9.6).
        try:
            count = len(sock.recv(MAX_INPUT))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._input[sock] += count
        if not count or self._input[sock] > MAX_INPUT:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._lingering.pop(sock).cancel()
        del self._input[sock]
        self._loop.remove_reader(sock)
        sock.close()

    def log(self, reason: str) -> None:
        """Log a refusal; within LOG_INTERVAL, one line stands for all of them."""
        self._num_unlogged += 1
        now = self._loop.time()
        if now >= self._next_log:
            logger.warning("refused %d connections, the last: %s", self._num_unlogged, reason)
            self._num_unlogged = 0
            self._next_log = now + LOG_INTERVAL
