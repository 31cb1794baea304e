"""Serving clients: one task for each, all of them known, so that they can be drained."""

import asyncio
import logging
import socket
import sys
from typing import Any

from xetserve.http.messages import Handler
from xetserve.net.accept import Acceptor
from xetserve.net.census import Census, client_key
from xetserve.net.connection import ClientConnection, ConnectionLimits, OnAnswer
from xetserve.net.refusals import Refusals
from xetserve.net.stream import ByteStream

logger = logging.getLogger(__name__)


class Listener:
    """Serves a handler on listening sockets.

    Args:
        on_answer: called for each request once it is answered.
        is_shared: whether other processes accept from the same sockets.
    """

    def __init__(
        self,
        handler: Handler,
        limits: ConnectionLimits,
        *,
        on_answer: OnAnswer | None = None,
        is_shared: bool = False,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._on_answer = on_answer
        self._is_shared = is_shared
        self._acceptors: list[Acceptor] = []
        self._census = Census(limits.max_connections, limits.max_connections_per_client)
        self._refusals: Refusals | None = None
        # None: the client is being connected to its stream.
        self._connections: dict[asyncio.Task[None], ClientConnection | None] = {}
        self._draining = False

    @property
    def num_connections(self) -> int:
        """Clients that are connected now."""
        return len(self._connections)

    @property
    def is_draining(self) -> bool:
        """Whether no more clients are accepted."""
        return self._draining

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept clients on sockets that are bound already; they belong to the listener from now on."""
        self._refusals = Refusals()
        load = self._get_load if self._is_shared else None
        self._acceptors = [Acceptor(sock, self._on_client, load) for sock in sockets]
        for acceptor in self._acceptors:
            acceptor.start()

    def _get_load(self) -> int:
        """How many clients there are; when no more may come, more than any other process has."""
        limit = self._limits.max_connections
        is_full = limit and self.num_connections >= limit
        return sys.maxsize if is_full else self.num_connections

    def _on_client(self, sock: socket.socket, address: Any) -> None:
        client = client_key(address)
        excess = self._census.find_excess(client)
        if excess is not None and self._refusals is not None:
            self._refusals.refuse(sock, *excess)
            return
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._census.add(client)
        self._connections[task] = None
        task.add_done_callback(lambda task: self._forget(task, client, sock))

    async def _serve(self, sock: socket.socket) -> None:
        task = asyncio.current_task()
        assert task is not None
        stream = ByteStream()
        # The client is gone: whatever its task waits for is wanted by nobody.
        stream.on_lost = task.cancel
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: stream, sock)
        connection = ClientConnection(stream, self._handler, self._limits, self._on_answer)
        self._connections[task] = connection
        if self._draining:
            connection.drain()
        await connection.serve()

    def _forget(self, task: asyncio.Task[None], client: str, sock: socket.socket) -> None:
        if self._connections.pop(task) is None:
            sock.close()  # its task was cancelled before it had begun
        self._census.remove(client)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("a connection failed unexpectedly", exc_info=exc)

    async def drain(self, timeout: float) -> None:
        """Stop accepting, let responses finish for timeout seconds, then cut what is left."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._draining = True
        for connection in list(self._connections.values()):
            if connection is not None:
                connection.drain()
        if self._connections:
            await asyncio.wait(list(self._connections), timeout=timeout)
        left = list(self._connections)
        for task in left:
            task.cancel()
        if left:
            logger.warning("cut %d connections that did not finish in %g s", len(left), timeout)
            await asyncio.wait(left)
        if self._refusals is not None:
            self._refusals.close()


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
