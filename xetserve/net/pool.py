"""Connection pool: reuse idle upstream connections, and open new ones."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from xetserve.errors import BrokenStream, OutOfFiles, UpstreamOffline
from xetserve.net.address_policy import AddressPolicy
from xetserve.net.client_connection import ClientConnection, ClientResponse, RequestContent
from xetserve.net.connect import AddressBook, open_connection
from xetserve.net.proxies import ProxyRules
from xetserve.net.url import Origin, Url

logger = logging.getLogger(__name__)

IDLE_TIMEOUT: Final = 30.0  # seconds; servers commonly close after 60 or 75
MAX_IDLE: Final = 32  # idle connections kept for one origin


class ConnectionPool:
    """A pool of upstream connections; one is reusable if its last response was read to the end.

    The number of connections has no limit. The caller has already reserved memory for the response,
    and a request that waits for a connection used by a slow client could wait forever.

    Args:
        is_offline: never open a connection.
        reach: the policy for addresses; None: all are allowed.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        proxies: ProxyRules,
        connect_timeout: float,
        is_offline: bool = False,
        reach: AddressPolicy | None = None,
    ) -> None:
        self._reach = reach
        self._is_offline = is_offline
        self._tls = tls
        self._proxies = proxies
        self._connect_timeout = connect_timeout
        self._addresses = AddressBook()
        self._idle: dict[Origin, list[ClientConnection]] = {}
        # Expiry timers, one for each origin with idle connections.
        self._timers: dict[Origin, asyncio.TimerHandle] = {}
        self._num_busy = 0  # connections used by a request, or being opened for one
        self.num_active = 0

    @property
    def num_idle(self) -> int:
        """Return the number of open connections that are not in use."""
        return sum(map(len, self._idle.values()))

    @property
    def num_open(self) -> int:
        """Return the number of connections that are open or being opened."""
        return self._num_busy + self.num_idle

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: Url,
        headers: Iterable[tuple[str, str]] = (),
        *,
        body: RequestContent = b"",
        timeout: float,
    ) -> AsyncIterator[ClientResponse]:
        """Send a request; keep the connection if the caller reads the response to its end.

        Args:
            timeout: seconds without a byte.

        Raises:
            UpstreamOffline: the pool is offline.
            UpstreamRefused: the policy does not allow the address, or the proxy's URL is wrong.
            UpstreamUntrusted: the certificate of the host cannot be verified.
            OutOfFiles: this process or machine cannot open another file.
            BrokenStream: the connection could not be opened, or it broke.
            TimeoutError: the connection took too long, or no byte arrived in time.
        """
        if self._is_offline:
            raise UpstreamOffline("this server is offline and has not stored this content")
        self._num_busy += 1
        try:
            connection, response = await self._send(method, url, tuple(headers), body, timeout)
            del body  # free its memory while the response is read
            self.num_active += 1
            try:
                yield response
            finally:
                self.num_active -= 1
                self._put_back(url.origin, connection)
        finally:
            self._num_busy -= 1

    async def _send(
        self,
        method: str,
        url: Url,
        headers: tuple[tuple[str, str], ...],
        body: RequestContent,
        timeout: float,
    ) -> tuple[ClientConnection, ClientResponse]:
        # The server may just be closing an idle connection, and a streamed body is sent only once.
        may_reuse = isinstance(body, bytes)
        while True:
            connection = self._take_idle(url.origin) if may_reuse else None
            is_fresh = connection is None
            if connection is None:
                connection = await self._open(url.origin)
            try:
                return connection, await connection.request(method, url, headers, body, timeout)
            except BrokenStream:
                connection.stream.abort()
                # The server may close an idle connection just as we reuse it (RFC 9112, 9.3.1).
                if is_fresh or method not in ("GET", "HEAD"):
                    raise
            except BaseException:
                connection.stream.abort()
                raise

    async def _open(self, origin: Origin) -> ClientConnection:
        arguments = (
            origin,
            self._proxies,
            self._tls,
            self._connect_timeout,
            self._reach,
            self._addresses,
        )
        try:
            return await open_connection(*arguments)
        except OutOfFiles:
            if not self._idle:
                raise
        self._close_idle()
        await asyncio.sleep(0)  # the event loop closes their sockets in its next turn
        return await open_connection(*arguments)

    def _take_idle(self, origin: Origin) -> ClientConnection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()  # the most recently used one is most likely still open
            if not idle:
                del self._idle[origin]
            if connection.is_reusable and time.monotonic() - connection.idle_since < IDLE_TIMEOUT:
                return connection
            connection.stream.abort()
        return None

    def _put_back(self, origin: Origin, connection: ClientConnection) -> None:
        idle = self._idle.get(origin, [])
        if not connection.is_reusable or len(idle) >= MAX_IDLE:
            connection.stream.abort()
            return
        connection.idle_since = time.monotonic()
        connection.stream.watch()
        self._idle.setdefault(origin, idle).append(connection)
        if origin not in self._timers:
            self._set_timer(origin)

    def _set_timer(self, origin: Origin) -> None:
        loop = asyncio.get_running_loop()
        self._timers[origin] = loop.call_later(IDLE_TIMEOUT, self._expire, origin)

    def _expire(self, origin: Origin) -> None:
        del self._timers[origin]
        limit = time.monotonic() - IDLE_TIMEOUT
        kept = []
        for connection in self._idle.pop(origin, []):
            if connection.idle_since > limit and connection.is_reusable:
                kept.append(connection)
            else:
                connection.stream.close()
        if kept:
            self._idle[origin] = kept
            self._set_timer(origin)

    async def aclose(self) -> None:
        """Close every idle connection."""
        self._close_idle()

    def _close_idle(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.stream.close()
        self._idle.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
