"""The listener: accept clients, serve each in its own task, and drain all of them."""

import asyncio
import errno
import logging
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Any, Final

from xetserve.errors import BrokenStream
from xetserve.http.hosts import PROBES
from xetserve.http.messages import Handler, Request, Response, error_response
from xetserve.http.proxy_headers import Forwarding, TrustedProxies
from xetserve.metrics.catalogue import CONNECTIONS, ENTRIES_FAILED
from xetserve.net.accept import Acceptor
from xetserve.net.body_budget import BodyBudget
from xetserve.net.connection_count import ConnectionCount, client_key
from xetserve.net.loop_turns import Turns
from xetserve.net.preamble import (
    NO_CERTIFICATE,
    Endpoint,
    begin_without_certificate,
    read_proxy_header,
    start_tls,
)
from xetserve.net.refusals import Refusals
from xetserve.net.server_connection import ConnectionLimits, OnAnswer, ServerConnection
from xetserve.net.stream import ByteStream
from xetserve.net.tls_stream import Stream

logger = logging.getLogger(__name__)

_GENERAL: Final = ("0.0.0.0", "::")  # all addresses of a family
MAX_BINDS: Final = 10  # attempts to find a port that is free at several addresses

ONLY_PROXIES: Final = "this server accepts only connections from its trusted proxies"


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """The policy for proxies in front of the server.

    trusted: proxies whose information about clients is believed.
    forwarding: reads their forwarding fields; None: ignore the fields.
    needs_header: accept only trusted proxies, and require a PROXY header. A health check by this
        machine is accepted as well: its header names no client, and it asks for PROBES only.
    """

    trusted: TrustedProxies = field(default_factory=TrustedProxies)
    forwarding: Forwarding | None = None
    needs_header: bool = False


@dataclass(slots=True)
class _Client:
    """The listener's state of one connection.

    key: the client key under which the connection is counted.
    is_local: whether this is a local peer that is no trusted proxy: at most a health check.
    is_early: whether it came before the first certificate: at most a health check, too.
    preamble: the timeout of the preamble; None: the preamble is over.
    connection: set after the preamble.
    """

    sock: socket.socket
    key: str
    is_local: bool = False
    is_early: bool = False
    preamble: asyncio.Timeout | None = None
    connection: ServerConnection | None = None


class Listener:
    """A server of a handler on listening sockets.

    Args:
        on_answer: called for each request after its response.
        is_shared: whether other processes accept from the same sockets.
        proxies: the policy for proxies; None: trust none.
        bodies: the budget for request bodies; None: use a default budget.
        turns: the scheduler of the event loop, for handshakes and heads; None: create one.
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
        self._count = ConnectionCount(limits.max_connections, limits.max_connections_per_client)
        self._refusals: Refusals | None = None
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._draining = False
        self._has_left = False
        self._idle_since: float | None = time.monotonic()

    @property
    def num_connections(self) -> int:
        """Return the number of connected clients."""
        return len(self._clients)

    @property
    def is_draining(self) -> bool:
        """Return whether the listener has stopped accepting clients to drain."""
        return self._draining

    @property
    def idle_since(self) -> float | None:
        """Return when the last client left, by the monotonic clock; None: there are clients."""
        return self._idle_since

    @property
    def has_left(self) -> bool:
        """Return whether leave was called."""
        return self._has_left

    async def start(self, endpoints: Sequence[Endpoint | socket.socket]) -> None:
        """Start accepting clients on bound sockets, which the listener owns from now on.

        A socket without an Endpoint serves plain HTTP.
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
        """Stop accepting at once; leave queued clients to the other owner of the sockets."""
        self._has_left = True
        for acceptor in self._acceptors:
            acceptor.leave()

    def configure(self, limits: ConnectionLimits, proxies: ProxyPolicy) -> None:
        """Change the limits and the proxy policy for new connections."""
        self._limits = limits
        self._proxies = proxies
        self._count.set_limits(limits.max_connections, limits.max_connections_per_client)

    def _needs_header(self, endpoint: Endpoint) -> bool:
        return self._proxies.needs_header and not endpoint.for_operators

    def _get_load(self) -> int:
        """Return the number of clients; at the limit sys.maxsize: other processes go first."""
        limit = self._limits.max_connections
        is_full = limit and self.num_connections >= limit
        return sys.maxsize if is_full else self.num_connections

    def _on_client(self, endpoint: Endpoint, sock: socket.socket, address: Any) -> None:
        assert self._refusals is not None
        host = _host(address)
        is_trusted = host in self._proxies.trusted
        is_stranger = self._needs_header(endpoint) and not is_trusted
        over_tls = endpoint.tls is not None
        if is_stranger and not _is_of_this_machine(host, sock):
            self._refusals.refuse(sock, 403, ONLY_PROXIES, over_tls=over_tls)
            return
        # A trusted proxy connects for many clients, so its address is not counted.
        key = "" if is_trusted else client_key(address)
        excess = self._count.find_excess(key)
        if excess is not None:
            self._refusals.refuse(sock, *excess, over_tls=over_tls)
            return
        client = _Client(sock, key, is_stranger)
        task = asyncio.get_running_loop().create_task(self._serve(endpoint, client))
        self._count.add(key)
        self._clients[task] = client
        self._idle_since = None
        CONNECTIONS.add()
        task.add_done_callback(self._forget)

    async def _serve(self, endpoint: Endpoint, client: _Client) -> None:
        task = asyncio.current_task()
        assert task is not None
        raw = ByteStream()
        # When the client disconnects, its task has no purpose any more.
        raw.on_lost = task.cancel
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: raw, client.sock)
        try:
            opened = await self._open_stream(endpoint, client, raw)
        except BaseException:
            raw.abort()
            raise
        if opened is None:
            return
        stream, peer = opened
        handler = endpoint.handler or self._handler
        if endpoint.for_operators:
            handler = partial(_mark, handler)
        if client.is_early:
            handler = partial(_answer_probe, handler, 503, NO_CERTIFICATE)
        if client.is_local:
            handler = partial(_answer_probe, handler, 403, ONLY_PROXIES)
        connection = ServerConnection(
            stream,
            handler,
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

    async def _open_stream(
        self, endpoint: Endpoint, client: _Client, raw: ByteStream
    ) -> tuple[Stream, str] | None:
        """Run the preamble; return the stream for requests and the client's address.

        Returns None if the preamble failed; the connection is closed then.
        """
        if endpoint.tls is None and not self._needs_header(endpoint):
            return raw, raw.peer
        try:
            try:
                async with asyncio.timeout(self._limits.handshake_timeout) as client.preamble:
                    if self._draining:
                        self._shorten_preamble(client)
                    return await self._run_preamble(endpoint, client, raw)
            finally:
                client.preamble = None
        except (BrokenStream, TimeoutError) as exc:
            if isinstance(exc, TimeoutError):
                ENTRIES_FAILED.add("timeout")
            logger.debug("no request from %s: %s", raw.peer or "unix", str(exc) or "timed out")
            raw.on_lost = None
            await raw.aclose(self._limits.linger_timeout)
            return None

    async def _run_preamble(
        self, endpoint: Endpoint, client: _Client, raw: ByteStream
    ) -> tuple[Stream, str]:
        """Read the PROXY header and start TLS; return the stream and the client's address.

        Raises:
            BrokenStream: a step failed. The client has received the reason if possible.
        """
        assert self._refusals is not None
        refusals, peer = self._refusals, raw.peer
        if client.is_local:
            await self._read_local_header(endpoint, raw)
        elif self._needs_header(endpoint):
            source = await read_proxy_header(raw, refusals.log)
            if source is not None:
                peer = source
                key = "" if source in self._proxies.trusted else client_key((source, 0))
                excess = self._count.find_excess_of(key)
                if excess is not None:
                    over_tls = endpoint.tls is not None
                    await raw.send_all([refusals.make_refusal(*excess, over_tls=over_tls)])
                    raise BrokenStream("refused")
                self._count.remove(client.key)
                self._count.add(key)
                client.key = key
        if endpoint.tls is None:
            return raw, peer
        if endpoint.tls.context is None:
            await begin_without_certificate(raw)
            client.is_early = True
            return raw, peer
        reason = "this port speaks TLS: use a URL with https"
        turn = partial(self._turns.take, f"{client.key}, handshakes", begins=True)
        tls = await start_tls(raw, endpoint.tls, turn, partial(refusals.make_refusal, 400, reason))
        return tls, peer

    async def _read_local_header(self, endpoint: Endpoint, raw: ByteStream) -> None:
        """Read the PROXY header of a health check by this machine, which names no client.

        Raises:
            BrokenStream: there is none, or it names one. The client has received the reason.
        """
        with suppress(BrokenStream):
            if await read_proxy_header(raw, lambda _: None) is None:
                return
        assert self._refusals is not None
        refusal = self._refusals.make_refusal(403, ONLY_PROXIES, over_tls=endpoint.tls is not None)
        await raw.send_all([refusal])
        raise BrokenStream("refused")

    def _shorten_preamble(self, client: _Client) -> None:
        """Shorten the timeout of a client's preamble to drain_grace."""
        deadline = asyncio.get_running_loop().time() + self._limits.drain_grace
        preamble = client.preamble
        if preamble is not None and not preamble.expired():
            preamble.reschedule(min(deadline, preamble.when() or deadline))

    def _forget(self, task: asyncio.Task[None]) -> None:
        client = self._clients.pop(task)
        CONNECTIONS.add(amount=-1)
        if not self._clients:
            self._idle_since = time.monotonic()
        if client.connection is None:
            client.sock.close()  # the task was cancelled before it opened the stream
        self._count.remove(client.key)
        if not task.cancelled() and (exc := task.exception()) is not None:
            logger.error("a connection failed unexpectedly", exc_info=exc)

    async def drain(self, timeout: float) -> None:
        """Stop accepting, let responses finish for timeout seconds, then cut the rest."""
        for acceptor in self._acceptors:
            acceptor.stop()
        self._draining = True
        for client in list(self._clients.values()):
            self._shorten_preamble(client)
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


def _is_of_this_machine(host: str, sock: socket.socket) -> bool:
    """Return whether a peer is on this machine; "" is a peer on a Unix socket."""
    return not host or host == _host(sock.getsockname()) or is_loopback(host)


def is_loopback(host: str) -> bool:
    """Return whether a numeric address is a loopback address, IPv4-mapped ones included."""
    address = ip_address(host.partition("%")[0])
    return bool((getattr(address, "ipv4_mapped", None) or address).is_loopback)


async def _mark(handler: Handler, request: Request) -> Response:
    """Answer a request at the address for operators."""
    request.for_operators = True
    return await handler(request)


async def _answer_probe(handler: Handler, status: int, reason: str, request: Request) -> Response:
    """Answer a health check; refuse everything else."""
    if request.raw_path not in PROBES:
        return error_response(status, reason)
    return await handler(request)


def bind_sockets(
    hosts: str, port: int, kept: list[socket.socket] | None = None
) -> list[socket.socket]:
    """Bind TCP sockets for addresses and names, which are separated by commas.

    An address that 0.0.0.0 or :: in the list includes gets no socket of its own. The socket of ::
    is for IPv4 too, unless the list has an IPv4 address. Port 0 chooses one free port for all.

    Args:
        kept: sockets of a former server. One that has a wanted address, with any port for port 0,
            is taken out of the list instead of a new one.

    Raises:
        OSError: an address is in use or is not an address of this machine, or a name is unknown;
            its filename is the address or the name.
    """
    addresses = _find_addresses(hosts, port)
    for left in reversed(range(MAX_BINDS)):
        try:
            return _bind_all(addresses, port, kept or [])
        except OSError as exc:
            # The port that was free at the first address may be in use at the next one.
            if port or exc.errno != errno.EADDRINUSE or not left:
                raise
    raise AssertionError


def _find_addresses(hosts: str, port: int) -> list[tuple[int, Any]]:
    """Return the families and the addresses to bind, in order."""
    found: dict[tuple[int, Any], None] = {}
    for host in hosts.split(","):
        try:
            infos = socket.getaddrinfo(
                host.strip() or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as exc:
            exc.filename = host.strip()
            raise
        found |= {(family, address): None for family, _, _, _, address in infos}
    general = {family for family, address in found if address[0] in _GENERAL}
    return [each for each in found if each[0] not in general or each[1][0] in _GENERAL]


def _bind_all(
    addresses: Sequence[tuple[int, Any]], port: int, kept: list[socket.socket]
) -> list[socket.socket]:
    has_four = any(family == socket.AF_INET for family, _ in addresses)
    sockets: list[socket.socket] = []
    for family, (host, _, *scope) in addresses:
        is_six_only = family == socket.AF_INET6 and (has_four or host != "::")
        if (found := _find_bound(kept, family, host, port, is_six_only=is_six_only)) is not None:
            kept.remove(found)
            sockets.append(found)
            port = found.getsockname()[1]
            continue
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_six_only)
            sock.bind((host, port, *scope))
        except OSError as exc:
            for each in sockets:
                each.close()
            exc.filename = host
            raise
        port = sock.getsockname()[1]
    return sockets


def _find_bound(
    kept: list[socket.socket], family: int, host: str, port: int, *, is_six_only: bool
) -> socket.socket | None:
    """Return the first of the sockets that has an address; port 0 is any port."""
    for sock in kept:
        if sock.family != family or sock.getsockname()[0] != host:
            continue
        if family == socket.AF_INET6:
            option = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
            if option != is_six_only:
                continue
        if port in (0, sock.getsockname()[1]):
            return sock
    return None
