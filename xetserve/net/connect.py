"""Open upstream connections: resolve names, choose a proxy, check addresses, start TLS."""

import asyncio
import base64
import errno
import logging
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import h11

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.base.lru_dict import LruDict
from xetserve.errors import BrokenStream, OutOfFiles, UpstreamRefused, UpstreamUntrusted
from xetserve.net.address_policy import AddressPolicy, find_literal
from xetserve.net.client_connection import ClientConnection, read_head
from xetserve.net.stream import ByteStream
from xetserve.net.url import Origin

logger = logging.getLogger(__name__)

_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
# X509_V_ERR_ codes: self-signed, self-signed in the chain, no issuer, no issuer of the first one.
_UNKNOWN_ISSUER: Final = frozenset({18, 19, 20, 21})
ATTEMPT_DELAY: Final = 0.25  # seconds before the next address is tried as well (RFC 8305, 5)
SLOW_TIME: Final = 600.0  # seconds in which an address that did not answer is tried last
MAX_SLOW: Final = 1000  # such addresses


class Proxy(NamedTuple):
    """A forward proxy, and the Proxy-Authorization to send to it; None: it requires none."""

    host: str
    port: int
    authorization: str | None

    def __repr__(self) -> str:
        return f"Proxy(host={self.host!r}, port={self.port})"


class ProxyRules:
    """The values of HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY at the time of creation."""

    def __init__(self, proxies: Mapping[str, str] | None = None) -> None:
        self._proxies = dict(getproxies_environment() if proxies is None else proxies)

    def find(self, origin: Origin) -> Proxy | None:
        """Return the proxy for an origin; None: connect directly.

        Raises:
            UpstreamRefused: the proxy's URL is invalid or has another scheme than http.
        """
        url = self._proxies.get(origin.scheme) or self._proxies.get("all")
        if not url or proxy_bypass(f"{origin.host}:{origin.port}", self._proxies):
            return None
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port or 8080
        except ValueError:  # urlsplit's message quotes the URL, which may hold a password
            raise UpstreamRefused(
                "the URL of the proxy is invalid: correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"
            ) from None
        if parts.scheme != "http" or not parts.hostname:
            raise UpstreamRefused(
                f"cannot use a proxy with scheme {parts.scheme!r}, only http: "
                "correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or name the host in NO_PROXY"
            )
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        return Proxy(parts.hostname, port, authorization)


class SlowAddresses:
    """Addresses that did not answer while another address of their host did.

    They are tried last for a while, so that a dead address delays one connection, not each.
    """

    def __init__(self) -> None:
        self._until: LruDict[tuple[str, int], float] = LruDict(max_num=MAX_SLOW)

    def sort(self, addresses: Iterable[str], port: int) -> list[str]:
        """Return the addresses in their order, but the slow ones last."""
        now = time.monotonic()
        return sorted(addresses, key=lambda each: (self._until.peek((each, port)) or 0.0) > now)

    def note(self, slow: Iterable[str], port: int) -> None:
        """Record addresses that were tried before the one that answered."""
        for address in slow:
            self._until.put((address, port), time.monotonic() + SLOW_TIME)


async def open_connection(
    origin: Origin,
    rules: ProxyRules,
    tls: ssl.SSLContext,
    timeout: float,
    reach: AddressPolicy | None = None,
    slow: SlowAddresses | None = None,
) -> ClientConnection:
    """Connect to an origin, through a proxy if the rules name one.

    A proxy resolves host names itself, so with a proxy only numeric addresses are checked.

    Args:
        timeout: seconds for the whole connection setup.
        reach: the policy for addresses; None: all are allowed.
        slow: addresses to try last; what this connection finds out is added.

    Raises:
        UpstreamRefused: the policy does not allow the address, or the proxy's URL is wrong.
        UpstreamUntrusted: the certificate of the host cannot be verified.
        OutOfFiles: this process or machine cannot open another file.
        BrokenStream: the host is unknown, unreachable or refuses, or the proxy refused the tunnel.
        TimeoutError: the connection was not ready in time.
    """
    proxy = rules.find(origin)
    slow = slow or SlowAddresses()
    stream: ByteStream | None = None
    try:
        async with asyncio.timeout(timeout):
            if reach is not None and reach.is_free(origin):
                reach = None
            if proxy is not None:
                literal = None if reach is None else find_literal(origin.host)
                if reach is not None and literal and not await reach.allows(literal):
                    raise _refuse(origin.host, literal)
                stream = await _connect(proxy.host, proxy.port, None, slow)
            else:
                stream = await _connect(origin.host, origin.port, reach, slow)
            if proxy and origin.scheme == "https":
                await _open_tunnel(stream, origin, proxy, timeout)
            if origin.scheme == "https":
                await _start_tls(stream, tls, origin.host)
    except (OSError, ssl.SSLError) as exc:
        if stream is not None:
            stream.abort()
        if isinstance(exc, TimeoutError):
            raise
        if _is_for_want_of_files(exc):
            raise OutOfFiles from exc
        if isinstance(exc, ssl.SSLCertVerificationError):
            hint = " (see SSL_CERT_FILE)" if exc.verify_code in _UNKNOWN_ISSUER else ""
            raise UpstreamUntrusted(
                f"cannot connect to {origin.host}: {exc.verify_message}{hint}"
            ) from exc
        reason = exc.strerror or str(exc)
        raise BrokenStream(f"cannot connect to {origin.host}: {reason}") from exc
    except BaseException:
        if stream is not None:
            stream.abort()
        raise
    if proxy is None or origin.scheme == "https":
        return ClientConnection(stream)
    return ClientConnection(stream, is_proxied=True, proxy_authorization=proxy.authorization)


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
    host: str, port: int, reach: AddressPolicy | None, slow: SlowAddresses
) -> ByteStream:
    """Connect to the first of the host's allowed addresses that answers.

    IPv6 and IPv4 addresses are tried alternately.
    """
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, port, type=1)
    except UnicodeError:  # a label of the name is empty or too long
        raise BrokenStream(f"cannot connect to {host}: not a host name") from None
    found = _interleave([info[4][0] for info in infos])
    addresses = [each for each in found if reach is None or await reach.allows(each)]
    if found and not addresses:
        raise _refuse(host, found[0])
    if not addresses:
        raise OSError(f"no address for {host}")
    return await _race(slow.sort(addresses, port), port, slow)


async def _race(addresses: list[str], port: int, slow: SlowAddresses) -> ByteStream:
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
                    slow.note(addresses[: addresses.index(winner)], port)
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
