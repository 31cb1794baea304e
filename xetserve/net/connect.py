"""Open upstream connections: resolve names, choose a proxy, check addresses, start TLS."""

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import h11

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.base.lru_dict import LruDict
from xetserve.errors import BrokenStream, OutOfFiles, UpstreamRefused, UpstreamUntrusted
from xetserve.net.address_policy import AddressPolicy, find_literal
from xetserve.net.client_connection import ClientConnection, read_head
from xetserve.net.proxies import HTTPS, SOCKS_LOCAL, Proxy, ProxyRules
from xetserve.net.socks import SocksRefused, open_socks
from xetserve.net.stream import ByteStream
from xetserve.net.url import Origin

logger = logging.getLogger(__name__)

_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
# X509_V_ERR_ codes: self-signed, self-signed in the chain, no issuer, no issuer of the first one.
_UNKNOWN_ISSUER: Final = frozenset({18, 19, 20, 21})
ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried as well (RFC 8305, 5)
SLOW_TIME: Final = 600.0  # seconds in which an address that did not answer is tried last
MAX_SLOW: Final = 1000  # such addresses


class AddressBook:
    """What connections learn about addresses: lookups under way, and addresses that are slow.

    A lookup occupies one of a few threads until the resolver gives up, whether somebody waits for
    it or not. So there is one at a time for each host: else those of many requests would wait for
    each other while the resolver is silent, and long after it answers again.

    Addresses that did not answer while another address of their host did are tried last for a
    while, so that a dead address delays one connection, not each.
    """

    def __init__(self) -> None:
        self._lookups: dict[tuple[str, int], asyncio.Task[list[str]]] = {}
        self._slow_until: LruDict[tuple[str, int], float] = LruDict(max_num=MAX_SLOW)

    async def look_up(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host, of IPv6 and IPv4 alternately.

        Raises:
            UnicodeError: host is not a host name.
            OSError: it has no address.
        """
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = asyncio.get_running_loop().create_task(_look_up(host, port))
            self._lookups[host, port] = lookup
            lookup.add_done_callback(partial(self._forget, (host, port)))
        await asyncio.wait((lookup,))  # a cancelled caller leaves it to the others
        return lookup.result()

    def _forget(self, key: tuple[str, int], lookup: asyncio.Task[list[str]]) -> None:
        del self._lookups[key]
        if not lookup.cancelled():
            lookup.exception()  # it may be that nobody waits any more

    def sort(self, addresses: Iterable[str], port: int) -> list[str]:
        """Return the addresses in their order, but the slow ones last."""
        now = time.monotonic()

        def is_slow(address: str) -> bool:
            return (self._slow_until.peek((address, port)) or 0.0) > now

        return sorted(addresses, key=is_slow)

    def note_slow(self, addresses: Iterable[str], port: int) -> None:
        """Record addresses that were tried before the one that answered."""
        for address in addresses:
            self._slow_until.put((address, port), time.monotonic() + SLOW_TIME)


async def _look_up(host: str, port: int) -> list[str]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
    return _interleave([info[4][0] for info in infos])


async def open_connection(
    origin: Origin,
    rules: ProxyRules,
    tls: ssl.SSLContext,
    timeout: float,
    reach: AddressPolicy | None = None,
    book: AddressBook | None = None,
) -> ClientConnection:
    """Connect to an origin, through a proxy if the rules name one.

    A proxy resolves host names itself, unless its kind is SOCKS_LOCAL. Then only numeric addresses
    are checked.

    Args:
        timeout: seconds for the whole connection setup.
        reach: the policy for addresses; None: all are allowed.
        book: what earlier connections have learned; this one adds to it.

    Raises:
        UpstreamRefused: the policy does not allow the address, or the proxy's URL is wrong.
        UpstreamUntrusted: the certificate of the host cannot be verified.
        OutOfFiles: this process or machine cannot open another file.
        BrokenStream: the host is unknown, unreachable or refuses, or the proxy refused the tunnel.
        TimeoutError: the connection was not ready in time.
    """
    proxy = rules.find(origin)
    book = book or AddressBook()
    stream: ByteStream | None = None
    try:
        async with asyncio.timeout(timeout):
            if reach is not None and reach.is_free(origin):
                reach = None
            with _naming_errors(origin.host):
                if proxy is None:
                    stream = await _connect(origin.host, origin.port, reach, book)
                else:
                    stream = await _connect_through(proxy, origin, tls, timeout, reach, book)
                if origin.scheme == "https":
                    await _start_tls(stream, tls, origin.host)
    except BaseException:
        if stream is not None:
            stream.abort()
        raise
    if proxy is None or proxy.is_socks or origin.scheme == "https":
        return ClientConnection(stream)
    return ClientConnection(stream, is_proxied=True, proxy_authorization=proxy.authorization)


@contextmanager
def _naming_errors(host: str) -> Iterator[None]:
    """Turn errors of the connection to a host into ones that name it."""
    try:
        yield
    except (OSError, ssl.SSLError) as exc:
        if isinstance(exc, TimeoutError):
            raise
        if _is_for_want_of_files(exc):
            raise OutOfFiles from exc
        if isinstance(exc, ssl.SSLCertVerificationError):
            hint = " (see SSL_CERT_FILE)" if exc.verify_code in _UNKNOWN_ISSUER else ""
            raise UpstreamUntrusted(
                f"cannot connect to {host}: {exc.verify_message}{hint}"
            ) from exc
        raise BrokenStream(f"cannot connect to {host}: {exc.strerror or exc}") from exc


def _is_for_want_of_files(error: OSError) -> bool:
    """Return whether a connection failed because no more files can be opened."""
    if not isinstance(error, socket.gaierror):
        return error.errno in _NO_FILES
    # The resolver opens files too, but its errors do not show this cause: try to open a socket.
    try:
        socket.socket().close()
    except OSError as exc:
        return exc.errno in _NO_FILES
    return False


async def _connect(
    host: str, port: int, reach: AddressPolicy | None, book: AddressBook
) -> ByteStream:
    """Connect to the first of the host's allowed addresses that answers."""
    addresses = await _find_addresses(host, port, reach, book)
    return await _race(book.sort(addresses, port), port, book)


async def _connect_through(
    proxy: Proxy,
    origin: Origin,
    tls: ssl.SSLContext,
    timeout: float,
    reach: AddressPolicy | None,
    book: AddressBook,
) -> ByteStream:
    """Connect to a proxy, and through it to the origin unless it takes requests for http URLs.

    Raises:
        UpstreamRefused: the policy does not allow the address.
        UpstreamUntrusted: the certificate of the proxy cannot be verified.
        BrokenStream: the proxy cannot be reached, or it refused.
    """
    hosts = [origin.host]
    if proxy.kind == SOCKS_LOCAL:
        hosts = await _find_addresses(origin.host, origin.port, reach, book)
    elif reach is not None:
        literal = find_literal(origin.host)
        if literal and not await reach.allows(literal):
            raise _refuse(origin.host, literal)
    while True:
        with _naming_errors(f"the proxy {proxy.host}"):
            stream = await _connect(proxy.host, proxy.port, None, book)
        try:
            if proxy.kind == HTTPS:
                with _naming_errors(f"the proxy {proxy.host}"):
                    await _start_tls(stream, tls, proxy.host)
            if proxy.is_socks:
                await open_socks(stream, hosts.pop(0), origin.port, proxy.login, timeout)
            elif origin.scheme == "https":
                await _open_tunnel(stream, origin, proxy, timeout)
            return stream
        except BaseException as exc:
            stream.abort()
            if not (isinstance(exc, SocksRefused) and hosts):
                raise


async def _find_addresses(
    host: str, port: int, reach: AddressPolicy | None, book: AddressBook
) -> list[str]:
    """Return the allowed addresses of a host, of IPv6 and IPv4 alternately.

    Raises:
        UpstreamRefused: none is allowed.
        BrokenStream: host is not a host name.
        OSError: it has no address.
    """
    try:
        found = await book.look_up(host, port)
    except UnicodeError:  # a label of the name is empty or too long
        raise BrokenStream(f"cannot connect to {host}: not a host name") from None
    addresses = [each for each in found if reach is None or await reach.allows(each)]
    if found and not addresses:
        raise _refuse(host, found[0])
    if not addresses:
        raise OSError(f"no address for {host}")
    return addresses


async def _race(addresses: list[str], port: int, book: AddressBook) -> ByteStream:
    """Connect to the address that answers first (RFC 8305, 5).

    The next address is tried when the last one has failed, or has not answered within
    ATTEMPT_DELAY. Once one answers, the other attempts are cancelled.

    Raises:
        OSError: all addresses have failed; the last one so.
    """
    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[ByteStream]] = set()
    error = OSError("no address")

    async def attempt(address: str) -> ByteStream:
        _, stream = await loop.create_connection(ByteStream, address, port)
        return stream

    try:
        for number, address in enumerate(addresses, 1):
            task = loop.create_task(attempt(address), name=address)
            running.add(task)
            is_last = number == len(addresses)
            while running:
                done, running = await asyncio.wait(
                    running,
                    timeout=None if is_last else ATTEMPT_DELAY,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                streams = []
                for each in done:
                    failure = each.exception()
                    if failure is None:
                        streams.append((each.get_name(), each.result()))
                    elif isinstance(failure, OSError):
                        error = failure
                    else:
                        raise failure
                if streams:
                    winner, stream = streams[0]
                    for _, other in streams[1:]:
                        other.abort()
                    book.note_slow(addresses[: addresses.index(winner)], port)
                    return stream
                if not is_last:
                    break
        raise error
    finally:
        for each in running:
            each.cancel()
        if running:
            await asyncio.wait(running)
        for each in running:
            if not each.cancelled() and each.exception() is None:
                each.result().abort()


def _refuse(host: str, address: str) -> UpstreamRefused:
    text = "not connecting to %s: its address %s is neither public nor in upstream_networks"
    LOG_LIMIT.log(logger, logging.WARNING, host, text, host, address)
    return UpstreamRefused(
        f"{host} has an address that this server may not connect to ([hub] upstream_networks)"
    )


def _interleave(addresses: list[str | int]) -> list[str]:
    """Alternate IPv6 and IPv4, so that a broken family costs one attempt (RFC 8305, 4)."""
    unique = list(dict.fromkeys(str(address) for address in addresses))
    six = [address for address in unique if ":" in address]
    four = [address for address in unique if ":" not in address]
    first, second = (six, four) if unique and unique[0] in six else (four, six)
    mixed = []
    for index in range(max(len(first), len(second))):
        mixed += first[index : index + 1] + second[index : index + 1]
    return mixed


async def _open_tunnel(stream: ByteStream, origin: Origin, proxy: Proxy, timeout: float) -> None:
    """Open a tunnel to the origin with CONNECT (RFC 9110, 9.3.6).

    Raises:
        BrokenStream: the proxy refused, or did not answer with HTTP.
    """
    target = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{target}:{origin.port}"
    headers = [("Host", target)]
    if proxy.authorization:
        headers.append(("Proxy-Authorization", proxy.authorization))
    connection = h11.Connection(h11.CLIENT)
    request = h11.Request(method="CONNECT", target=target, headers=headers)
    await stream.send_all(
        [connection.send(request) or b"", connection.send(h11.EndOfMessage()) or b""]
    )
    response = await read_head(connection, stream, bytearray(), timeout)
    if not 200 <= response.status_code < 300:
        raise BrokenStream(f"the proxy refused a tunnel: {response.status_code}")


async def _start_tls(stream: ByteStream, tls: ssl.SSLContext, host: str) -> None:
    loop = asyncio.get_running_loop()
    transport = await loop.start_tls(stream.transport, stream, tls, server_hostname=host)
    if transport is None:
        raise BrokenStream("closed during the TLS handshake")
    stream.replace_transport(transport)
