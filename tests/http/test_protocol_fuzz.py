"""Bytes that nobody would send, cut anywhere: the same events, one kind of exception, no second
meaning.
"""

import itertools
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field

import h11
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xetserve.errors import RequestError
from xetserve.http.head import RequestLimits
from xetserve.http.messages import Block, Request, Response, error_response
from xetserve.http.protocol import NeedData, ServerProtocol, State

DATE = "Sat, 21 Nov 2026 07:00:00 GMT"
LIMITS = RequestLimits(max_url_size=60, max_head_size=300, max_fields=6, max_trailer_size=50)
CHUNKS = b"5\r\nhello\r\n3;a=b\r\nyou\r\n0\r\n"

VALID = [
    b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\r\nHEAD /a?b=c HTTP/1.1\r\nHost: h:80\r\n\r\n",
    b"GET http://x.example:80/a HTTP/1.1\r\nHost: h\r\nX-A: \tb \r\n\r\n",
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    + CHUNKS
    + b"X-Sum: 1\r\n\r\n",
]
PIECES = [
    b"\r", b"\n", b"\r\n", b" ", b"\t", b"\0", b":", b";", b",", b"#", b"%", b"/", b"*", b"0", b"f",
    b"\x80", b"\xa0", b"\x0b", b'"', b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.3", b"http://",
    b"GET ", b"HEAD ", b"CONNECT ", b"Host: h\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b" chunked", b"chunked, ", b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"X-A: b\r\n", b"5\r\nhello\r\n",
    b"0\r\n\r\n", b"\r\n\r\n", b"a" * 70,
]  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A few valid requests, a few places of which were changed."""
    data = b"".join(draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 6))
        new = draw(st.sampled_from(PIECES) | st.binary(max_size=4))
        data = data[:at] + new + data[at + gone :]
    return data


cuts = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@dataclass
class Seen:
    """What became of a stream: method, target and body of each request, and how it ended."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    last_body: bytes = b""  # of a request whose body could not be read to its end
    refusal: tuple[int, str] | None = None


def serve(data: bytes, pieces: list[int]) -> Seen:
    """Answer every request of a stream that arrives in pieces, as the owner of a connection
    does.
    """
    protocol = ServerProtocol(LIMITS)
    feed = cut(data, pieces)
    seen = Seen()
    while True:
        request: Request | None = None
        body = b""
        try:
            while (got := protocol.next_request()) is NeedData.MORE:
                assert protocol.state is State.IDLE
                protocol.receive_data(next(feed))
            if not isinstance(got, Request):
                assert protocol.state is State.CLOSED
                return seen
            assert protocol.state is State.RESPONDING
            request = got
            while (piece := protocol.next_body_data()) is not NeedData.END:
                if isinstance(piece, bytes):
                    assert piece
                    body += piece
                    continue
                if protocol.awaits_continue:
                    protocol.send_continue()
                protocol.receive_data(next(feed))
        except RequestError as exc:
            assert protocol.state is State.CLOSING
            seen.last_body = body
            seen.refusal = (exc.status, str(exc))
            check_refusal(protocol, request, exc)
            return seen
        seen.requests.append((request.method, request.target, body))
        respond(protocol, request, Response(200, body=b"hi"))
        if not protocol.start_next_cycle():
            return seen


def check_refusal(protocol: ServerProtocol, request: Request | None, error: RequestError) -> None:
    answer = respond(protocol, request, error_response(error.status, str(error)))
    assert answer.startswith(b"HTTP/1.1 %d " % error.status)
    assert b"\r\nConnection: close\r\n" in answer
    assert not protocol.start_next_cycle()


def cut(data: bytes, pieces: list[int]) -> Iterator[bytes]:
    """Give data by pieces of such sizes, then nothing for ever."""
    at = 0
    for size in itertools.cycle(pieces):
        yield data[at : at + size]
        at += size


def respond(protocol: ServerProtocol, request: Request | None, response: Response) -> bytes:
    assert isinstance(response.body, bytes)
    parts = [protocol.send_head(response, request, DATE)]
    parts += [bytes(buffer) for buffer in protocol.send_block([response.body])]
    return b"".join((*parts, protocol.send_end()))


@settings(deadline=None)
@given(streams(), cuts)
@example(b"HEAD /a HTTP/1.1\r\nHost : h\r\n\r\n", [7])
@example(b"GET /" + b"a" * 200 + b" HTTP/1.1\r\n\r\n", [50])
@example(VALID[9].replace(b"X-Sum: 1", b"X-Sum: " + b"1" * 60), [13])
def test_it_does_not_matter_how_a_stream_is_cut(data: bytes, pieces: list[int]) -> None:
    whole = serve(data, [len(data) or 1])
    assert serve(data, pieces) == whole
    assert serve(data, [1]) == whole
    assert whole.refusal is None or 400 <= whole.refusal[0] <= 505


@settings(deadline=None)
@given(streams())
def test_what_is_served_has_one_meaning(data: bytes) -> None:
    """A lenient reader, h11 by itself, sees the same requests, and the same bodies, up to a
    refusal.
    """
    requests = serve(data, [len(data) or 1]).requests
    assert read_leniently(data, len(requests)) == [
        (method, target.partition("#")[0], body) for method, target, body in requests
    ]


def read_leniently(data: bytes, count: int) -> list[tuple[str, str, bytes]]:
    found = []
    for _ in range(count):
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data.lstrip(b"\r\n"))
        head = connection.next_event()
        assert isinstance(head, h11.Request)
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        target = re.sub(r"(?i)^https?://[^/?]*", "", head.target.decode())
        if not target.startswith(("/", "*")):
            target = "*" if head.method == b"OPTIONS" and not target else "/" + target
        found.append((head.method.decode(), target, body))
        data = connection.trailing_data[0]
    return found


async def _no_blocks() -> AsyncGenerator[Block, None]:
    return
    yield []


class Connection(RuleBasedStateMachine):
    """An owner that does, in any order, what an owner may do; a client in front of it reads what is
    sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self.protocol = ServerProtocol(LIMITS)
        self.request: Request | None = None
        self.streaming = False
        self.is_ended = False
        self.failed = False

    @precondition(lambda self: not self.is_ended)
    @rule(data=st.sampled_from(VALID) | streams() | st.binary(min_size=1, max_size=9))
    def receive(self, data: bytes) -> None:
        self.protocol.receive_data(data)

    @precondition(lambda self: not self.is_ended)
    @rule()
    def receive_end(self) -> None:
        self.protocol.receive_data(b"")
        self.is_ended = True

    @precondition(lambda self: self.protocol.state is State.IDLE)
    @rule()
    def ask_for_a_request(self) -> None:
        try:
            got = self.protocol.next_request()
        except RequestError as exc:
            self.fail(exc)
            return
        if isinstance(got, Request):
            self.request = got
            assert self.protocol.state is State.RESPONDING
        elif got is NeedData.END:
            assert self.protocol.state is State.CLOSED
            assert self.is_ended
        else:
            assert self.protocol.state is State.IDLE
            assert not self.is_ended

    @precondition(lambda self: self.request is not None)
    @rule()
    def ask_for_body(self) -> None:
        try:
            piece = self.protocol.next_body_data()
        except RequestError as exc:
            self.fail(exc)
            return
        if piece is NeedData.MORE:
            assert not self.is_ended
            if self.protocol.awaits_continue and not self.protocol.head_sent:
                assert self.protocol.send_continue() == b"HTTP/1.1 100 Continue\r\n\r\n"
        elif piece is NeedData.END:
            assert not self.protocol.has_body or self.failed

    def fail(self, exc: RequestError) -> None:
        assert self.protocol.state is State.CLOSING
        assert 400 <= exc.status <= 505
        assert not self.failed
        self.failed = True
        if not self.protocol.head_sent:
            check_refusal(self.protocol, self.request, exc)
            self.request = None

    @precondition(lambda self: self.request is not None and not self.protocol.head_sent)
    @rule(body=st.binary(max_size=9), status=st.sampled_from([200, 204, 206, 304, 404]))
    def respond_with_bytes(self, body: bytes, status: int) -> None:
        self.check(respond(self.protocol, self.request, Response(status, body=body)), body)

    @precondition(lambda self: self.request is not None and not self.protocol.head_sent)
    @rule(trailers=st.booleans())
    def start_a_stream(self, trailers: bool) -> None:
        values = {"X-Sum": lambda: "1"} if trailers else {}
        response = Response(200, body=_no_blocks(), trailers=values)
        assert self.protocol.send_head(response, self.request, DATE).startswith(
            b"HTTP/1.1 200 OK\r\n"
        )
        self.streaming = True

    @precondition(lambda self: self.streaming)
    @rule(data=st.binary(max_size=9))
    def send_a_block(self, data: bytes) -> None:
        framed = b"".join(map(bytes, self.protocol.send_block([data])))
        assert self.request is not None
        assert data in framed or self.request.method == "HEAD"

    @precondition(lambda self: self.streaming)
    @rule()
    def end_the_stream(self) -> None:
        self.protocol.send_end()
        self.streaming = False

    @precondition(lambda self: self.protocol.state in (State.IDLE, State.RESPONDING))
    @rule()
    def drain(self) -> None:
        if self.request is not None:
            self.protocol.close_after_response()

    @precondition(lambda self: self.request is not None and self.protocol.head_sent)
    @precondition(lambda self: not self.streaming)
    @rule()
    def go_on(self) -> None:
        has_body = self.protocol.has_body
        if self.protocol.start_next_cycle():
            assert not has_body
            assert self.protocol.state is State.IDLE
            self.request = None
        else:
            assert has_body or self.protocol.state is State.CLOSING

    def check(self, answer: bytes, body: bytes) -> None:
        """Have a client read an answer to the request."""
        is_head = answer.endswith(b"\r\n\r\n") and body != b""
        client = h11.Connection(h11.CLIENT)
        client.send(
            h11.Request(method="HEAD" if is_head else "GET", target="/", headers=[("Host", "h")])
        )
        client.send(h11.EndOfMessage())
        client.receive_data(answer)
        client.receive_data(b"")
        head = client.next_event()
        assert isinstance(head, h11.Response)
        found = b""
        while isinstance(event := client.next_event(), h11.Data):
            found += event.data
        assert isinstance(event, h11.EndOfMessage)
        assert found in (body, b"")

    @rule()
    def look(self) -> None:
        assert self.protocol.state.name in repr(self.protocol)

    @invariant()
    def a_failure_ends_it(self) -> None:
        if self.failed:
            assert self.protocol.state in (State.CLOSING, State.CLOSED)
            assert not self.protocol.start_next_cycle()


Connection.TestCase.settings = settings(deadline=None, stateful_step_count=30)
test_an_owner_may_do_things_in_any_order = Connection.TestCase
