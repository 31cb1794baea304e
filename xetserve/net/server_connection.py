"""Client connections: read a request, call the handler, send the response, and repeat.

Every failure has one of three outcomes. Before the response's head is sent, the client gets an
error response. After the head, the connection is reset. Otherwise the connection is closed. If the
client disconnects, the listener cancels the task of the connection, wherever it waits.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, cast

import h11

from xetserve.base.buffers import Buffer
from xetserve.base.log_limit import LOG_LIMIT
from xetserve.base.request_id import REQUEST_ID
from xetserve.errors import BrokenStream, RequestError
from xetserve.http.head import RequestLimits
from xetserve.http.messages import Block, Body, Handler, Request, Response, error_response
from xetserve.http.protocol import NeedData, ServerProtocol, State
from xetserve.http.proxy_headers import Forwarding
from xetserve.metrics.catalogue import CLIENT_TIMEOUTS, SENT_BYTES
from xetserve.net.body_budget import BodyBudget, BodyLease
from xetserve.net.connection_count import client_key
from xetserve.net.dates import http_date
from xetserve.net.half_closed import HalfClosedWatch
from xetserve.net.loop_turns import Turns
from xetserve.net.min_rate import BodyDeadline, RateFloor
from xetserve.net.tls_stream import Stream, TlsStream

logger = logging.getLogger(__name__)

# Request ids that a proxy in front of us may set. All characters are safe in a log.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:+/=@-]{1,128}", re.ASCII)

_LIVE_HALF_CLOSED_TIMEOUT: Final = 1.0  # seconds; half_closed_timeout of live bodies

# Called after each response, complete or not, with the request; its record has the outcome.
OnAnswer = Callable[[Request], None]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of client connections. Times are in seconds, rates in bytes a second.

    keep_alive_timeout: time until the first byte of the next request; 0: no limit.
    handshake_timeout: time for the PROXY header and the TLS handshake before the first request.
    head_timeout: time for a request's head, from its first byte on; 0: no limit.
    body_timeout: time until the next data of a request's body; 0: no limit.
    min_body_rate: rate of a request's body; a slower body uses up body_timeout; 0: no limit.
    write_timeout: time without a byte read, after which a client is cut.
    min_write_rate: rate below which a client is cut; 0: no limit.
    write_window: averaging time of min_write_rate; only time spent waiting for the client counts.
    half_closed_timeout: time without a byte for a client that has closed its sending side, after
        which it counts as gone.
    linger_timeout: time for the client to read a last response and close.
    drain_grace: time for the first request of a new connection while the server drains.
    max_drain: bytes of an unread request body that the server reads to keep the connection.
    max_requests: requests on one connection; 0: no limit.
    max_connections: connections in total; 0: no limit.
    max_connections_per_client: connections of one client key; 0: no limit.
    request: size limits of a request.
    """

    keep_alive_timeout: float = 100.0
    handshake_timeout: float = 10.0
    head_timeout: float = 20.0
    body_timeout: float = 30.0
    min_body_rate: float = 500.0
    write_timeout: float = 60.0
    min_write_rate: float = 0.0
    write_window: float = 60.0
    half_closed_timeout: float = 8.0
    linger_timeout: float = 2.0
    drain_grace: float = 1.0
    max_drain: int = 64 * 1024
    max_requests: int = 0
    max_connections: int = 0
    max_connections_per_client: int = 0
    request: RequestLimits = field(default_factory=RequestLimits)


class _ConnectionBody:
    """The body of the current request, read from its connection on demand."""

    def __init__(self, connection: "ServerConnection", lease: BodyLease) -> None:
        self._connection = connection
        self._lease = lease

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.read_body()

    async def read(self, limit: int) -> bytes:
        limit = min(limit, self._lease.limit)
        length = self._connection.body_length
        if length is not None and length > limit:
            raise _too_large(limit)
        body = bytearray()
        async with (
            self._lease.hold(limit if length is None else length),
            aclosing(self._connection.read_body()) as pieces,
        ):
            async for piece in pieces:
                if len(body) + len(piece) > limit:
                    raise _too_large(limit)
                body += piece
                self._lease.received = len(body)
        return bytes(body)

    def release(self) -> None:
        self._lease.release()


class ServerConnection:
    """A connection that serves one client until the client leaves or the server closes it.

    Args:
        peer: the client's address from a PROXY header; None: the peer of the stream.
        forwarding: finds the client behind a proxy; None: ignore forwarding fields.
        bodies: the budget for the request bodies of all clients.
        turns: the scheduler of the event loop, used for reading heads.
    """

    def __init__(
        self,
        stream: Stream,
        handler: Handler,
        limits: ConnectionLimits,
        on_answer: OnAnswer | None = None,
        *,
        peer: str | None = None,
        forwarding: Forwarding | None = None,
        bodies: BodyBudget | None = None,
        turns: Turns | None = None,
    ) -> None:
        self._stream = stream
        self._peer = stream.peer if peer is None else peer
        # Heads have their own queue: before a head is parsed, the request may be for /health.
        self._line = f"{client_key((self._peer,)) if self._peer else ''}, heads"
        self._turns = turns or Turns()
        self._forwarding = forwarding
        self._handler = handler
        self._limits = limits
        self._on_answer = on_answer
        self._loop = asyncio.get_running_loop()
        self._protocol = ServerProtocol(limits.request)
        self._floor: RateFloor | None = None
        if limits.min_write_rate:
            self._floor = RateFloor(limits.min_write_rate, limits.write_window)
        self._num_requests = 0
        self._lease = BodyLease(bodies or BodyBudget())  # for the current request's body
        self._stall_deadline: BodyDeadline  # for the current request's body
        self._draining = False
        self._idle: asyncio.Timeout | None = None  # set while no byte of a request has arrived
        self._live: asyncio.Timeout | None = None  # set while a live body has no next block

    def drain(self) -> None:
        """Finish the current request, then close; close at once if there is none. End a live body.

        A client that has not sent a request yet gets drain_grace for its first one, because the
        server has accepted its connection.
        """
        self._draining = True
        if self._idle is not None and not self._idle.expired():
            self._idle.reschedule(self._loop.time() + self._drain_grace)
        if self._live is not None and not self._live.expired():
            self._live.reschedule(self._loop.time())

    async def serve(self) -> None:
        """Serve requests until the connection is closed."""
        try:
            while await self._serve_one():
                pass
            self._stream.on_lost = None  # this side closes now: do not cancel this task
            await self._stream.aclose(self._limits.linger_timeout)
        except (BrokenStream, TimeoutError) as exc:
            logger.debug("connection from %s ended: %s", self._peer, str(exc) or "timed out")
        finally:
            self._stream.abort()

    async def _serve_one(self) -> bool:
        """Serve one request; return False if the connection must be closed."""
        REQUEST_ID.set("")
        try:
            request = await self._read_request()
        except RequestError as exc:
            logger.info("refused a request from %s: %s", self._peer, exc)
            await self._refuse(exc)
            return False
        if request is None:
            return False
        try:
            await self._answer(request)
        finally:
            self._lease.release()
        if self._protocol.state is State.CLOSED:
            return False
        if not (await self._finish_request_body() and self._protocol.start_next_cycle()):
            return False
        if self._protocol.has_input:
            # A pipelining client may have thousands of requests in the buffer: yield to the others.
            await asyncio.sleep(0)
            await self._turns.take(self._line, begins=True)
        return True

    async def _answer(self, request: Request) -> None:
        """Call the handler and send its response as far as possible."""
        started = self._loop.time()
        logger.debug("%s %s begins", request.method, request.raw_path)
        response = await self._call_handler(request)
        if isinstance(response.body, bytes):
            self._lease.release()  # now, so that a slow reader does not hold body budget
        record = request.record
        record.status = response.status
        record.head_time = self._loop.time() - started
        try:
            await self._send_response(request, response, started)
        finally:
            # A client that leaves must not cancel this: the body would never release its resources.
            on_lost, self._stream.on_lost = self._stream.on_lost, None
            await response.aclose()
            self._stream.on_lost = on_lost
            record.total_time = self._loop.time() - started
            if self._on_answer is not None:
                self._on_answer(request)

    async def _read_request(self) -> Request | None:
        """Return the next request; None: the client has closed its side or was idle too long."""
        protocol = self._protocol
        deadline: float | None = None  # for the whole head, in any number of pieces
        has_arrived = False  # bytes came at the moment when the client had been idle too long
        while (request := protocol.next_request()) is NeedData.MORE:
            is_idle = self._stream.is_quiet and not protocol.has_input and not has_arrived
            if is_idle:
                timeout = self._first_byte_timeout()
                until = None if timeout is None else self._loop.time() + timeout
            else:
                if deadline is None and self._limits.head_timeout:
                    deadline = self._loop.time() + self._limits.head_timeout
                until = deadline
            try:
                async with asyncio.timeout_at(until) as waiting:
                    self._idle = waiting if is_idle else None
                    protocol.receive_data(await self._stream.receive())
            except TimeoutError:
                if is_idle:
                    if not self._stream.has_unread:
                        return None
                    has_arrived = True
                    continue
                CLIENT_TIMEOUTS.add("head")
                protocol.close_after_response()
                raise RequestError(408, "the request did not arrive in time") from None
            finally:
                self._idle = None
            await self._turns.take(self._line, begins=True)
        if request is NeedData.END:
            return None
        self._num_requests += 1
        self._stall_deadline = BodyDeadline(self._limits.body_timeout, self._limits.min_body_rate)
        request.request_id = _find_request_id(request)
        REQUEST_ID.set(request.request_id)
        request.peer = self._peer
        request.secure = isinstance(self._stream, TlsStream)
        if self._forwarding is not None:
            self._forwarding.apply(request)
        request.client = client_key((request.peer,)) if request.peer else ""
        self._lease.client = request.client
        request.body = _ConnectionBody(self, self._lease)
        return request

    def _first_byte_timeout(self) -> float | None:
        """Return the seconds until the first byte of a request must arrive; None: no limit."""
        return self._drain_grace if self._draining else self._limits.keep_alive_timeout or None

    @property
    def _drain_grace(self) -> float:
        return 0.0 if self._num_requests else self._limits.drain_grace

    @property
    def body_length(self) -> int | None:
        """Return the unread bytes of the current request's body; None: unknown."""
        return self._protocol.body_length

    async def read_body(self) -> AsyncGenerator[bytes, None]:
        """Yield the pieces of the current request's body.

        Raises:
            RequestError: the framing is malformed, or the client sends too slowly.
        """
        protocol = self._protocol
        while protocol.has_body:
            await self._turns.take(self._line, begins=False)
            piece = protocol.next_body_data()
            if piece is NeedData.END:
                return
            if isinstance(piece, bytes):
                self._stall_deadline.note(len(piece))
                yield piece
                # The next piece of a fast client is here already: yield to other tasks.
                await asyncio.sleep(0)
                continue
            if protocol.awaits_continue:
                await self._stream.send_all([protocol.send_continue()])
            started = self._loop.time()
            try:
                protocol.receive_data(await self._stream.receive(self._stall_deadline.left))
            except TimeoutError:
                CLIENT_TIMEOUTS.add("body")
                protocol.close_after_response()
                raise RequestError(408, "the request body did not arrive in time") from None
            finally:
                self._stall_deadline.wait(self._loop.time() - started)

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

    async def _send_response(self, request: Request, response: Response, started: float) -> None:
        """Send head and body; record the progress in the request. If a body fails, the state is
        CLOSED afterwards.
        """
        protocol, record = self._protocol, request.record
        is_last = self._draining or self._num_requests == self._limits.max_requests
        if is_last or (protocol.has_body and protocol.awaits_continue):
            # Without a 100 response, the client may or may not send its body (RFC 9110, 10.1.1).
            protocol.close_after_response()
        response.headers.append(("X-Request-Id", request.request_id))
        head = protocol.send_head(response, request, http_date())
        if request.method == "HEAD" or response.status in (204, 304):
            await self._send([head, protocol.send_end()])
        elif isinstance(response.body, bytes):
            await self._send([head, *protocol.send_block([response.body]), protocol.send_end()])
            record.sent = len(response.body)
            SENT_BYTES.add(record.route, amount=record.sent)
            record.first_byte_time = self._loop.time() - started
        else:
            await self._send_stream(request, response, response.body, head, started)
            return
        record.is_complete = True

    async def _send_stream(
        self,
        request: Request,
        response: Response,
        body: Body,
        head: bytes,
        started: float,
    ) -> None:
        """Send a body block by block, the head with the first one."""
        protocol, stream, record = self._protocol, self._stream, request.record
        observer = response.observer
        pending = head  # sent together with the first block, in one segment if possible
        patience = self._limits.half_closed_timeout
        if response.is_live:  # a client that expects more events keeps its side open
            patience = min(patience, _LIVE_HALF_CLOSED_TIMEOUT)
        watch = HalfClosedWatch(stream, patience)
        try:
            if response.is_live:
                await self._send([pending])
                pending = b""
            while True:
                if observer is not None:
                    await observer.before_block()
                try:
                    block = await (self._next_live(body) if response.is_live else anext(body))
                except StopAsyncIteration:
                    break
                size = sum(map(len, block))
                if observer is not None:
                    observer.on_block(size)
                if not size:
                    continue
                framed = protocol.send_block(block)
                if pending:
                    framed.insert(0, pending)
                    pending = b""
                watch.begin_send()
                await self._send(framed)
                watch.end_send()
                if not record.sent:
                    record.first_byte_time = self._loop.time() - started
                record.sent += size
                SENT_BYTES.add(record.route, amount=size)
            if response.length is not None and record.sent != response.length:
                raise h11.LocalProtocolError(
                    f"body of {record.sent} bytes, announced {response.length}"
                )
            await self._send([pending, protocol.send_end()])
            record.is_complete = True
        except (BrokenStream, asyncio.CancelledError):
            protocol.state = State.CLOSED
            # Abort at once: the transport must drop the block before its buffers are reused.
            stream.on_lost = None
            stream.abort()
            raise
        except Exception as exc:  # noqa: BLE001 - any error of the body resets the connection
            # The head is sent: only a reset shows the client that the body is incomplete.
            level = logging.WARNING if not isinstance(exc, TimeoutError) else logging.INFO
            reason = str(exc) or type(exc).__name__
            text = "request %s: cut after %d body bytes: %s"
            LOG_LIMIT.log(logger, level, reason, text, request.request_id, record.sent, reason)
            protocol.state = State.CLOSED
            stream.on_lost = None  # this side closes now: do not cancel this task
            stream.abort()
        finally:
            watch.cancel()

    async def _next_live(self, body: Body) -> Block:
        """Return the next block of a live body.

        Raises:
            StopAsyncIteration: the body has ended, or the server drains.
        """
        if self._draining:
            raise StopAsyncIteration
        waiting = self._live = asyncio.timeout(None)
        try:
            async with waiting:
                return await anext(body)
        except TimeoutError:
            if waiting.expired():
                raise StopAsyncIteration from None
            raise
        finally:
            self._live = None

    async def _send(self, buffers: list[Buffer]) -> None:
        try:
            await self._stream.send_all(buffers, self._limits.write_timeout, self._floor)
        except TimeoutError:
            CLIENT_TIMEOUTS.add("write")
            raise

    async def _refuse(self, error: RequestError) -> None:
        """Send an error response to a malformed request; the caller must then close."""
        protocol = self._protocol
        protocol.close_after_response()
        request = Request("-", "-", request_id=secrets.token_hex(8), peer=self._peer)
        request.record.status = error.status
        response = error_response(error.status, str(error), error.headers)
        response.headers.append(("X-Request-Id", request.request_id))
        head = protocol.send_head(response, None, http_date())
        body = cast(bytes, response.body)
        try:
            await self._send([head, *protocol.send_block([body]), protocol.send_end()])
            request.record.is_complete = True
        finally:
            if self._on_answer is not None:
                self._on_answer(request)

    async def _finish_request_body(self) -> bool:
        """Read and drop the rest of the request's body; return False if it is too large."""
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


def _too_large(limit: int) -> RequestError:
    return RequestError(413, f"the request body is larger than {limit} bytes")


def _find_request_id(request: Request) -> str:
    """Return the valid X-Request-Id of the request, or a new id."""
    values = request.headers.get_all("x-request-id")
    if len(values) == 1 and _REQUEST_ID.fullmatch(values[0]):
        return values[0]
    return secrets.token_hex(8)
