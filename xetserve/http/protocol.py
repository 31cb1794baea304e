"""The HTTP/1.1 state machine of one server connection: events in, bytes out.

head.py, request.py and framing.py parse requests strictly before h11 sees them. h11 frames
responses and tracks whether the connection can be kept. This module adds the states below, and the
owner of the socket acts on them:

    state       event                         next         the owner
    IDLE        request                       RESPONDING   calls the handler
    IDLE        malformed request             CLOSING      sends an error response
    IDLE        end of input                  CLOSED       closes
    RESPONDING  response complete             IDLE, or CLOSING when the connection cannot be kept
    RESPONDING  error before the head         RESPONDING   sends an error response instead
    RESPONDING  error after the head          CLOSED       resets: a short body must look short
    CLOSING     response complete             CLOSING      half-closes, lets the peer read, closes

Body bytes are not copied: h11 receives a block as one Data event that has only a length, and
returns it with the framing of a chunk around it.
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
    """The state of the connection."""

    IDLE = auto()
    RESPONDING = auto()
    CLOSING = auto()
    CLOSED = auto()


class NeedData(Enum):
    """No event: MORE if more input is needed, END if there will be none."""

    MORE = auto()
    END = auto()


class _Batch:
    """A block in a form for h11, which needs only its length."""

    __slots__ = ("block", "size")

    def __init__(self, block: Block) -> None:
        self.block = block
        self.size = sum(map(len, block))

    def __len__(self) -> int:
        return self.size


class ServerProtocol:
    """The server side of one connection: parses received bytes and frames responses."""

    def __init__(self, limits: RequestLimits | None = None) -> None:
        self._limits = limits or RequestLimits()
        self._inbox = bytearray()  # received bytes that are not parsed yet
        self._is_ended = False  # the client has closed its sending side
        self._head = HeadReader(self._limits)
        self._framing: Framing | None = None  # of the current request's body
        self._connection = h11.Connection(
            h11.SERVER,
            max_incomplete_event_size=self._limits.max_head_size + self._limits.max_trailer_size,
        )
        self.state = State.IDLE
        self.head_sent = False
        self._is_head = False  # the method is HEAD; known even for a malformed request
        self._takes_body = True  # whether the current response has a body
        self._trailers: dict[str, Callable[[], str]] = {}  # of the current response

    def __repr__(self) -> str:
        return f"<ServerProtocol {self.state.name}>"

    def receive_data(self, data: bytes) -> None:
        """Add bytes from the socket to the buffer; b"" marks the end of input."""
        if data:
            self._inbox += data
        else:
            self._is_ended = True

    def next_request(self) -> Request | NeedData:
        """Return the next request, without its body; NeedData if there is none.

        Raises:
            RequestError: the request is malformed. The state is CLOSING, and the owner may send an
                error response.
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
        """Return the next piece of the request's body; NeedData.END after the last one.

        Raises:
            RequestError: the framing is malformed. The state is CLOSING.
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
        """Return the unread bytes of the request's body; None: unknown."""
        if self._framing is None or not self.has_body:
            return 0
        return self._framing.length

    @property
    def has_input(self) -> bool:
        """Return whether the buffer holds bytes of the next request."""
        return bool(self._inbox)

    @property
    def awaits_continue(self) -> bool:
        """Return whether the client waits for a 100 response before it sends its body."""
        return self._connection.they_are_waiting_for_100_continue

    @property
    def has_body(self) -> bool:
        """Return whether a part of the request's body is unread."""
        return self._connection.their_state is h11.SEND_BODY

    def send_continue(self) -> bytes:
        """Return a 100 response, which makes the client send its body."""
        return self._send(
            h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
        )

    def send_head(self, response: Response, request: Request | None, date: str) -> bytes:
        """Return the head of a response; request None: the request was malformed."""
        headers = [("Date", date), ("Server", "xetserve"), *response.headers]
        length = response.content_length
        chunked = response.length is not None and response.chunked
        self._takes_body = not self._is_head
        is_old = request is not None and request.http_version == "1.0"
        if response.status in (204, 304):
            self._takes_body = False  # no framing field is allowed either (RFC 9112, 6.1)
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
        """Return a block with its framing; the result holds the same buffer objects.

        The result is empty if the response has no body: for HEAD, 204 and 304.
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
        """Return the end of the response, with its trailers.

        Raises:
            h11.LocalProtocolError: fewer bytes were sent than announced, or a trailer is invalid.
                Reset the connection.
        """
        if not self._takes_body and self._connection.their_state in (h11.IDLE, h11.ERROR):
            return b""  # h11 has not seen the refused HEAD request, and would expect a body
        trailers = [(name, value()) for name, value in self._trailers.items()]
        data = self._send(h11.EndOfMessage(headers=_encode(trailers)))
        if self.state is State.CLOSING or self._connection.our_state is h11.MUST_CLOSE:
            self.state = State.CLOSING
        return data

    def start_next_cycle(self) -> bool:
        """Prepare for the next request; return False if the connection must be closed."""
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
        """Announce in the head of the response, which is not sent yet, that it is the last."""
        self.state = State.CLOSING

    def _send(self, event: h11.Event) -> bytes:
        return self._connection.send(event) or b""

    def _next_event(self) -> Any:
        try:
            return self._connection.next_event()
        except h11.RemoteProtocolError as exc:
            # h11 quotes the malformed line, which may hold a token.
            reason = str(exc).partition("bytearray(")[0].rstrip(": ")
            raise RequestError(exc.error_status_hint, f"malformed request: {reason}") from None


def _encode(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
