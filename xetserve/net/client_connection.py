"""One upstream connection: send a request, read the head through h11, the body around it.

A body with a Content-Length is counted here and received straight into the caller's buffers; h11
would copy it three times. A chunked one is decoded by framing. Heads are checked before h11 sees
them, see response_heads.
"""

import asyncio
from collections.abc import Callable, Iterable
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
TAKES_PER_TURN: Final = 8  # times that data is taken out of chunks in one turn of the event loop
_TRAILER_LIMITS: Final = RequestLimits(max_fields=MAX_RESPONSE_FIELDS)


class ClientResponse:
    """The answer to a request; its body is read from the connection as it is asked for.

    content_length: body bytes, where they are known beforehand.
    meter: told how many body bytes have come, each time some have.
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
        """Receive body bytes into view; gives their number, 0 at the end of the body.

        Raises:
            BrokenStream: reset, or the body ended before its announced end.
            TimeoutError: nothing came for timeout seconds.
        """
        count = await self._connection.receive_body_into(view, timeout)
        if self.meter is not None:
            self.meter(count)
        return count

    async def read(self, limit: int, timeout: float | None) -> bytes:
        """Read the whole body.

        Raises:
            UpstreamTooLarge: it has more than limit bytes.
            BrokenStream, TimeoutError: as receive_into.
        """
        buffer = memoryview(bytearray(min(limit + 1, 64 * 1024)))
        parts: list[bytes] = []
        size = 0
        while count := await self.receive_into(buffer, timeout):
            size += count
            if size > limit:
                raise UpstreamTooLarge(f"an upstream answer has more than {limit} bytes")
            parts.append(bytes(buffer[:count]))
        return b"".join(parts)


class ClientConnection:
    """A connection that serves one request after the other.

    Args:
        is_proxied: over a plain HTTP proxy, which wants the absolute form of the target.
        proxy_authorization: the Proxy-Authorization that it wants with every request.
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
        self._inbox = bytearray()  # what has arrived and is not looked at yet
        self._framing: ChunkedFraming | None = None  # of a chunked body
        self._left: int | None = 0  # body bytes to come; None: its end shows when it comes
        self._rest = b""  # body bytes that came with the head, or out of its chunks
        self._num_takes = 0
        self._keep = False
        self.num_requests = 0
        self.idle_since = 0.0

    @property
    def is_reusable(self) -> bool:
        """Whether the last answer was read to its end and another request may follow."""
        return self._keep and self._left == 0 and not self._rest and self.stream.is_quiet

    async def request(
        self,
        method: str,
        url: Url,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        timeout: float | None,
    ) -> ClientResponse:
        """Send a request and read the answer's head.

        Args:
            timeout: seconds without a byte.

        Raises:
            BrokenStream: the connection ended, or what came is not HTTP.
            TimeoutError: nothing came for timeout seconds.
        """
        self.num_requests += 1
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_SIZE)
        target = url.target
        if self._is_proxied:
            target = f"{url.origin.scheme}://{url.origin.authority}{target}"
        fields = [("Host", url.origin.authority), *headers]
        if self._proxy_authorization is not None:
            fields.append(("Proxy-Authorization", self._proxy_authorization))
        if body or method in ("POST", "PUT"):
            fields.append(("Content-Length", str(len(body))))
        self._keep = False
        self._inbox = bytearray()
        self._framing = None
        parts = [
            connection.send(
                h11.Request(
                    method=method.encode("ascii"),
                    target=target.encode("ascii"),
                    headers=[(k.encode("ascii"), v.encode("latin-1")) for k, v in fields],
                )
            ),
            connection.send(h11.Data(data=body)) if body else b"",
            connection.send(h11.EndOfMessage()),
        ]
        await self.stream.send_all([part for part in parts if part], timeout)
        head = await read_head(connection, self.stream, self._inbox, timeout)
        return self._start_body(method, head)

    def _start_body(self, method: str, head: h11.Response) -> ClientResponse:
        headers = Headers.from_raw(head.headers)
        tokens = ",".join(headers.get_all("connection")).lower()
        self._keep = head.http_version >= b"1.1" and "close" not in tokens
        length = headers.get("content-length")
        if method == "HEAD" or head.status_code in (204, 304):
            self._left = 0
            self._keep = self._keep and not self._inbox  # a body after all would be the next answer
            known = int(length) if length is not None and length.isdigit() else None
            return ClientResponse(self, head.status_code, headers, known)
        if length is not None and "transfer-encoding" not in headers:
            self._left = int(length)  # h11 has checked that it is one number
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
        """Return the next body bytes of an answer whose length is not known; b"" at the end of the
        body.
        """
        framing = self._framing
        self._num_takes += 1
        if self._num_takes % TAKES_PER_TURN == 0:
            await asyncio.sleep(0)  # chunks may be as small as a byte, and 20,000 of them be here
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
        """Take data out of the inbox; b"": more is needed, or the body has ended."""
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
    """Read the head of the answer to a request, and what goes before it.

    Args:
        inbox: empty; gets what has come behind the head.
        timeout: seconds without a byte.

    Raises:
        BrokenStream, TimeoutError: as ClientConnection.request.
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
    """Give h11's next event.

    Raises:
        BrokenStream: what came is not HTTP.
    """
    try:
        return connection.next_event()
    except h11.RemoteProtocolError as exc:
        # h11 quotes what it does not understand.
        reason = str(exc).partition("bytearray(")[0].rstrip(": ")
        raise BrokenStream(f"not HTTP: {reason}") from None
