import pytest

from xetserve.errors import RequestError
from xetserve.http.framing import (
    CHUNKS_PER_TURN,
    MAX_CHUNK_LINE_SIZE,
    MAX_EXTENSIONS_SIZE,
    MAX_SMALL_CHUNKS,
    ChunkedFraming,
    Framing,
    LengthFraming,
)
from xetserve.http.head import RequestLimits

SMALL = RequestLimits(max_fields=3, max_trailer_size=40)


def take_all(framing: Framing, data: bytes, piece: int = 0) -> tuple[bytes, bytes]:
    """What is taken of data that arrives in pieces of so many bytes, and what is left."""
    inbox = bytearray()
    taken = b""
    for at in range(0, len(data), piece or len(data)):
        inbox += data[at : at + (piece or len(data))]
        while part := framing.take(inbox):
            taken += part
    return taken, bytes(inbox)


def refusal(data: bytes) -> int:
    """The status that a chunked body is refused with, the same however it is cut."""
    statuses = set()
    for piece in (0, 1, 3, 7):
        with pytest.raises(RequestError) as caught:
            take_all(ChunkedFraming(SMALL), data, piece)
        statuses.add(caught.value.status)
    (status,) = statuses
    return status


@pytest.mark.parametrize("piece", [0, 1, 2, 5])
def test_a_length_is_taken_and_no_more(piece: int) -> None:
    assert take_all(LengthFraming(5), b"helloGET", piece) == (b"hello", b"GET")
    assert take_all(LengthFraming(0), b"GET", piece) == (b"", b"GET")


@pytest.mark.parametrize("piece", [0, 1, 2, 5])
@pytest.mark.parametrize(
    ("body", "data"),
    [
        pytest.param(b"0\r\n\r\n", b"", id="empty"),
        pytest.param(b"000\r\n\r\n", b"", id="zeros"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", id="one chunk"),
        pytest.param(b"5\r\n\n\r\n\r\n\r\n0\r\n\r\n", b"\n\r\n\r\n", id="line ends as data"),
        pytest.param(
            b"a\r\n0123456789\r\n0A\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, id="both cases"
        ),
        pytest.param(b"1;a\r\nx\r\n0;b=c\r\n\r\n", b"x", id="extensions"),
        pytest.param(b'1;a="b;\\"\xe9" ; c = d\r\nx\r\n0\r\n\r\n', b"x", id="quoted extension"),
        pytest.param(b"0\r\nX: a\r\nY:\r\n\r\n", b"", id="trailers"),
        pytest.param(b"0\r\nX: a\r\nX: a\r\nX: a\r\n\r\n", b"", id="as many trailers as may be"),
        pytest.param(b"0\r\nX: " + b"a" * 35 + b"\r\n\r\n", b"", id="as large a trailer as may be"),
    ],
)
def test_a_chunked_body_is_taken_and_no_more(body: bytes, data: bytes, piece: int) -> None:
    framing = ChunkedFraming(SMALL)
    assert take_all(framing, body + b"GET /\r\n", piece) == (data, b"GET /\r\n")
    assert framing.is_complete


@pytest.mark.parametrize("end", [b"XX", b"\n\r", b"\nX", b"\rX", b"\r\r\n"])
def test_a_chunk_ends_with_a_line_end(end: bytes) -> None:
    assert refusal(b"5\r\nhello" + end) == 400


def test_small_chunks_are_taken_together_and_so_many_in_a_turn() -> None:
    num_chunks = 10 * CHUNKS_PER_TURN
    inbox = bytearray(b"2\r\nab\r\n" * num_chunks + b"0\r\n\r\n")
    framing = ChunkedFraming(SMALL)
    assert [framing.take(inbox) for _ in range(11)] == [b"ab" * CHUNKS_PER_TURN] * 10 + [b""]
    assert framing.is_complete


def test_a_body_of_tiny_chunks_is_refused_but_not_one_of_some_of_them() -> None:
    tiny = b"1\r\nx\r\n" * MAX_SMALL_CHUNKS
    last = b"0\r\n\r\n"
    assert take_all(ChunkedFraming(SMALL), tiny + last) == (b"x" * MAX_SMALL_CHUNKS, b"")
    assert refusal(tiny + tiny + last) == 400
    lenient = ChunkedFraming(SMALL, is_lenient=True)
    assert take_all(lenient, tiny + tiny + last) == (b"x" * 2 * MAX_SMALL_CHUNKS, b"")
    large = b"400\r\n" + bytes(1024) + b"\r\n"
    assert len(take_all(ChunkedFraming(SMALL), (large + tiny[: 6 * 64]) * 1024 + last)[0]) > 1 << 20


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\r\n", id="no size"),
        pytest.param(b"x\r\n", id="not hex"),
        pytest.param(b"-1\r\n", id="negative"),
        pytest.param(b"+1\r\n", id="sign"),
        pytest.param(b"0x1\r\n", id="prefix"),
        pytest.param(b"1_0\r\n", id="underscore"),
        pytest.param(b" 1\r\n", id="blank before"),
        pytest.param(b"1 \r\n", id="blank after"),
        pytest.param(b"1,\r\n", id="comma"),
        pytest.param(b"f" * 16 + b"\r\n", id="overflow"),
        pytest.param(b"1" + b"0" * 16 + b"\r\n", id="overflow by one digit"),
        pytest.param(b"5\nhello", id="bare line feed"),
        pytest.param(b"5\rhello\n", id="bare carriage return"),
        pytest.param(b"5;\r\n", id="empty extension"),
        pytest.param(b"5;a=\r\n", id="extension without a value"),
        pytest.param(b"5;a b\r\n", id="extension of two words"),
        pytest.param(b'5;a="b\r\n', id="open quote"),
        pytest.param(b"5;a\rb\r\n", id="carriage return in an extension"),
        pytest.param(b"5;a\0\r\n", id="NUL in an extension"),
        pytest.param(b"1;" + b"a" * MAX_CHUNK_LINE_SIZE, id="endless extension"),
        pytest.param(b"0" * (MAX_CHUNK_LINE_SIZE + 1), id="endless zeros"),
        pytest.param(
            (b"1;" + b"a" * 200 + b"\r\nx\r\n") * (MAX_EXTENSIONS_SIZE // 200 + 1),
            id="many extensions",
        ),
        pytest.param(b"0\r\nX\r\n", id="trailer without a colon"),
        pytest.param(b"0\r\nX: a\n\r\n", id="trailer with a bare line feed"),
        pytest.param(b"0\r\n\n", id="bare line feed at the end"),
        pytest.param(b"0\r\nX: a\r\n b\r\n\r\n", id="folded trailer"),
    ],
)
def test_malformed_chunks_are_400(data: bytes) -> None:
    assert refusal(data) == 400


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"0\r\n" + b"X: a\r\n" * 4, id="too many"),
        pytest.param(b"0\r\nX: " + b"a" * 40, id="endless"),
        pytest.param(b"0\r\nX: " + b"a" * 38 + b"\r\n\r\n", id="too large"),
        pytest.param(b"0\r\nX: " + b"a" * 14 + b"\r\nX: " + b"a" * 20 + b"\r\n\r\n", id="together"),
    ],
)
def test_trailers_beyond_the_limits_are_431(data: bytes) -> None:
    assert refusal(data) == 431


def test_lenient_framing_takes_any_number_of_extensions() -> None:
    chunk = b"1;" + b"x" * (MAX_CHUNK_LINE_SIZE - 4) + b"\r\nx\r\n"
    data = b"x" * (MAX_EXTENSIONS_SIZE // 200)
    body = chunk * len(data) + b"0\r\n\r\n"
    with pytest.raises(RequestError):
        take_all(ChunkedFraming(SMALL), body)
    assert take_all(ChunkedFraming(SMALL, is_lenient=True), body + b"x") == (data, b"x")


@pytest.mark.parametrize("line", [b"1 \r\n", b"1;\r\n", b"1; a b \t\r\n", b"01;=\xe9\r\n"])
def test_lenient_framing_takes_odd_chunk_headers(line: bytes) -> None:
    body = line + b"x\r\n0\r\n\r\n"
    assert take_all(ChunkedFraming(SMALL, is_lenient=True), body) == (b"x", b"")


@pytest.mark.parametrize(
    "line", [b"\r\n", b" 1\r\n", b"1 2\r\n", b"1 ;x\r\n", b"1\n", b"1;\0\r\n", b"x\r\n"]
)
def test_lenient_framing_has_limits(line: bytes) -> None:
    with pytest.raises(RequestError):
        take_all(ChunkedFraming(SMALL, is_lenient=True), line)
