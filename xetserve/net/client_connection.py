"""Upstream connections: send a request, read the response's head with h11, and its body without.

A body with a Content-Length is received straight into the caller's buffers, because h11 would copy
it three times. http.framing decodes a chunked body. http.response_head checks each head before h11
parses it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Final

import h11

from xetserve.errors import BrokenStream, RequestError, UpstreamTooLarge
from xetserve.http.framing import ChunkedFraming
from xetserve.http.head import RequestLimits
from xetserve.http.messages import Headers
from xetserve.http.response_head import MAX_RESPONSE_FIELDS, ResponseHeadReader
from xetserve.net.stream import ByteStream
from xetserve.net.url import Url

MAX_HEAD_SIZE: Final = 128 * 1024  # bytes; a Location with a signed URL can be long
TAKES_PER_TURN: Final = 8  # reads of a body without a length in one turn of the event loop
# The body of a request. A streamed one is sent chunked, a piece when the last one has left.
RequestContent = bytes | AsyncIterator[bytes]
_TRAILER_LIMITS: Final = RequestLimits(max_fields=MAX_RESPONSE_FIELDS)


class ClientResponse:
    """The response to a request; its body is read from the connection on demand.

    content_length: body bytes; None: unknown.
    meter: called with the number of bytes after each read of the body.
    """

    def __init__(
        self, connection: "ClientConnection", status: int, headers: Headers, length: int | None
    ) -> None:
        self._connection = connection
        self.status = status
        self.headers = headers
        self.content_length = length
        self.meter: Callable[[int], None] | None = None

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive body bytes into view; return their number, 0 at the end of the body.

        Raises:
            BrokenStream: the connection was reset, or the body ended early.
            TimeoutError: no byte arrived for timeout seconds.
        """
        count = await self._connection.receive_body_into(view, timeout)
        if self.meter is not None:
            self.meter(count)
        return count

    async def read(self, limit: int, timeout: float | None) -> bytes:
        """Read the whole body.

        Raises:
            UpstreamTooLarge: the body has more than limit bytes.
            BrokenStream, TimeoutError: see receive_into.
        """
        buffer = memoryview(bytearray(min(limit + 1, 64 * 1024)))
        parts: list[bytes] = []
        size = 0
        while count := await self.receive_into(buffer, timeout):
            size += count
            if size > limit:
                raise UpstreamTooLarge(f"an upstream response has more than {limit} bytes")
            parts.append(bytes(buffer[:count]))
        return b"".join(parts)


class ClientConnection:
    """A connection to an upstream that sends one request after the other.

    Args:
        is_proxied: requests go through a plain HTTP proxy, which requires the absolute form of the
            target (RFC 9112, 3.2.2).
        proxy_authorization: the Proxy-Authorization for that proxy, sent with every request.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        is_proxied: bool = False,
        proxy_authorization: str | None = None,
    ) -> None:
        self.stream = stream
        self._is_proxied = is_proxied
        self._proxy_authorization = proxy_authorization
        self._inbox = bytearray()  # received bytes that are not parsed yet
        self._framing: ChunkedFraming | None = None  # of a chunked body
        self._left: int | None = 0  # body bytes to come; None: the body has no Content-Length
        self._rest = b""  # decoded body bytes that the caller has not read yet
        self._num_takes = 0
        self._keep = False
        self.num_requests = 0
        self.idle_since = 0.0

    @property
    def is_reusable(self) -> bool:
        """Return whether the last response was read to its end and a new request may be sent."""
        return self._keep and self._left == 0 and not self._rest and self.stream.is_quiet

    async def request(
        self,
        method: str,
        url: Url,
        headers: Iterable[tuple[str, str]],
        body: RequestContent,
        timeout: float | None,
    ) -> ClientResponse:
        """Send a request and read the response's head.

        Args:
            body: an error of a streamed one is raised as it is.
            timeout: seconds without a byte.

        Raises:
            BrokenStream: the connection ended, or the peer does not speak HTTP.
            TimeoutError: the peer took or sent no byte for timeout seconds.
        """
        self.num_requests += 1
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_SIZE)
        target = url.target
        if self._is_proxied:
            target = f"{url.origin.scheme}://{url.origin.authority}{target}"
        fields = [("Host", url.origin.authority), *headers]
        if self._proxy_authorization is not None:
            fields.append(("Proxy-Authorization", self._proxy_authorization))
        if not isinstance(body, bytes):
            fields.append(("Transfer-Encoding", "chunked"))
        elif body or method in ("POST", "PUT"):
            fields.append(("Content-Length", str(len(body))))
        self._keep = False
        self._inbox = bytearray()
        self._framing = None
        start = h11.Request(
            method=method.encode("ascii"),
            target=target.encode("ascii"),
            headers=[(k.encode("ascii"), v.encode("latin-1")) for k, v in fields],
        )
        if isinstance(body, bytes):
            events = [start, h11.Data(data=body), h11.EndOfMessage()]
            await self._send(connection, events if body else [start, events[-1]], timeout)
        else:
            await self._send(connection, [start], timeout)
            await self._send_pieces(connection, body, timeout)
        head = await read_head(connection, self.stream, self._inbox, timeout)
        return self._start_body(method, head)

    async def _send(
        self, connection: h11.Connection, events: list[h11.Event], timeout: float | None
    ) -> None:
        """Send parts of a request together."""
        parts = [connection.send(event) for event in events]
        await self.stream.send_all([part for part in parts if part], timeout)

    async def _send_pieces(
        self, connection: h11.Connection, body: AsyncIterator[bytes], timeout: float | None
    ) -> None:
        """Send a streamed body, or as much of it as the peer takes.

        If the connection breaks, an answer may have come before, such as 401 or 413. Without one,
        reading it raises the same error.
        """
        async for piece in body:
            with suppress(BrokenStream):
                await self._send(connection, [h11.Data(data=piece)], timeout)
                continue
            return
        with suppress(BrokenStream):
            await self._send(connection, [h11.EndOfMessage()], timeout)

    def _start_body(self, method: str, head: h11.Response) -> ClientResponse:
        headers = Headers.from_raw(head.headers)
        tokens = ",".join(headers.get_all("connection")).lower()
        self._keep = head.http_version >= b"1.1" and "close" not in tokens
        length = headers.get("content-length")
        if method == "HEAD" or head.status_code in (204, 304):
            self._left = 0
            # If the server sent a body all the same, it would be taken for the next response.
            self._keep = self._keep and not self._inbox
            known = int(length) if length is not None and length.isdigit() else None
            return ClientResponse(self, head.status_code, headers, known)
        if length is not None and "transfer-encoding" not in headers:
            self._left = int(length)  # h11 has checked that the field is one number
            self._rest = bytes(self._inbox)
            self._inbox.clear()
            if len(self._rest) > self._left:
                raise BrokenStream("more bytes than announced")
            return ClientResponse(self, head.status_code, headers, self._left)
        self._left = None
        if "transfer-encoding" in headers:
            self._framing = ChunkedFraming(_TRAILER_LIMITS, is_lenient=True)
        else:
            self._keep = False  # the end of the connection is the end of the body
        return ClientResponse(self, head.status_code, headers, None)

    async def receive_body_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive body bytes into view; see ClientResponse.receive_into."""
        if self._left is None and not self._rest:
            self._rest = await self._next_unframed(timeout)
        if self._rest:
            count = min(len(view), len(self._rest))
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
        elif self._left:
            count = await self.stream.receive_into(view[: self._left], timeout)
            if not count:
                raise BrokenStream(f"body ended {self._left} bytes early")
        else:
            return 0
        if self._left is not None:
            self._left -= count
        return count

    async def _next_unframed(self, timeout: float | None) -> bytes:
        """Return the next bytes of a body without Content-Length; b"" at its end."""
        framing = self._framing
        self._num_takes += 1
        if self._num_takes % TAKES_PER_TURN == 0:
            # Thousands of one-byte chunks may be in the inbox, and parsing them takes long.
            await asyncio.sleep(0)
        while not (data := self._take_unframed()):
            if framing is not None and framing.is_complete:
                break
            received = await self.stream.receive(timeout)
            if received:
                self._inbox += received
            elif framing is None:
                break
            else:
                raise BrokenStream("body ended early")
        if not data:
            self._left = 0
            self._keep = self._keep and not self._inbox
        return data

    def _take_unframed(self) -> bytes:
        """Remove and return body data from the inbox; b"" if more input is needed or at the end."""
        if self._framing is None:
            data = bytes(self._inbox)
            self._inbox.clear()
            return data
        try:
            return self._framing.take(self._inbox)
        except RequestError as exc:
            raise BrokenStream(f"not HTTP: {exc}") from None


async def read_head(
    connection: h11.Connection, stream: ByteStream, inbox: bytearray, timeout: float | None
) -> h11.Response:
    """Read interim responses, which are dropped, and the head of the final response.

    Args:
        inbox: an empty buffer; afterwards it holds the bytes received behind the head.
        timeout: seconds without a byte.

    Raises:
        BrokenStream, TimeoutError: see ClientConnection.request.
    """
    reader = ResponseHeadReader(MAX_HEAD_SIZE)
    while True:
        while (raw := reader.take(inbox)) is None:
            data = await stream.receive(timeout)
            if not data:
                raise BrokenStream("closed before an answer")
            inbox += data
        connection.receive_data(raw)
        event = _next_event(connection)
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise BrokenStream("closed before an answer")


def _next_event(connection: h11.Connection) -> object:
    """Return h11's next event.

    Raises:
        BrokenStream: the received bytes are not HTTP.
    """
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as exc:
        # h11 quotes the bytes that it cannot parse; they may hold a signed URL.
        reason = str(exc).partition("bytearray(")[0].rstrip(": ")
        raise BrokenStream(f"not HTTP: {reason}") from None
