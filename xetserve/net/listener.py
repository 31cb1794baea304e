"""Serving clients: one task for each, all of them known, so that they can be drained."""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from xetserve.errors import BrokenStream
from xetserve.http.messages import Handler
from xetserve.http.proxy_headers import Forwarding, TrustedProxies
from xetserve.metrics.catalogue import CONNECTIONS, ENTRIES_FAILED
from xetserve.net.accept import Acceptor
from xetserve.net.body_budget import BodyBudget
from xetserve.net.connection_count import ConnectionCount, client_key
from xetserve.net.loop_turns import Turns
from xetserve.net.preamble import Endpoint, read_proxy_header, start_tls
from xetserve.net.refusals import Refusals
from xetserve.net.server_connection import ConnectionLimits, OnAnswer, ServerConnection
from xetserve.net.stream import ByteStream
from xetserve.net.tls_stream import Stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """Who may speak for others.

    trusted: proxies whose word counts.
    forwarding: reads the fields in which they tell of their clients; None: none are read.
    needs_header: every connection comes from one of them and begins with a PROXY header.
    """

    trusted: TrustedProxies = field(default_factory=TrustedProxies)
    forwarding: Forwarding | None = None
    needs_header: bool = False


@dataclass(slots=True)
class _Client:
    """A connection as the listener knows it.

    key: what the census counts it as.
    entering: while it may not ask yet; when it has to be done with that.
    connection: once it may ask.
    """

    sock: socket.socket
    key: str
    entering: asyncio.Timeout | None = None
    connection: ServerConnection | None = None


class Listener:
    """Serves a handler on listening sockets.

    Args:
        on_answer: called for each request once it is answered.
        is_shared: whether other processes accept from the same sockets.
        proxies: who may speak for others.
        bodies: bounds what is held of request bodies; None: as by default.
        turns: gives places in turns of the loop, for handshakes and heads; None: those of nobody
            else.
    """

    def __init__(
        self,
        handler: Handler,
        limits: ConnectionLimits,
        *,
        on_answer: OnAnswer | None = None,
        is_shared: bool = False,
        proxies: ProxyPolicy | None = None,
        bodies: BodyBudget | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._on_answer = on_answer
        self._is_shared = is_shared
        self._proxies = proxies or ProxyPolicy()
        self._bodies = bodies or BodyBudget()
        self._turns = turns or Turns()
        self._acceptors: list[Acceptor] = []
        self._census = ConnectionCount(limits.max_connections, limits.max_connections_per_client)
        self._refusals: Refusals | None = None
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._draining = False
        self._has_left = False
        self._idle_since: float | None = time.monotonic()

    @property
    def num_connections(self) -> int:
        """Clients that are connected now."""
        return len(self._clients)

    @property
    def is_draining(self) -> bool:
        """Whether no more clients are accepted."""
        return self._draining

    @property
    def idle_since(self) -> float | None:
        """Since when nobody is connected, by the monotonic clock; None: somebody is."""
        return self._idle_since

    @property
    def has_left(self) -> bool:
        """Whether the sockets were left to others, see leave."""
        return self._has_left

    async def start(self, endpoints: Sequence[Endpoint | socket.socket]) -> None:
        """Accept clients on sockets that are bound already; they belong to the listener from now
        on.

        A socket alone is an endpoint of plain HTTP.
        """
        self._refusals = Refusals()
        self._idle_since = time.monotonic()
        load = self._get_load if self._is_shared else None
        for each in endpoints:
            endpoint = each if isinstance(each, Endpoint) else Endpoint(each)
            acceptor = Acceptor(endpoint.sock, partial(self._on_client, endpoint), load)
            self._acceptors.append(acceptor)
        for acceptor in self._acceptors:
            if self._has_left:
                acceptor.leave()
            else:
                acceptor.start()

    def leave(self) -> None:
        """Accept nobody from now on, whoever waits: somebody else has the sockets as well, and
        will.
        """
        self._has_left = True
        for acceptor in self._acceptors:
            acceptor.leave()

    def configure(self, limits: ConnectionLimits, proxies: ProxyPolicy) -> None:
        """Change the limits and who is trusted; clients that are connected keep what they have."""
        self._limits = limits
        self._proxies = proxies
        self._census.set_limits(limits.max_connections, limits.max_connections_per_client)

    def _get_load(self) -> int:
        """How many clients there are; when no more may come, more than any other process has."""
        limit = self._limits.max_connections
        is_full = limit and self.num_connections >= limit
        return sys.maxsize if is_full else self.num_connections

    def _on_client(self, endpoint: Endpoint, sock: socket.socket, address: Any) -> None:
        assert self._refusals is not None
        is_trusted = _host(address) in self._proxies.trusted
        over_tls = endpoint.tls is not None
        if self._proxies.needs_header and not is_trusted:
            reason = "clients come through a proxy here"
            self._refusals.refuse(sock, 403, reason, over_tls=over_tls)
            return
        # Behind a trusted proxy are many clients.
        key = "" if is_trusted else client_key(address)
        excess = self._census.find_excess(key)
        if excess is not None:
            self._refusals.refuse(sock, *excess, over_tls=over_tls)
            return
        client = _Client(sock, key)
        task = asyncio.get_running_loop().create_task(self._serve(endpoint, client))
        self._census.add(key)
        self._clients[task] = client
        self._idle_since = None
        CONNECTIONS.add()
        task.add_done_callback(self._forget)

    async def _serve(self, endpoint: Endpoint, client: _Client) -> None:
        task = asyncio.current_task()
        assert task is not None
        raw = ByteStream()
        # The client is gone: whatever its task waits for is wanted by nobody.
        raw.on_lost = task.cancel
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: raw, client.sock)
        try:
            entered = await self._enter(endpoint, client, raw)
        except BaseException:
            raw.abort()
            raise
        if entered is None:
            return
        stream, peer = entered
        connection = ServerConnection(
            stream,
            endpoint.handler or self._handler,
            self._limits,
            self._on_answer,
            peer=peer,
            forwarding=self._proxies.forwarding,
            bodies=self._bodies,
            turns=self._turns,
        )
        client.connection = connection
        if self._draining:
            connection.drain()
        await connection.serve()

    async def _enter(
        self, endpoint: Endpoint, client: _Client, raw: ByteStream
    ) -> tuple[Stream, str] | None:
        """Return the stream for a client's requests, and its address; None: it was not let in."""
        if endpoint.tls is None and not self._proxies.needs_header:
            return raw, raw.peer
        try:
            try:
                async with asyncio.timeout(self._limits.handshake_timeout) as client.entering:
                    if self._draining:
                        self._hurry(client)
                    return await self._let_in(endpoint, client, raw)
            finally:
                client.entering = None
        except (BrokenStream, TimeoutError) as exc:
            if isinstance(exc, TimeoutError):
                ENTRIES_FAILED.add("timeout")
            logger.debug("no request from %s: %s", raw.peer or "unix", str(exc) or "timed out")
            raw.on_lost = None
            await raw.aclose(self._limits.linger_timeout)
            return None

    async def _let_in(
        self, endpoint: Endpoint, client: _Client, raw: ByteStream
    ) -> tuple[Stream, str]:
        """Do what comes before the first request; gives the stream for it, and the client's
        address.

        Raises:
            BrokenStream: the client is not let in; it was told what there is to tell.
        """
        assert self._refusals is not None
        refusals, peer = self._refusals, raw.peer
        if self._proxies.needs_header:
            source = await read_proxy_header(raw)
            if source is not None:
                peer = source
                key = "" if source in self._proxies.trusted else client_key((source, 0))
                excess = self._census.find_excess_of(key)
                if excess is not None:
                    over_tls = endpoint.tls is not None
                    await raw.send_all([refusals.make_refusal(*excess, over_tls=over_tls)])
                    raise BrokenStream("refused")
                self._census.remove(client.key)
                self._census.add(key)
                client.key = key
        if endpoint.tls is None:
            return raw, peer
        reason = "this port speaks TLS: the URL begins with https"
        turn = partial(self._turns.take, f"{client.key}, handshakes", begins=True)
        tls = await start_tls(raw, endpoint.tls, turn, partial(refusals.make_refusal, 400, reason))
        return tls, peer

    def _hurry(self, client: _Client) -> None:
        """Give a client that has not asked yet the time that the drain leaves for that."""
        deadline = asyncio.get_running_loop().time() + self._limits.drain_grace
        entering = client.entering
        if entering is not None and not entering.expired():
            entering.reschedule(min(deadline, entering.when() or deadline))

    def _forget(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        CONNECTIONS.add(amount=-1)
        if not self._clients:
            self._idle_since = time.monotonic()
        if client.connection is None:
            client.sock.close()  # its task was cancelled before it had begun
        self._census.remove(client.key)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("a connection failed unexpectedly", exc_info=exc)

    async def drain(self, timeout: float) -> None:
        """Stop accepting, let responses finish for timeout seconds, then cut what is left."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._draining = True
        for client in list(self._clients.values()):
            self._hurry(client)
            if client.connection is not None:
                client.connection.drain()
        if self._clients:
            await asyncio.wait(list(self._clients), timeout=timeout)
        left = list(self._clients)
        for task in left:
            task.cancel()
        if left:
            logger.warning("cut %d connections that did not finish in %g s", len(left), timeout)
            await asyncio.wait(left)
        if self._refusals is not None:
            self._refusals.close()


def _host(address: Any) -> str:
    """Return the host of a socket address; "" on a Unix socket."""
    return str(address[0]) if isinstance(address, tuple) else ""


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
