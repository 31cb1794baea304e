"""One server connection's HTTP/1.1 state machine: events in, bytes out.

Requests are held to the letter before h11 sees them: their heads by heads and requests, the framing
of their bodies, and what is in them, by framing. h11 frames responses and knows what becomes of the
connection. Around it stands this table; whoever owns the socket acts on it:

    state       event                         next         the owner
    IDLE        request                       RESPONDING   calls the handler
    IDLE        malformed request             CLOSING      sends an error response
    IDLE        end of input                  CLOSED       closes
    RESPONDING  response complete             IDLE, or CLOSING when the connection cannot be kept
    RESPONDING  error before the head         RESPONDING   sends an error response instead
    RESPONDING  error after the head          CLOSED       resets: a short body must look short
    CLOSING     response complete             CLOSING      half-closes, lets the peer read, closes

Body bytes pass through uncopied: a block is handed to h11 as one Data event that only tells its
length, and comes back with the chunk's framing around it.
"""

from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Any, cast

import h11

from xetserve.base.buffers import Buffer
from xetserve.errors import RequestError
from xetserve.http.framing import Framing
from xetserve.http.head import HeadReader, RequestLimits
from xetserve.http.messages import Block, Request, Response
from xetserve.http.request import find_framing, read_request


class State(Enum):
    """What the connection is doing."""

    IDLE = auto()
    RESPONDING = auto()
    CLOSING = auto()
    CLOSED = auto()


class NeedData(Enum):
    """More bytes are needed, or there will be none."""

    MORE = auto()
    END = auto()


class _Batch:
    """A block as h11 sees it: something with a length."""

    __slots__ = ("block", "size")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.size = sum(map(len, block))

    def __len__(self) -> int:
        return self.size


class ServerProtocol:
    """The server's side of one connection. Feed it bytes, ask it what they mean, have it frame
    answers.
    """

    def __init__(self, limits: RequestLimits | None = None) -> None:
        self._limits = limits or RequestLimits()
        self._inbox = bytearray()  # what has arrived and is not looked at yet
        self._is_ended = False  # no more will arrive
        self._head = HeadReader(self._limits)
        self._framing: Framing | None = None  # of the body that is being read
        self._connection = h11.Connection(
            h11.SERVER,
            max_incomplete_event_size=self._limits.max_head_size + self._limits.max_trailer_size,
        )
        self.state = State.IDLE
        self.head_sent = False
        self._is_head = False  # the request's method, known even if the request is refused
        self._takes_body = True  # whether the response that is being sent has a body
        self._trailers: dict[str, Callable[[], str]] = {}  # what follows its body

    def __repr__(self) -> str:
        return f"<ServerProtocol {self.state.name}>"

    def receive_data(self, data: bytes) -> None:
        """Take bytes from the socket; b"" says that there will be no more."""
        if data:
            self._inbox += data
        else:
            self._is_ended = True

    def next_request(self) -> Request | NeedData:
        """Return the next request's head, without a body.

        Raises:
            RequestError: malformed; the state is CLOSING and an error response may be sent.
        """
        if self.state is not State.IDLE:
            self.state = State.CLOSED
            return NeedData.END
        try:
            head = self._head.take(self._inbox)
            if head is None:
                if not self._is_ended:
                    return NeedData.MORE
                if not self._inbox:
                    self.state = State.CLOSED
                    return NeedData.END
                raise RequestError(400, "the client closed its side inside a request's head")
            request = read_request(head)
            self._framing = find_framing(request, self._limits)
            self._connection.receive_data(head.raw)
            self._next_event()
            self._next_event()  # the end of the request, if it has no body
        except RequestError:
            self.state = State.CLOSING
            raise
        finally:
            self._is_head = self._head.method == "HEAD"
        self.state = State.RESPONDING
        return request

    def next_body_data(self) -> bytes | NeedData:
        """Return the next piece of the request's body; NeedData.END after the last.

        Raises:
            RequestError: malformed framing; the connection cannot be kept.
        """
        if self._framing is None or not self.has_body:
            return NeedData.END
        try:
            data = self._framing.take(self._inbox)
            if not data and not self._framing.is_complete:
                if not self._is_ended:
                    return NeedData.MORE
                raise RequestError(400, "the client closed its side inside a request's body")
            if framed := self._framing.frame(data):
                self._connection.receive_data(framed)
            event = self._next_event()
        except RequestError:
            self._framing = None
            self.state = State.CLOSING
            raise
        return bytes(event.data) if isinstance(event, h11.Data) else NeedData.END

    @property
    def body_length(self) -> int | None:
        """Bytes of the request's body that were not read; None: that is not known."""
        if self._framing is None or not self.has_body:
            return 0
        return self._framing.length

    @property
    def has_input(self) -> bool:
        """Whether a part of the next request has been received."""
        return bool(self._inbox)

    @property
    def awaits_continue(self) -> bool:
        """Whether the client holds its body back until it is told to go on."""
        return self._connection.they_are_waiting_for_100_continue

    @property
    def has_body(self) -> bool:
        """Whether a part of the request's body has not been read."""
        return self._connection.their_state is h11.SEND_BODY

    def send_continue(self) -> bytes:
        """Tell the client to send its body."""
        return self._send(
            h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        )

    def send_head(self, response: Response, request: Request | None, date: str) -> bytes:
        """Frame the response's head. request is None when none could be read."""
        headers = [("Date", date), ("Server", "xetserve"), *response.headers]
        length = response.content_length
        chunked = response.length is not None and response.chunked
        self._takes_body = not self._is_head
        is_old = request is not None and request.http_version == "1.0"
        if response.status in (204, 304):
            self._takes_body = False  # nor may a field frame one (RFC 9112, 6.1)
        elif length is not None and (self._is_head or is_old or not chunked):
            headers.append(("Content-Length", str(length)))
        elif not is_old:
            headers.append(("Transfer-Encoding", "chunked"))
            if self._takes_body and response.trailers:
                self._trailers = response.trailers
                headers.append(("Trailer", ", ".join(response.trailers)))
        if self.state is State.CLOSING:
            headers.append(("Connection", "close"))
        self.head_sent = True
        return self._send(
            h11.Response(
                status_code=response.status,
                headers=_encode(headers),
                reason=response.reason.encode("ascii"),
            )
        )

    def send_block(self, block: Block) -> list[Buffer]:
        """Frame a block; its buffers are in the result as they are.

        Gives nothing where the response may not have a body: to HEAD, 204 and 304.
        """
        if not self._takes_body:
            return []
        batch = _Batch(block)
        framed = self._connection.send_with_data_passthrough(h11.Data(data=cast(Any, batch)))
        out: list[Buffer] = []
        for part in framed or ():
            if isinstance(part, _Batch):
                out.extend(part.block)
            else:
                out.append(part)
        return out

    def send_end(self) -> bytes:
        """Frame the end of the response, with its trailers.

        Raises:
            h11.LocalProtocolError: fewer bytes were sent than announced, or a trailer is not fit to
                be sent; reset the connection.
        """
        if not self._takes_body and self._connection.their_state in (h11.IDLE, h11.ERROR):
            return b""  # h11 has not seen the HEAD that was refused, and would miss a body
        trailers = [(name, value()) for name, value in self._trailers.items()]
        data = self._send(h11.EndOfMessage(headers=_encode(trailers)))
        if self.state is State.CLOSING or self._connection.our_state is h11.MUST_CLOSE:
            self.state = State.CLOSING
        return data

    def start_next_cycle(self) -> bool:
        """Get ready for the next request; False: the connection has to be closed."""
        if self.state is not State.RESPONDING or self._connection.our_state is not h11.DONE:
            return False
        if self._connection.their_state is not h11.DONE:
            return False
        self._connection.start_next_cycle()
        self._head = HeadReader(self._limits)
        self._framing = None
        self.state = State.IDLE
        self.head_sent = False
        self._is_head = False
        self._trailers = {}
        return True

    def close_after_response(self) -> None:
        """Announce, in a head that is not sent yet, that this is the last response."""
        self.state = State.CLOSING

    def _send(self, event: h11.Event) -> bytes:
        return self._connection.send(event) or b""

    def _next_event(self) -> Any:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as exc:
            # h11 quotes the line that it does not understand, which may hold a token.
            reason = str(exc).partition("bytearray(")[0].rstrip(": ")
            raise RequestError(exc.error_status_hint, f"malformed request: {reason}") from None


def _encode(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
