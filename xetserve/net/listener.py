"""Accepting clients: one task for each, all of them known, so that they can be drained."""

import asyncio
import logging
import socket

from xetserve.http.messages import Handler
from xetserve.net.connection import ClientConnection, ConnectionLimits
from xetserve.net.stream import ByteStream

logger = logging.getLogger(__name__)

BACKLOG = 1024


class Listener:
    """Serves a handler on listening sockets."""

    def __init__(self, handler: Handler, limits: ConnectionLimits) -> None:
        self._handler = handler
        self._limits = limits
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], ClientConnection] = {}
        self._draining = False

    @property
    def num_connections(self) -> int:
        """Clients that are connected now."""
        return len(self._connections)

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept clients on sockets that are bound already."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            self._servers.append(
                await loop.create_server(
                    lambda: ByteStream(self._accept), sock=sock, backlog=BACKLOG
                )
            )

    def _accept(self, stream: ByteStream) -> None:
        connection = ClientConnection(stream, self._handler, self._limits)
        task = asyncio.get_running_loop().create_task(connection.serve())
        # The client is gone: whatever its task waits for is wanted by nobody.
        stream.on_lost = task.cancel
        self._connections[task] = connection
        if self._draining:  # it was accepted just before the socket was closed
            connection.drain()
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._connections[task]
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("a connection failed unexpectedly", exc_info=exc)

    async def drain(self, timeout: float) -> None:
        """Stop accepting, let responses finish for timeout seconds, then cut what is left."""
        self._draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._connections.values()):
            connection.drain()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=timeout)
        left = list(self._connections)
        for task in left:
            task.cancel()
        if left:
            logger.warning("cut %d connections that did not finish in %g s", len(left), timeout)
            await asyncio.wait(left)


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind TCP sockets for every address of host; port 0 picks a free one.

    Raises:
        OSError: the address is taken or is not ours.
    """
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, proto)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets
