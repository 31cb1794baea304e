import itertools
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xetserve.base.buffers import Buffer
from xetserve.errors import RequestError
from xetserve.http.head import RequestLimits
from xetserve.http.messages import Block, Request, Response, error_response
from xetserve.http.protocol import NeedData, ServerProtocol, State

Make = Callable[[], ServerProtocol]
Act = Callable[[ServerProtocol], None]

LIMITS = RequestLimits()
MAX_HEAD_SIZE = LIMITS.max_head_size
DATE = "Sat, 21 Nov 2026 07:00:00 GMT"
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD = b"HEAD /a HTTP/1.1\r\nHost: h\r\n\r\n"
OLD_GET = b"GET /a HTTP/1.0\r\n\r\n"
OLD_HEAD = b"HEAD /a HTTP/1.0\r\n\r\n"
CLOSE = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
CHUNKED_POST = b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
PATIENT_POST = POST[:-2] + b"Expect: 100-continue\r\n\r\n"


async def blocks() -> AsyncGenerator[Block, None]:
    yield [b"hello"]


def protocol_with(data: bytes) -> ServerProtocol:
    protocol = ServerProtocol()
    protocol.receive_data(data)
    return protocol


def read_request(protocol: ServerProtocol) -> Request:
    request = protocol.next_request()
    assert isinstance(request, Request)
    return request


def read_body(protocol: ServerProtocol) -> bytes:
    """All of the request's body that has been received."""
    pieces = []
    while isinstance(piece := protocol.next_body_data(), bytes):
        pieces.append(piece)
    return b"".join(pieces)


def respond(
    protocol: ServerProtocol,
    request: Request | None,
    response: Response,
    body: Iterable[Block] = (),
) -> bytes:
    """A whole response as it leaves."""
    parts = [protocol.send_head(response, request, DATE)]
    for block in [[response.body]] if isinstance(response.body, bytes) else body:
        parts += [bytes(buffer) for buffer in protocol.send_block(block)]
    return b"".join((*parts, protocol.send_end()))


def split_response(data: bytes) -> tuple[bytes, set[bytes], bytes]:
    """Status line, the fields that matter here, and what follows the head."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fixed = {f"Date: {DATE}".encode(), b"Server: xetserve"}
    assert fixed <= set(lines)
    assert len(set(lines)) == len(lines)
    return status, set(lines) - fixed, body


@dataclass
class Answer:
    """What a client made of a response."""

    status: int = 0
    body: bytes = b""
    fields: dict[bytes, bytes] = field(default_factory=dict)


def receive_answer(client: h11.Connection, data: bytes, *, closed: bool = False) -> Answer:
    """Have an HTTP client read a response to its end."""
    client.receive_data(data)
    if closed:
        client.receive_data(b"")
    answer = Answer()
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        if isinstance(event, h11.Response):
            answer.status = event.status_code
            answer.fields = dict(event.headers)
        elif isinstance(event, h11.Data):
            answer.body += event.data
    return answer


# The table: (state, event) -> state


def idle() -> ServerProtocol:
    return ServerProtocol()


def idle_again() -> ServerProtocol:
    protocol = responding()
    request_done(protocol)
    assert protocol.start_next_cycle()
    return protocol


def responding() -> ServerProtocol:
    protocol = protocol_with(GET)
    read_request(protocol)
    return protocol


def head_sent() -> ServerProtocol:
    protocol = responding()
    protocol.send_head(Response(200, body=blocks(), length=5), Request("GET", "/a"), DATE)
    return protocol


def closing() -> ServerProtocol:
    protocol = protocol_with(b"nonsense\r\n\r\n")
    with pytest.raises(RequestError):
        protocol.next_request()
    return protocol


def told_to_close() -> ServerProtocol:
    protocol = responding()
    protocol.close_after_response()
    return protocol


def closed() -> ServerProtocol:
    protocol = protocol_with(b"")
    assert protocol.next_request() is NeedData.END
    return protocol


def request_arrives(protocol: ServerProtocol) -> None:
    protocol.receive_data(GET)
    assert isinstance(protocol.next_request(), Request)


def half_a_request_arrives(protocol: ServerProtocol) -> None:
    protocol.receive_data(GET[:-1])
    assert protocol.next_request() is NeedData.MORE


def nonsense_arrives(protocol: ServerProtocol) -> None:
    protocol.receive_data(b"nonsense\r\n\r\n")
    with pytest.raises(RequestError):
        protocol.next_request()


def input_ends(protocol: ServerProtocol) -> None:
    protocol.receive_data(b"")
    assert protocol.next_request() is NeedData.END
    assert protocol.next_request() is NeedData.END


def input_ends_in_a_head(protocol: ServerProtocol) -> None:
    protocol.receive_data(GET[:-1])
    protocol.receive_data(b"")
    with pytest.raises(RequestError, match="closed its side"):
        protocol.next_request()


def respond_and_read_on(protocol: ServerProtocol, request: Request | None) -> None:
    respond(protocol, request, Response(200, body=b"hello"))
    assert protocol.next_body_data() is NeedData.END


def request_done(protocol: ServerProtocol) -> None:
    respond_and_read_on(protocol, Request("GET", "/a"))


def response_completes(protocol: ServerProtocol) -> None:
    request_done(protocol)
    assert protocol.start_next_cycle()


def last_response_completes(protocol: ServerProtocol) -> None:
    request_done(protocol)
    assert not protocol.start_next_cycle()


def response_of_no_request_completes(protocol: ServerProtocol) -> None:
    respond_and_read_on(protocol, None)
    assert not protocol.start_next_cycle()


def error_before_the_head(protocol: ServerProtocol) -> None:
    data = respond(protocol, Request("GET", "/a"), error_response(502, "no"))
    assert data.startswith(b"HTTP/1.1 502 ")


def rest_of_the_response(protocol: ServerProtocol) -> None:
    assert b"".join(map(bytes, protocol.send_block([b"hello"]))) == b"hello"
    assert protocol.send_end() == b""
    assert protocol.next_body_data() is NeedData.END
    assert protocol.start_next_cycle()


def short_end(protocol: ServerProtocol) -> None:
    protocol.send_block([b"hell"])
    with pytest.raises(h11.LocalProtocolError, match="Too little data"):
        protocol.send_end()
    assert not protocol.start_next_cycle()


def owner_resets(protocol: ServerProtocol) -> None:
    protocol.state = State.CLOSED
    assert not protocol.start_next_cycle()


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [
        pytest.param(idle, lambda protocol: None, State.IDLE, id="IDLE, nothing"),
        pytest.param(idle, request_arrives, State.RESPONDING, id="IDLE, request"),
        pytest.param(idle, half_a_request_arrives, State.IDLE, id="IDLE, half a request"),
        pytest.param(idle, nonsense_arrives, State.CLOSING, id="IDLE, malformed request"),
        pytest.param(idle, input_ends, State.CLOSED, id="IDLE, end of input"),
        pytest.param(idle, input_ends_in_a_head, State.CLOSING, id="IDLE, end inside a head"),
        pytest.param(idle_again, request_arrives, State.RESPONDING, id="IDLE again, request"),
        pytest.param(idle_again, half_a_request_arrives, State.IDLE, id="IDLE again, half of one"),
        pytest.param(idle_again, nonsense_arrives, State.CLOSING, id="IDLE again, malformed"),
        pytest.param(idle_again, input_ends, State.CLOSED, id="IDLE again, end of input"),
        pytest.param(responding, response_completes, State.IDLE, id="RESPONDING, complete"),
        pytest.param(
            responding, error_before_the_head, State.RESPONDING, id="RESPONDING, error before head"
        ),
        pytest.param(head_sent, rest_of_the_response, State.IDLE, id="head sent, complete"),
        pytest.param(head_sent, short_end, State.RESPONDING, id="head sent, too short a body"),
        pytest.param(head_sent, owner_resets, State.CLOSED, id="head sent, error"),
        pytest.param(told_to_close, last_response_completes, State.CLOSING, id="last response"),
        pytest.param(
            closing, response_of_no_request_completes, State.CLOSING, id="CLOSING, complete"
        ),
        pytest.param(closed, input_ends, State.CLOSED, id="CLOSED stays CLOSED"),
    ],
)
def test_the_table(state: Make, event: Act, expected: State) -> None:
    protocol = state()
    event(protocol)
    assert protocol.state is expected
    assert repr(protocol) == f"<ServerProtocol {expected.name}>"


# Requests


@pytest.mark.parametrize(
    ("data", "method", "target", "version"),
    [
        pytest.param(GET, "GET", "/a", "1.1", id="GET"),
        pytest.param(HEAD, "HEAD", "/a", "1.1", id="HEAD"),
        pytest.param(OLD_GET, "GET", "/a", "1.0", id="HTTP/1.0 needs no Host"),
        pytest.param(
            b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS", "*", "1.1", id="asterisk"
        ),
        pytest.param(
            b"GET //a%2F?x=%20&y HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET",
            "//a%2F?x=%20&y",
            "1.1",
            id="the target stays encoded",
        ),
        pytest.param(b"get / HTTP/1.1\r\nHost: h\r\n\r\n", "get", "/", "1.1", id="lower case"),
        pytest.param(b"\r\n\r\n" + GET, "GET", "/a", "1.1", id="empty lines before it"),
        pytest.param(
            b"GET http://x:1/a?b HTTP/1.1\r\nHost: h\r\n\r\n", "GET", "/a?b", "1.1", id="absolute"
        ),
        pytest.param(b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", "GET", "/", "1.1", id="HTTP/1.2"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
            "GET",
            "/",
            "1.1",
            id="an upgrade is not taken up",
        ),
    ],
)
def test_a_request_is_read(data: bytes, method: str, target: str, version: str) -> None:
    protocol = protocol_with(data)
    request = read_request(protocol)
    assert (request.method, request.target, request.http_version) == (method, target, version)
    assert read_body(protocol) == b""
    assert not protocol.has_input


def test_fields_come_in_order_and_in_latin_1() -> None:
    protocol = protocol_with(
        b"GET / HTTP/1.1\r\nHost: h\r\nX-A: \t 1 \r\nX-B:\r\nx-a: caf\xe9 \t au lait\r\n\r\n"
    )
    headers = read_request(protocol).headers
    assert list(headers) == [
        ("host", "h"),
        ("x-a", "1"),
        ("x-b", ""),
        ("x-a", "caf\u00e9 \t au lait"),
    ]


@pytest.mark.parametrize(
    "host",
    [
        pytest.param("h", id="name"),
        pytest.param("hub.example:8080", id="port"),
        pytest.param("hub.example:", id="empty port"),
        pytest.param("127.0.0.1:80", id="IPv4"),
        pytest.param("[::1]:80", id="IPv6"),
        pytest.param("[fe80::1%25eth0]", id="IPv6 with a zone"),
        pytest.param("my_service", id="underscore"),
        pytest.param("a%20b", id="escape"),
        pytest.param("", id="empty"),
    ],
)
def test_a_host_may_be(host: str) -> None:
    protocol = protocol_with(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert read_request(protocol).headers.get("host") == host


def lines(*fields: str) -> bytes:
    return "\r\n".join(("GET / HTTP/1.1", *fields, "", "")).encode("latin-1")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(b"nonsense\r\n\r\n", 400, id="one word"),
        pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="blank in the target"),
        pytest.param(b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="two blanks"),
        pytest.param(b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="target not ASCII"),
        pytest.param(b"GET /\x01 HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="control character"),
        pytest.param(b"G\x00T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="NUL in the method"),
        pytest.param(b"GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="no host in the target"),
        pytest.param(b"GET / HTTP/1.1\nHost: h\n\n", 400, id="bare line feeds"),
        pytest.param(lines("Host: h", "X: a", " b"), 400, id="folded line"),
        pytest.param(lines("Host: h", "X: a\x01b"), 400, id="control character in a value"),
        pytest.param(b"\r\n" * 9 + GET, 400, id="too many empty lines"),
        pytest.param(lines("Host: h", "Expect: 200-maybe"), 417, id="another expectation"),
        pytest.param(b"GET a HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="relative target"),
        pytest.param(b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400, id="asterisk for GET"),
        pytest.param(b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 501, id="CONNECT"),
        pytest.param(b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", 501, id="CONNECT to a path"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, id="HTTP/2 preface"),
        pytest.param(b"GET / HTTP/9.9\r\nHost: h\r\n\r\n", 505, id="HTTP/9.9"),
        pytest.param(b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505, id="HTTP/0.9 by name"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, id="TLS"),
        pytest.param(lines(), 400, id="no Host"),
        pytest.param(lines("Host: h", "Host: h"), 400, id="two Hosts"),
        pytest.param(lines("Host: a b"), 400, id="Host with a blank"),
        pytest.param(lines("Host: h/x"), 400, id="Host with a path"),
        pytest.param(lines("Host: user@h"), 400, id="Host with a user"),
        pytest.param(lines("Host: h:80:80"), 400, id="Host with two ports"),
        pytest.param(lines("Host: h:x"), 400, id="Host with a port of letters"),
        pytest.param(lines("Host: [::1"), 400, id="Host with an open bracket"),
        pytest.param(lines("Host: h?x"), 400, id="Host with a query"),
        pytest.param(lines("Host: <h>"), 400, id="Host with HTML"),
        pytest.param(lines('Host: h"'), 400, id="Host with a quote"),
        pytest.param(lines("Host: caf\xe9"), 400, id="Host not ASCII"),
        pytest.param(lines("Host: h", "nothing"), 400, id="no colon"),
        pytest.param(lines("Host: h", ": x"), 400, id="no name"),
        pytest.param(lines("Host : h"), 400, id="blank before the colon"),
        pytest.param(lines(" Host: h"), 400, id="folded first line"),
        pytest.param(lines("Host: h", "X\xe9: 1"), 400, id="name not ASCII"),
        pytest.param(lines("Host: h", "X: a\0b"), 400, id="NUL in a value"),
        pytest.param(lines("Host: h", "X: a\rb"), 400, id="carriage return in a value"),
        pytest.param(lines("Host: h", "Content-Length: 5, 6"), 400, id="two lengths"),
        pytest.param(
            lines("Host: h", "Content-Length: 5", "Content-Length: 6"), 400, id="two length fields"
        ),
        pytest.param(lines("Host: h", "Content-Length: -5"), 400, id="negative length"),
        pytest.param(lines("Host: h", "Content-Length: +5"), 400, id="length with a sign"),
        pytest.param(lines("Host: h", "Content-Length: 0x5"), 400, id="length in hex"),
        pytest.param(lines("Host: h", "Content-Length: \xb2"), 400, id="length in superscript"),
        pytest.param(lines("Host: h", "Content-Length:"), 400, id="empty length"),
        pytest.param(lines("Host: h", "Content-Length: " + "9" * 21), 400,
                     id="length of 21 digits"),
        pytest.param(
            lines("Host: h", "Content-Length: 5", "Transfer-Encoding: chunked"),
            400,
            id="both framings",
        ),
        pytest.param(
            lines("Host: h", "transfer-encoding: chunked", "content-length: 5"),
            400,
            id="both framings, the other way round",
        ),
        pytest.param(lines("Host: h", "Transfer-Encoding: gzip, chunked"), 501, id="gzip"),
        pytest.param(lines("Host: h", "Transfer-Encoding: identity"), 400, id="identity"),
        pytest.param(lines("Host: h", "Transfer-Encoding: xchunked"), 400, id="almost chunked"),
        pytest.param(
            lines("Host: h", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
            400,
            id="chunked twice",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * MAX_HEAD_SIZE, 431, id="endless field"
        ),
        pytest.param(b"GET /" + b"a" * MAX_HEAD_SIZE, 414, id="endless target"),
        pytest.param(b"G" * MAX_HEAD_SIZE, 501, id="endless method"),
        pytest.param(lines("Host: h", *["X: a"] * LIMITS.max_fields), 431, id="too many fields"),
        pytest.param(
            lines("Host: h", "Content-Length: 5", "Content-Length: 5"), 400, id="length twice"
        ),
        pytest.param(lines("Host: h", "Content-Length: 5, 5"), 400, id="length twice in a field"),
        pytest.param(lines("Host: h", "Content-Length: 5 5"), 400, id="length with a blank"),
    ],
)  # fmt: skip
def test_a_request_is_refused(data: bytes, status: int) -> None:
    protocol = protocol_with(data)
    with pytest.raises(RequestError) as caught:
        protocol.next_request()
    assert caught.value.status == status
    assert protocol.state is State.CLOSING

    answer = respond(protocol, None, error_response(status, str(caught.value)))
    line, fields, body = split_response(answer)
    assert line.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close" in fields
    assert b"Content-Length: %d" % len(body) in fields
    assert body.startswith(b'{"error": ')
    assert not protocol.start_next_cycle()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HEAD http:/// HTTP/1.1\r\nHost: h\r\n\r\n", id="target"),
        pytest.param(b"HEAD / HTTP/2.0\r\nHost: h\r\n\r\n", id="version"),
        pytest.param(b"HEAD / HTTP/1.1\r\nHost: a b\r\n\r\n", id="host"),
        pytest.param(b"HEAD / HTTP/1.1\r\nHost : h\r\n\r\n", id="malformed field"),
        pytest.param(b"HEAD / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD_SIZE, id="too large"),
        pytest.param(
            HEAD[:-2] + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", id="framing"
        ),
    ],
)
def test_a_refused_head_gets_no_body(data: bytes) -> None:
    # A body would be taken for the next response.
    protocol = protocol_with(data)
    with pytest.raises(RequestError) as caught:
        protocol.next_request()
    response = error_response(caught.value.status, str(caught.value))
    _, fields, body = split_response(respond(protocol, None, response))
    assert body == b""
    assert b"Content-Length: %d" % len(response.body) in fields  # type: ignore[arg-type]


def test_a_malformed_request_after_a_head_gets_a_body() -> None:
    protocol = protocol_with(HEAD)
    respond(protocol, read_request(protocol), Response(200))
    assert protocol.next_body_data() is NeedData.END
    assert protocol.start_next_cycle()
    nonsense_arrives(protocol)
    *_, body = split_response(respond(protocol, None, error_response(400, "no")))
    assert body == b'{"error": "no"}\n'


SECRET = "hf_c0ffee"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lines(f"Authorization : Bearer {SECRET}"), id="blank before the colon"),
        pytest.param(lines(f"Authorization: Bearer {SECRET}\0"), id="NUL"),
        pytest.param(lines(f"Authorization Bearer {SECRET}"), id="no colon"),
        pytest.param(lines(f" Authorization: Bearer {SECRET}"), id="folded"),
        pytest.param(f"GET /a?token={SECRET}\r\n\r\n".encode(), id="no version"),
        pytest.param(f"GET /a?token={SECRET} x HTTP/1.1\r\n\r\n".encode(), id="blank"),
        pytest.param(f"GET {SECRET} HTTP/1.1\r\nHost: h\r\n\r\n".encode(), id="relative target"),
        pytest.param(lines(f"Host: {SECRET}@h"), id="user in the Host"),
        pytest.param(lines("Host: h", f"Content-Length: {SECRET}"), id="length"),
        pytest.param(lines("Host: h", f"Transfer-Encoding: {SECRET}"), id="framing"),
        pytest.param(f"GET / HTTP/{SECRET}\r\n\r\n".encode(), id="version"),
    ],
)
def test_a_refusal_does_not_quote_the_request(data: bytes) -> None:
    # Its message goes into the answer and into the log; a token must not.
    protocol = protocol_with(data)
    with pytest.raises(RequestError) as caught:
        protocol.next_request()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "bytearray" not in str(caught.value)


def test_a_bad_chunk_is_not_quoted_either() -> None:
    protocol = protocol_with(CHUNKED_POST + SECRET.encode() + b"\r\n")
    read_request(protocol)
    with pytest.raises(RequestError) as caught:
        protocol.next_body_data()
    assert SECRET not in str(caught.value)


# Bodies of requests


@pytest.mark.parametrize(
    ("data", "body"),
    [
        pytest.param(GET, b"", id="none"),
        pytest.param(POST + b"hello", b"hello", id="length"),
        pytest.param(GET[:-2] + b"Content-Length: 2\r\n\r\nhi", b"hi", id="a GET may have one"),
        pytest.param(GET[:-2] + b"Content-Length: 0\r\n\r\n", b"", id="length 0"),
        pytest.param(POST.replace(b" 5", b" 005") + b"hello", b"hello", id="zeros before it"),
        pytest.param(CHUNKED_POST + b"0\r\n\r\n", b"", id="chunked, empty"),
        pytest.param(CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one chunk"),
        pytest.param(
            CHUNKED_POST + b"2\r\nhe\r\n03;x=y\r\nllo\r\n00\r\n\r\n", b"hello", id="two chunks"
        ),
        pytest.param(
            CHUNKED_POST + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", b"hello", id="with trailers"
        ),
        pytest.param(
            CHUNKED_POST.replace(b"chunked", b"Chunked") + b"A\r\n0123456789\r\n0\r\n\r\n",
            b"0123456789",
            id="upper case",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [1, 3, 1000], ids=["bytewise", "in threes", "at once"])
def test_a_body_is_read_and_the_next_request_after_it(data: bytes, body: bytes, piece: int) -> None:
    protocol = ServerProtocol()
    stream = [data[at : at + piece] for at in range(0, len(data), piece)]
    feed = iter(stream)
    while (request := protocol.next_request()) is NeedData.MORE:
        protocol.receive_data(next(feed))
    assert isinstance(request, Request)
    assert protocol.has_body is (not data.endswith((b"\r\nHost: h\r\n\r\n", b": 0\r\n\r\n")))
    found = b""
    while (part := protocol.next_body_data()) is not NeedData.END:
        if isinstance(part, bytes):
            found += part
        else:
            protocol.receive_data(next(feed))
    assert found == body
    assert list(feed) == []
    assert not protocol.has_body
    assert protocol.next_body_data() is NeedData.END

    respond(protocol, request, Response(200))
    assert protocol.start_next_cycle()
    request_arrives(protocol)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(CHUNKED_POST + b"x\r\n", id="size not hex"),
        pytest.param(CHUNKED_POST + b"-1\r\n", id="negative size"),
        pytest.param(CHUNKED_POST + b"+1\r\n", id="size with a sign"),
        pytest.param(CHUNKED_POST + b"0x1\r\n", id="size with a prefix"),
        pytest.param(CHUNKED_POST + b"\r\n", id="no size"),
        pytest.param(CHUNKED_POST + b"f" * 21 + b"\r\n", id="size of 21 digits"),
        pytest.param(CHUNKED_POST + b"5\r\nhello!\r\n0\r\n\r\n", id="longer than said"),
        pytest.param(CHUNKED_POST + b"5\r\nhelloXX0\r\n\r\n", id="no line end after a chunk"),
        pytest.param(CHUNKED_POST + b"0\r\nbad trailer\r\n\r\n", id="trailer without a colon"),
        pytest.param(CHUNKED_POST + b"5;" + b"x" * (MAX_HEAD_SIZE + 1), id="endless extension"),
        pytest.param(CHUNKED_POST + b"0\r\nX: " + b"x" * (MAX_HEAD_SIZE + 1), id="endless trailer"),
    ],
)
def test_bad_framing_ends_the_connection(data: bytes) -> None:
    protocol = protocol_with(data)
    request = read_request(protocol)
    with pytest.raises(RequestError) as caught:
        read_body(protocol)
    assert 400 <= caught.value.status < 500
    assert protocol.state is State.CLOSING
    assert protocol.next_body_data() is NeedData.END
    answer = respond(protocol, request, error_response(caught.value.status, "no"))
    assert b"\r\nConnection: close\r\n" in answer
    assert not protocol.start_next_cycle()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(POST, id="none of five bytes"),
        pytest.param(POST + b"hell", id="four of five bytes"),
        pytest.param(CHUNKED_POST + b"5\r\nhel", id="inside a chunk"),
        pytest.param(CHUNKED_POST + b"5\r\nhello\r\n", id="before the last chunk"),
        pytest.param(CHUNKED_POST + b"5\r\nhello\r\n0\r\n", id="before the last line end"),
        pytest.param(CHUNKED_POST + b"5", id="inside a size"),
    ],
)
def test_a_body_that_ends_early_is_refused(data: bytes) -> None:
    protocol = protocol_with(data)
    read_request(protocol)
    protocol.receive_data(b"")
    with pytest.raises(RequestError) as caught:
        read_body(protocol)
    assert caught.value.status == 400
    assert protocol.state is State.CLOSING


def test_a_client_may_end_its_side_after_its_request() -> None:
    protocol = protocol_with(POST + b"hello")
    protocol.receive_data(b"")
    request = read_request(protocol)
    assert read_body(protocol) == b"hello"
    assert split_response(respond(protocol, request, Response(200, body=b"hi")))[2] == b"hi"
    assert protocol.start_next_cycle()
    assert protocol.next_request() is NeedData.END
    assert protocol.state is State.CLOSED


def test_an_unread_body_does_not_become_the_next_request() -> None:
    protocol = protocol_with(POST + b"GET /")
    respond(protocol, read_request(protocol), Response(200))
    assert protocol.has_body
    assert not protocol.start_next_cycle()
    assert read_body(protocol) == b"GET /"
    assert protocol.start_next_cycle()
    assert protocol.next_request() is NeedData.MORE


# 100-continue


def test_a_patient_client_is_told_to_go_on() -> None:
    protocol = protocol_with(PATIENT_POST)
    request = read_request(protocol)
    assert protocol.awaits_continue
    assert protocol.next_body_data() is NeedData.MORE
    assert protocol.send_continue() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not protocol.awaits_continue
    protocol.receive_data(b"hello")
    assert read_body(protocol) == b"hello"
    assert respond(protocol, request, Response(200)).startswith(b"HTTP/1.1 200 OK\r\n")
    assert protocol.start_next_cycle()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(POST, id="no Expect"),
        pytest.param(POST[:-2] + b"Expect:\r\n\r\n", id="empty Expect"),
        pytest.param(GET[:-2] + b"Expect: 100-continue\r\n\r\n", id="no body to wait with"),
        pytest.param(PATIENT_POST.replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0 cannot mean it"),
    ],
)
def test_others_do_not_wait(data: bytes) -> None:
    protocol = protocol_with(data)
    read_request(protocol)
    assert not protocol.awaits_continue


def test_an_impatient_client_is_not_told() -> None:
    protocol = protocol_with(PATIENT_POST + b"he")
    read_request(protocol)
    assert protocol.next_body_data() == b"he"
    assert not protocol.awaits_continue


def test_a_response_ends_the_wait() -> None:
    protocol = protocol_with(PATIENT_POST)
    request = read_request(protocol)
    protocol.close_after_response()
    answer = respond(protocol, request, error_response(413, "too much"))
    assert b"\r\nConnection: close\r\n" in answer
    assert not protocol.awaits_continue
    assert not protocol.start_next_cycle()


# Pipelines


def test_pipelined_requests_wait_for_their_turn() -> None:
    targets = ["/a", "/b?c", "/d"]
    data = GET + POST.replace(b"/a", b"/b?c") + b"hello" + GET.replace(b"/a", b"/d") + b"GE"
    protocol = protocol_with(data)
    for target in targets:
        request = read_request(protocol)
        assert request.target == target
        assert protocol.has_input
        assert read_body(protocol) == (b"hello" if request.method == "POST" else b"")
        respond(protocol, request, Response(200, body=b"hi"))
        assert protocol.start_next_cycle()
    assert protocol.next_request() is NeedData.MORE
    assert protocol.has_input
    assert protocol.state is State.IDLE


def test_what_follows_a_last_request_is_not_read() -> None:
    protocol = protocol_with(CLOSE + GET)
    respond_and_read_on(protocol, read_request(protocol))
    assert not protocol.start_next_cycle()
    assert protocol.state is State.CLOSING


def test_nonsense_after_a_request_is_found_in_its_turn() -> None:
    protocol = protocol_with(GET + b"nonsense\r\n\r\n")
    respond_and_read_on(protocol, read_request(protocol))
    assert protocol.start_next_cycle()
    with pytest.raises(RequestError):
        protocol.next_request()
    assert protocol.state is State.CLOSING


# Responses


@pytest.mark.parametrize(
    ("data", "response", "fields", "body"),
    [
        pytest.param(GET, Response(200, body=b"hello"), {b"Content-Length: 5"}, b"hello",
                     id="bytes"),
        pytest.param(GET, Response(200), {b"Content-Length: 0"}, b"", id="no body"),
        pytest.param(
            GET,
            Response(200, body=b"hello", chunked=True),
            {b"Content-Length: 5"},
            b"hello",
            id="bytes are never chunked",
        ),
        pytest.param(
            GET, Response(200, body=blocks(), length=5), {b"Content-Length: 5"}, b"hello",
            id="length"
        ),
        pytest.param(
            GET,
            Response(200, body=blocks()),
            {b"Transfer-Encoding: chunked"},
            b"5\r\nhello\r\n0\r\n\r\n",
            id="unknown length",
        ),
        pytest.param(
            GET,
            Response(200, body=blocks(), length=5, chunked=True),
            {b"Transfer-Encoding: chunked"},
            b"5\r\nhello\r\n0\r\n\r\n",
            id="chunked though the length is known",
        ),
        pytest.param(
            OLD_GET,
            Response(200, body=blocks(), length=5, chunked=True),
            {b"Content-Length: 5", b"Connection: close"},
            b"hello",
            id="HTTP/1.0 is never chunked",
        ),
        pytest.param(
            OLD_GET, Response(200, body=blocks()), {b"Connection: close"}, b"hello", id="HTTP/1.0"
        ),
        pytest.param(
            OLD_GET[:-2] + b"Connection: keep-alive\r\n\r\n",
            Response(200, body=b"hello"),
            {b"Content-Length: 5", b"Connection: close"},
            b"hello",
            id="HTTP/1.0 is not kept",
        ),
        pytest.param(
            CLOSE,
            Response(200, body=b"hello"),
            {b"Content-Length: 5", b"Connection: close"},
            b"hello",
            id="asked to close",
        ),
        pytest.param(HEAD, Response(200, body=b"hello"), {b"Content-Length: 5"}, b"", id="HEAD"),
        pytest.param(HEAD, Response(200, length=7), {b"Content-Length: 7"}, b"", id="HEAD, length"),
        pytest.param(
            HEAD,
            Response(200, body=blocks(), length=5, chunked=True),
            {b"Content-Length: 5"},
            b"",
            id="HEAD tells the length that GET would chunk",
        ),
        pytest.param(
            HEAD, Response(200, body=blocks()), {b"Transfer-Encoding: chunked"}, b"",
            id="HEAD, none"
        ),
        pytest.param(
            OLD_HEAD, Response(200, length=7), {b"Content-Length: 7", b"Connection: close"}, b"",
            id="HTTP/1.0 HEAD",
        ),
        pytest.param(GET, Response(204), set(), b"", id="204"),
        pytest.param(GET, Response(204, body=blocks()), set(), b"", id="204 and a body"),
        pytest.param(GET, Response(304, [("ETag", '"a"')], length=7), {b'ETag: "a"'}, b"",
                     id="304"),
        pytest.param(GET, Response(304, body=b"hello"), set(), b"", id="304 and a body"),
        pytest.param(HEAD, Response(304), set(), b"", id="304 to HEAD"),
        pytest.param(
            GET,
            Response(200, [("X-A", "caf\u00e9"), ("x-a", "2")], b""),
            {b"X-A: caf\xe9", b"x-a: 2", b"Content-Length: 0"},
            b"",
            id="fields as given",
        ),
        pytest.param(
            GET[:-2] + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            Response(200, body=b"hello"),
            {b"Content-Length: 5"},
            b"hello",
            id="to an upgrade",
        ),
    ],
)  # fmt: skip
def test_a_response_is_framed(
    data: bytes, response: Response, fields: set[bytes], body: bytes
) -> None:
    protocol = protocol_with(data)
    request = read_request(protocol)
    answer = split_response(respond(protocol, request, response, [[b"hello"]]))
    assert answer == (f"HTTP/1.1 {response.status} {response.reason}".encode(), fields, body)
    assert protocol.next_body_data() is NeedData.END
    kept = b"Connection: close" not in fields
    assert protocol.start_next_cycle() is kept
    assert protocol.state is (State.IDLE if kept else State.CLOSING)


def test_a_status_without_a_phrase_has_none() -> None:
    protocol = protocol_with(GET)
    answer = respond(protocol, read_request(protocol), Response(299))
    assert answer.startswith(b"HTTP/1.1 299 \r\n")


def test_a_connection_that_is_to_close_during_a_response_is_not_kept() -> None:
    # A drain may begin when the head, without "Connection: close", has left.
    protocol = head_sent()
    protocol.close_after_response()
    assert protocol.send_block([b"hello"])
    protocol.send_end()
    assert protocol.next_body_data() is NeedData.END
    assert protocol.start_next_cycle() is False
    assert protocol.state is State.CLOSING


@pytest.mark.parametrize(
    "make",
    [pytest.param(responding, id="no head yet"), pytest.param(head_sent, id="no end yet")],
)
def test_the_next_cycle_waits_for_the_response(make: Make) -> None:
    protocol = make()
    assert protocol.next_body_data() is NeedData.END
    assert protocol.start_next_cycle() is False
    assert protocol.state is State.RESPONDING


def test_a_last_response_says_so() -> None:
    protocol = protocol_with(GET)
    request = read_request(protocol)
    protocol.close_after_response()
    assert b"\r\nConnection: close\r\n" in respond(protocol, request, Response(200))
    assert not protocol.start_next_cycle()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_buffers_of_a_block_leave_uncopied(chunked: bool) -> None:
    protocol = protocol_with(GET)
    response = Response(200, body=blocks(), length=9, chunked=chunked)
    protocol.send_head(response, read_request(protocol), DATE)
    block: list[Buffer] = [b"he", bytearray(b"llo"), memoryview(b" you")]
    framed = protocol.send_block(block)
    inner = framed[1:-1] if chunked else framed
    assert len(inner) == len(block)
    assert all(buffer is given for buffer, given in zip(inner, block, strict=True))
    if chunked:
        assert (framed[0], framed[-1]) == (b"9\r\n", b"\r\n")
    assert protocol.send_end() == (b"0\r\n\r\n" if chunked else b"")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("block", [[], [b""], [b"", bytearray()]], ids=["none", "one", "two"])
def test_an_empty_block_does_not_end_the_body(block: Block, chunked: bool) -> None:
    protocol = protocol_with(GET)
    response = Response(200, body=blocks(), length=5, chunked=chunked)
    protocol.send_head(response, read_request(protocol), DATE)
    assert b"".join(map(bytes, protocol.send_block(block))) == b""
    assert b"hello" in b"".join(map(bytes, protocol.send_block([b"hello"])))
    protocol.send_end()


@pytest.mark.parametrize("sent", [b"", b"hell"], ids=["nothing", "four of five bytes"])
def test_a_short_body_has_no_end(sent: bytes) -> None:
    protocol = protocol_with(GET)
    protocol.send_head(Response(200, body=blocks(), length=5), read_request(protocol), DATE)
    protocol.send_block([sent])
    with pytest.raises(h11.LocalProtocolError, match="Too little data"):
        protocol.send_end()
    assert not protocol.start_next_cycle()


def test_a_long_body_is_not_sent() -> None:
    protocol = protocol_with(GET)
    protocol.send_head(Response(200, body=blocks(), length=5), read_request(protocol), DATE)
    protocol.send_block([b"hel"])
    with pytest.raises(h11.LocalProtocolError, match="Too much data"):
        protocol.send_block([b"lo!"])
    assert not protocol.start_next_cycle()


def test_head_sent_is_of_this_response() -> None:
    protocol = protocol_with(GET)
    request = read_request(protocol)
    assert not protocol.head_sent
    protocol.send_head(Response(200), request, DATE)
    assert protocol.head_sent
    protocol.send_end()
    assert protocol.next_body_data() is NeedData.END
    assert protocol.start_next_cycle()
    assert not protocol.head_sent


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a\r\nSet-Cookie: x", id="line break"),
        pytest.param("a\nb", id="line feed"),
        pytest.param("a\0b", id="NUL"),
        pytest.param("\u20ac", id="not Latin-1"),
    ],
)
def test_a_field_cannot_smuggle_another(value: str) -> None:
    protocol = protocol_with(GET)
    request = read_request(protocol)
    with pytest.raises((h11.LocalProtocolError, UnicodeEncodeError)):
        protocol.send_head(Response(200, [("X-A", value)]), request, DATE)


# Trailers

SUM = {"X-Sum": lambda: "1", "X-Verified": lambda: "yes"}


def chunked_with_trailers() -> Response:
    return Response(200, body=blocks(), length=5, chunked=True, trailers=dict(SUM))


def test_trailers_are_announced_and_follow_a_chunked_body() -> None:
    protocol = protocol_with(GET)
    answer = respond(protocol, read_request(protocol), chunked_with_trailers(), [[b"hello"]])
    _, fields, body = split_response(answer)
    assert fields == {b"Transfer-Encoding: chunked", b"Trailer: X-Sum, X-Verified"}
    assert body == b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Verified: yes\r\n\r\n"
    assert protocol.next_body_data() is NeedData.END
    assert protocol.start_next_cycle()

    request_arrives(protocol)
    plain = respond(protocol, Request("GET", "/a"), Response(200, body=blocks()), [[b"hello"]])
    assert split_response(plain)[1:] == (
        {b"Transfer-Encoding: chunked"},
        b"5\r\nhello\r\n0\r\n\r\n",
    )


def test_a_trailer_is_asked_for_when_the_body_has_ended() -> None:
    seen = bytearray()
    protocol = protocol_with(GET)
    response = Response(200, body=blocks(), trailers={"X-Seen": lambda: seen.decode()})
    protocol.send_head(response, read_request(protocol), DATE)
    for part in (b"he", b"llo"):
        protocol.send_block([part])
        seen += part
    assert protocol.send_end() == b"0\r\nX-Seen: hello\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "response", "body"),
    [
        pytest.param(
            OLD_GET,
            chunked_with_trailers(),
            b"hello",
            id="HTTP/1.0",
        ),
        pytest.param(HEAD, chunked_with_trailers(), b"", id="HEAD"),
        pytest.param(
            HEAD, Response(200, body=blocks(), trailers=dict(SUM)), b"", id="HEAD, no length"
        ),
        pytest.param(
            OLD_GET, Response(200, body=blocks(), trailers=dict(SUM)), b"hello", id="until close"
        ),
        pytest.param(
            GET, Response(200, body=blocks(), length=5, trailers=dict(SUM)), b"hello", id="length"
        ),
        pytest.param(GET, Response(200, body=b"hello", trailers=dict(SUM)), b"hello", id="bytes"),
        pytest.param(GET, Response(304, trailers=dict(SUM)), b"", id="304"),
    ],
)  # fmt: skip
def test_without_chunks_there_are_no_trailers(data: bytes, response: Response, body: bytes) -> None:
    protocol = protocol_with(data)
    answer = respond(protocol, read_request(protocol), response, [[b"hello"]])
    assert b"Trailer" not in answer
    assert b"X-Sum" not in answer
    assert split_response(answer)[2] == body


@pytest.mark.parametrize("value", ["1\r\nX-Evil: 2", "1\n\n", "a\0b", "\u20ac"])
def test_a_trailer_cannot_smuggle_another(value: str) -> None:
    protocol = protocol_with(GET)
    response = Response(200, body=blocks(), trailers={"X-Sum": lambda: value})
    protocol.send_head(response, read_request(protocol), DATE)
    with pytest.raises((h11.LocalProtocolError, UnicodeEncodeError)):
        protocol.send_end()
    assert not protocol.start_next_cycle()


def test_a_trailer_that_raises_withholds_the_end() -> None:
    def fail() -> str:
        raise ValueError("not verified")

    protocol = protocol_with(GET)
    response = Response(200, body=blocks(), trailers={"X-Verified": fail})
    protocol.send_head(response, read_request(protocol), DATE)
    with pytest.raises(ValueError, match="not verified"):
        protocol.send_end()
    assert not protocol.start_next_cycle()


# Two protocols talk


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "HEAD", "POST"]),
            st.lists(st.binary(max_size=20), max_size=3),  # the request's body
            st.booleans(),  # whether it is chunked
            st.lists(st.binary(max_size=20), max_size=4),  # the response's blocks
            st.sampled_from(["bytes", "length", "chunked", "unknown"]),
        ),
        max_size=4,
    ),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
)
def test_a_client_gets_what_was_sent(
    exchanges: list[tuple[str, list[bytes], bool, list[bytes], str]], pieces: list[int]
) -> None:
    client = h11.Connection(h11.CLIENT)
    protocol = ServerProtocol()
    sizes = itertools.cycle(pieces)
    for method, body, chunked, answer, framing in exchanges:
        framed = client.send(
            h11.Request(
                method=method,
                target="/a?b",
                headers=[
                    ("Host", "h"),
                    ("Transfer-Encoding", "chunked")
                    if chunked
                    else ("Content-Length", str(sum(map(len, body)))),
                ],
            )
        )
        assert framed is not None
        for part in body:
            framed += client.send(h11.Data(data=part)) or b""
        framed += client.send(h11.EndOfMessage()) or b""

        at = 0
        request: Request | None = None
        found = b""
        while True:
            step = protocol.next_request() if request is None else protocol.next_body_data()
            if isinstance(step, Request):
                request = step
            elif isinstance(step, bytes):
                found += step
            elif step is NeedData.MORE:
                size = next(sizes)
                protocol.receive_data(framed[at : at + size])
                at += size
            else:
                break
        assert request is not None
        assert (request.method, found) == (method, b"".join(body))

        content = b"".join(answer)
        response = Response(200, body=blocks(), chunked=framing == "chunked")
        if framing == "bytes":
            response = Response(200, body=content)
        elif framing != "unknown":
            response.length = len(content)
        data = respond(protocol, request, response, [[part] for part in answer])
        received = receive_answer(client, data)
        assert received.status == 200
        assert received.body == (b"" if method == "HEAD" else content)
        assert protocol.start_next_cycle()
        client.start_next_cycle()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=4), st.booleans())
def test_an_old_client_gets_what_was_sent(answer: list[bytes], is_length_known: bool) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/a", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    protocol = protocol_with(OLD_GET)
    content = b"".join(answer)
    response = Response(200, body=blocks(), length=len(content) if is_length_known else None)
    data = respond(protocol, read_request(protocol), response, [[part] for part in answer])
    received = receive_answer(client, data, closed=True)
    assert received.body == content
    assert received.fields[b"connection"] == b"close"
    assert b"transfer-encoding" not in received.fields
    assert (b"content-length" in received.fields) is is_length_known


# Anything at all

PIECES = [
    GET, HEAD, OLD_GET, CLOSE, POST, CHUNKED_POST, PATIENT_POST, b"hello", b"5\r\nhello\r\n",
    b"0\r\n\r\n", b"GET ", b"/a", b" HTTP/1.1\r\n", b" HTTP/2.0\r\n", b"Host: h\r\n", b"\r\n",
    b"\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"\0", b"Expect: 100-continue\r\n", b"CONNECT ", b"* ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"HEAD ",
]  # fmt: skip
streams = st.lists(st.sampled_from(PIECES) | st.binary(max_size=10), max_size=12).map(b"".join)


def serve(data: bytes, pieces: list[int]) -> tuple[list[tuple[str, str, bytes]], int | None]:
    """Be an owner: answer every request in the stream; gives them, and the status of a refusal."""
    protocol = ServerProtocol()
    sizes = itertools.cycle(pieces)
    at = 0
    served: list[tuple[str, str, bytes]] = []

    def feed() -> None:
        nonlocal at
        protocol.receive_data(data[at : (at := at + next(sizes))])

    while True:
        request: Request | None = None
        try:
            while (got := protocol.next_request()) is NeedData.MORE:
                feed()
            if got is NeedData.END:
                assert protocol.state is State.CLOSED
                return served, None
            assert isinstance(got, Request)
            request, body = got, b""
            assert protocol.state is State.RESPONDING
            while (piece := protocol.next_body_data()) is not NeedData.END:
                if isinstance(piece, bytes):
                    body += piece
                    continue
                if protocol.awaits_continue:
                    assert protocol.send_continue() == b"HTTP/1.1 100 Continue\r\n\r\n"
                feed()
        except RequestError as exc:
            assert protocol.state is State.CLOSING
            answer = respond(protocol, request, error_response(exc.status, str(exc)))
            status = exc.status
            break
        served.append((request.method, request.target, body))
        respond(protocol, request, Response(200, body=b"hi"))
        if not protocol.start_next_cycle():
            return served, None
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert not protocol.start_next_cycle()
    return served, status


@settings(deadline=None, max_examples=500)
@given(streams, st.lists(st.integers(1, 40), min_size=1, max_size=4))
@example(HEAD.replace(b"/a", b"*"), [100])
@example(b"CONNECT / HTTP/1.1\r\nHost: h\r\n\r\n", [100])
def test_any_input_is_served_or_refused(data: bytes, pieces: list[int]) -> None:
    served, refused = serve(data, pieces)
    assert all(target == "*" or target.startswith("/") for _, target, _ in served)
    assert refused is None or 400 <= refused <= 505


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [GET, HEAD, POST + b"hello", CHUNKED_POST + b"5\r\nhello\r\n0\r\n\r\n",
             PATIENT_POST + b"hello", CLOSE, OLD_GET]
        ),
        max_size=6,
    ).map(b"".join),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
)  # fmt: skip
def test_one_byte_at_a_time_is_as_good_as_all_at_once(data: bytes, pieces: list[int]) -> None:
    whole = serve(data, [len(data) or 1])
    assert serve(data, [1]) == serve(data, pieces) == whole
    assert whole[1] is None
