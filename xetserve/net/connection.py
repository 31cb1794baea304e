"""One client connection: read a request, call the handler, send the response, again.

Every failure steers back to one of three ends: an error response while the head is not sent, a reset once it
is, or a quiet close. When the client leaves, the task that runs this is cancelled, wherever it waits.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import cast

import h11

from xetserve.errors import BrokenStream, RequestError
from xetserve.http.heads import RequestLimits
from xetserve.http.messages import Handler, Request, Response, error_response
from xetserve.http.protocol import NeedData, ServerProtocol, State
from xetserve.net.stream import ByteStream

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("xetserve.access")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Times in seconds.

    keep_alive_timeout: for the first byte of the next request.
    head_timeout: for a request's head, from its first byte on.
    body_timeout: between two pieces of a request's body.
    write_timeout: a client that takes no byte for so long is cut.
    linger_timeout: after a last response, for the client to read it and close.
    max_drain: bytes of an unread request body that are read to keep the connection.
    request: how large a request may be.
    """

    keep_alive_timeout: float = 75.0
    head_timeout: float = 20.0
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    linger_timeout: float = 2.0
    max_drain: int = 64 * 1024
    request: RequestLimits = field(default_factory=RequestLimits)


class _ConnectionBody:
    """The body of the request that is being served, read from its connection."""

    def __init__(self, connection: "ClientConnection") -> None:
        self._connection = connection

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.read_body()

    async def read(self, limit: int) -> bytes:
        parts = []
        size = 0
        async for part in self._connection.read_body():
            size += len(part)
            if size > limit:
                raise RequestError(413, f"the request body is larger than {limit} bytes")
            parts.append(part)
        return b"".join(parts)


class ClientConnection:
    """Serves one client until it leaves or has to be closed."""

    def __init__(self, stream: ByteStream, handler: Handler, limits: ConnectionLimits) -> None:
        self._stream = stream
        self._handler = handler
        self._limits = limits
        self._protocol = ServerProtocol(limits.request)
        self._draining = False
        self._idle_since: asyncio.Timeout | None = None

    def drain(self) -> None:
        """Finish the response that is under way, then close; close at once when there is none."""
        self._draining = True
        idle = self._idle_since
        if self._protocol.state is State.IDLE and idle is not None and not idle.expired():
            idle.reschedule(0)

    async def serve(self) -> None:
        """Run until the connection is closed."""
        try:
            while await self._serve_one():
                pass
            self._stream.on_lost = None  # from here on we are the one who leaves
            await self._stream.aclose(self._limits.linger_timeout)
        except (BrokenStream, TimeoutError) as exc:
            logger.debug("connection from %s ended: %s", self._stream.peer, exc or "timed out")
        finally:
            self._stream.abort()

    async def _serve_one(self) -> bool:
        """Serve one request; False: the connection is to be closed."""
        try:
            request = await self._read_request()
        except RequestError as exc:
            logger.info("refused a request from %s: %s", self._stream.peer, exc)
            await self._send_simple(error_response(exc.status, str(exc)))
            return False
        if request is None:
            return False
        started = time.monotonic()
        response = await self._call_handler(request)
        sent = 0
        try:
            sent = await self._send_response(request, response)
        finally:
            # A client that leaves now must not interrupt this: what the body holds would never be released.
            on_lost, self._stream.on_lost = self._stream.on_lost, None
            await _close_body(response)
            self._stream.on_lost = on_lost
            _log_access(request, response, sent, time.monotonic() - started, self._protocol)
        if self._protocol.state is State.CLOSED:
            return False
        return await self._finish_request_body() and self._protocol.start_next_cycle()

    async def _read_request(self) -> Request | None:
        """Give the next request; None: the client has finished, or said nothing for too long."""
        protocol = self._protocol
        deadline: float | None = None  # for the whole head, however slowly it trickles in
        while (request := protocol.next_request()) is NeedData.MORE:
            waiting_for_first = self._stream.is_quiet and not protocol.has_input
            if self._draining and waiting_for_first:
                return None
            now = asyncio.get_running_loop().time()
            if not waiting_for_first and deadline is None:
                deadline = now + self._limits.head_timeout
            try:
                async with asyncio.timeout_at(
                    deadline or now + self._limits.keep_alive_timeout
                ) as self._idle_since:
                    protocol.receive_data(await self._stream.receive())
            except TimeoutError:
                if waiting_for_first:
                    return None
                protocol.close_after_response()
                raise RequestError(408, "the request did not arrive in time") from None
            finally:
                self._idle_since = None
        if request is NeedData.END:
            return None
        request.request_id = secrets.token_hex(8)
        request.peer = self._stream.peer
        request.secure = self._stream.transport.get_extra_info("sslcontext") is not None
        request.body = _ConnectionBody(self)
        return request

    async def read_body(self) -> AsyncGenerator[bytes, None]:
        """Iterate over the pieces of the current request's body.

        Raises:
            RequestError: malformed framing, or the client stopped sending.
        """
        protocol = self._protocol
        while (piece := protocol.next_body_data()) is not NeedData.END:
            if isinstance(piece, bytes):
                yield piece
                continue
            if protocol.awaits_continue:
                await self._stream.send_all([protocol.send_continue()])
            try:
                protocol.receive_data(await self._stream.receive(self._limits.body_timeout))
            except TimeoutError:
                protocol.close_after_response()
                raise RequestError(408, "the request body did not arrive in time") from None

    async def _call_handler(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except RequestError as exc:
            return error_response(exc.status, str(exc), exc.headers)
        except BrokenStream:
            raise
        except Exception:
            logger.exception("request %s failed unexpectedly", request.request_id)
            return error_response(500, f"internal error, request {request.request_id}")

    async def _send_response(self, request: Request, response: Response) -> int:
        """Send head and body; gives the body bytes sent. On a failing body the state is CLOSED."""
        protocol, stream = self._protocol, self._stream
        if self._draining or (protocol.has_body and protocol.awaits_continue):
            # A body that was never asked for may or may not come: do not guess (RFC 9110, 10.1.1).
            protocol.close_after_response()
        response.headers.append(("X-Request-Id", request.request_id))
        head = protocol.send_head(response, request, _http_date())
        if request.method == "HEAD" or response.status in (204, 304):
            await stream.send_all([head, protocol.send_end()], self._limits.write_timeout)
            return 0
        if isinstance(response.body, bytes):
            await stream.send_all(
                [head, *protocol.send_block([response.body]), protocol.send_end()],
                self._limits.write_timeout,
            )
            return len(response.body)
        sent = 0
        pending = head  # leaves with the first block, in one segment where it fits
        try:
            async for block in response.body:
                size = sum(map(len, block))
                if not size:
                    continue
                framed = protocol.send_block(block)
                if pending:
                    framed.insert(0, pending)
                    pending = b""
                await stream.send_all(framed, self._limits.write_timeout)
                sent += size
            if response.length is not None and sent != response.length:
                raise h11.LocalProtocolError(f"body of {sent} bytes, announced {response.length}")
            await stream.send_all([pending, protocol.send_end()], self._limits.write_timeout)
        except (BrokenStream, asyncio.CancelledError):
            protocol.state = State.CLOSED
            # Now, not later: the socket must let go of the block before its buffers are used again.
            stream.on_lost = None
            stream.abort()
            raise
        except Exception as exc:  # noqa: BLE001 - whatever broke the body, the answer is the same
            # The head is out: only a reset tells the client that this is not the whole.
            level = logging.WARNING if not isinstance(exc, TimeoutError) else logging.INFO
            logger.log(
                level,
                "request %s: cut after %d body bytes: %s",
                request.request_id,
                sent,
                str(exc) or type(exc).__name__,
            )
            protocol.state = State.CLOSED
            stream.on_lost = None  # from here on we are the one who leaves
            stream.abort()
        return sent

    async def _send_simple(self, response: Response) -> None:
        """Answer a request that could not be read; the connection is closed afterwards."""
        protocol = self._protocol
        protocol.close_after_response()
        head = protocol.send_head(response, None, _http_date())
        body = cast(bytes, response.body)
        framed = [head, *protocol.send_block([body]), protocol.send_end()]
        await self._stream.send_all(framed, self._limits.write_timeout)

    async def _finish_request_body(self) -> bool:
        """Read what the handler left of the request's body; False: too much of it."""
        if self._protocol.state is not State.RESPONDING:
            return False
        left = self._limits.max_drain
        try:
            async with aclosing(self.read_body()) as body:
                async for piece in body:
                    left -= len(piece)
                    if left < 0:
                        return False
        except RequestError:
            return False
        return True


async def _close_body(response: Response) -> None:
    """Close a streamed body whatever has become of it, so that all it holds is released."""
    close = getattr(response.body, "aclose", None)
    if close is not None:
        await close()


def _log_access(
    request: Request, response: Response, sent: int, duration: float, protocol: ServerProtocol
) -> None:
    access_logger.info(
        '%s %s "%s %s" %d %d %.3f%s',
        request.request_id,
        request.peer or "-",
        request.method,
        request.raw_path,
        response.status,
        sent,
        duration,
        " cut" if protocol.state is State.CLOSED else "",
    )


_date_cache: tuple[int, str] = (0, "")


def _http_date() -> str:
    global _date_cache
    now = int(time.time())
    if _date_cache[0] != now:
        _date_cache = (now, formatdate(now, usegmt=True))
    return _date_cache[1]
