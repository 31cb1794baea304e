"""The start of a connection, before its first request: PROXY header, then TLS handshake.

Both are optional. The server closes a connection that fails either one, and tells the client the
reason if the protocol allows it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from socket import socket
from typing import Final

from xetserve.errors import BrokenStream
from xetserve.http.messages import Handler
from xetserve.metrics.catalogue import ENTRIES_FAILED
from xetserve.net.proxy_protocol import BadProxyHeader, parse_header
from xetserve.net.refusals import TLS_ALERT
from xetserve.net.stream import ByteStream
from xetserve.net.tls import ServerTls
from xetserve.net.tls_stream import HANDSHAKE, TlsStream

NO_CERTIFICATE: Final = "this server has no TLS certificate yet"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listening socket and its protocol.

    tls: the TLS settings of new connections; None: plain HTTP. Before the first certificate,
        health checks are answered in plain HTTP.
    handler: the handler of requests; None: the listener's handler.
    for_operators: requests are marked so, and no proxy is expected in front.
    """

    sock: socket
    tls: ServerTls | None = None
    handler: Handler | None = None
    for_operators: bool = False


async def read_proxy_header(stream: ByteStream, warn: Callable[[str], object]) -> str | None:
    """Read the PROXY header at the start of a connection; return the client's address or None.

    Args:
        warn: called with the reason if the proxy sends something else.

    Raises:
        BrokenStream: the header is missing or malformed. Close the connection without an answer.
    """
    received = b""
    while True:
        try:
            header = parse_header(received)
        except BadProxyHeader as exc:
            ENTRIES_FAILED.add("proxy header")
            peer = stream.peer or "a peer on the Unix socket"
            warn(
                f"{peer}: {exc}; proxy_protocol is on, so the proxy must send one (HAProxy: "
                "send-proxy, nginx: proxy_protocol on)"
            )
            raise BrokenStream(str(exc)) from None
        if header is not None:
            stream.unread(received[header.size :])
            return header.source
        if not (data := await stream.receive()):
            ENTRIES_FAILED.add("proxy header")
            raise BrokenStream("closed before the end of its PROXY header")
        received += data


async def begin_without_certificate(stream: ByteStream) -> None:
    """Refuse a TLS handshake while there is no certificate; a client with plain HTTP may go on.

    Raises:
        BrokenStream: the client began a handshake, and has received an alert. Close the stream.
    """
    if not (data := await stream.receive()):
        raise BrokenStream("closed before the TLS handshake")
    if data[0] == HANDSHAKE:
        ENTRIES_FAILED.add("no certificate")
        await stream.send_all([TLS_ALERT])
        raise BrokenStream(NO_CERTIFICATE)
    stream.unread(data)


async def start_tls(
    stream: ByteStream,
    tls: ServerTls,
    turn: Callable[[], Awaitable[None]],
    refuse: Callable[[], bytes],
) -> TlsStream:
    """Run the TLS handshake with a client.

    Args:
        turn: waits for a place in a turn of the event loop.
        refuse: returns the response to a client that speaks plain HTTP.

    Raises:
        BrokenStream: the handshake failed, and the client has received the reason. Close the
            stream.
    """
    if not (data := await stream.receive()):
        raise BrokenStream("closed before the TLS handshake")
    if data[0] != HANDSHAKE:
        ENTRIES_FAILED.add("plain on a TLS port")
        await stream.send_all([refuse()])
        raise BrokenStream("the client speaks plain HTTP on a TLS port")
    stream.unread(data)
    await turn()
    assert tls.context is not None  # see begin_without_certificate
    secure = TlsStream(stream, tls.context)
    try:
        await secure.handshake()
    except BrokenStream:
        ENTRIES_FAILED.add("TLS handshake")
        raise
    return secure
