"""From an accepted socket to a client: what comes before its first request.

A proxy in front of us may have to say first who the client is (the PROXY protocol), then TLS may
have to begin. A client that does neither well is closed, and told why where it can be told.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from socket import socket

from xetserve.errors import BrokenStream
from xetserve.http.messages import Handler
from xetserve.metrics.catalogue import ENTRIES_FAILED
from xetserve.net.proxy_protocol import BadProxyHeader, parse_header
from xetserve.net.stream import ByteStream
from xetserve.net.tls import ServerTls
from xetserve.net.tls_stream import HANDSHAKE, TlsStream


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listening socket, and what is spoken there.

    tls: whose context new connections get; None: plain HTTP.
    handler: who answers; None: the listener's.
    """

    sock: socket
    tls: ServerTls | None = None
    handler: Handler | None = None


async def read_proxy_header(stream: ByteStream) -> str | None:
    """Read the PROXY header that a connection begins with; gives the client's address if it has
    one.

    Raises:
        BrokenStream: there is none, or it is malformed. Nothing is to be answered to whoever that
            is.
    """
    received = b""
    while True:
        try:
            header = parse_header(received)
        except BadProxyHeader as exc:
            ENTRIES_FAILED.add("proxy header")
            raise BrokenStream(str(exc)) from None
        if header is not None:
            stream.unread(received[header.size :])
            return header.source
        if not (data := await stream.receive()):
            ENTRIES_FAILED.add("proxy header")
            raise BrokenStream("closed before the end of its PROXY header")
        received += data


async def start_tls(
    stream: ByteStream,
    tls: ServerTls,
    turn: Callable[[], Awaitable[None]],
    refuse: Callable[[], bytes],
) -> TlsStream:
    """Begin TLS with a client.

    Args:
        turn: waits until the work may be done that a handshake is.
        refuse: gives what is answered to a client that speaks plain HTTP.

    Raises:
        BrokenStream: it failed, and the client was told why; the stream is to be closed.
    """
    if not (data := await stream.receive()):
        raise BrokenStream("closed before it said anything")
    if data[0] != HANDSHAKE:
        ENTRIES_FAILED.add("plain on a TLS port")
        await stream.send_all([refuse()])
        raise BrokenStream("no TLS")
    stream.unread(data)
    await turn()
    secure = TlsStream(stream, tls.context)
    try:
        await secure.handshake()
    except BrokenStream:
        ENTRIES_FAILED.add("TLS handshake")
        raise
    return secure
