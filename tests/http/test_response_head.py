import pytest

from xetserve.errors import BrokenStream
from xetserve.http.response_head import MAX_RESPONSE_FIELDS, ResponseHeadReader

OK = b"HTTP/1.1 200 OK\r\n"


def take(data: bytes, piece: int = 0, max_size: int = 1_000_000) -> tuple[bytes | None, bytes]:
    """The head in data that arrives in pieces of so many bytes, and what is left."""
    reader = ResponseHeadReader(max_size)
    inbox = bytearray()
    for at in range(0, len(data), piece or len(data)):
        inbox += data[at : at + (piece or len(data))]
        if (head := reader.take(inbox)) is not None:
            return head, bytes(inbox) + data[at + (piece or len(data)) :]
    return None, bytes(inbox)


@pytest.mark.parametrize("piece", [0, 1, 2, 7])
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(OK + b"\r\n", id="no fields"),
        pytest.param(b"HTTP/1.0 404\r\n\r\n", id="no reason"),
        pytest.param(b"HTTP/1.1 200 Tout va tr\xe8s\tbien \r\n\r\n", id="odd reason"),
        pytest.param(OK + b"X:\r\nY: a \t b \r\nZ: caf\xe9\r\n\r\n", id="fields"),
        pytest.param(b"HTTP/1.1 200 OK\nX: a\r\nY: b\n\n", id="LF alone"),
        pytest.param(OK + b"X: a\r\n" * MAX_RESPONSE_FIELDS + b"\r\n", id="as many as may be"),
    ],
)
def test_a_head_is_taken_and_nothing_else(head: bytes, piece: int) -> None:
    assert take(head + b"\r\nbody", piece) == (head, b"\r\nbody")


@pytest.mark.parametrize("data", [b"H", b"HTTP/1.1 200 OK\r\n", OK + b"X: a\r\n", OK + b"\r"])
def test_an_incomplete_head_waits(data: bytes) -> None:
    assert take(data) == (None, data)


@pytest.mark.parametrize("piece", [0, 1, 2, 7])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"220 ready\r\n", id="another protocol"),
        pytest.param(b"HTTP/2 200\r\n", id="HTTP/2"),
        pytest.param(b"\r\n", id="an empty line first"),
        pytest.param(b"HTTP/1.1 200 a\0b\r\n", id="NUL in the reason"),
        pytest.param(OK + b"X : a\r\n", id="blank before the colon"),
        pytest.param(OK + b"X: a\r\n b\r\n", id="folded"),
        pytest.param(OK + b"X: a\rb\r\n", id="CR inside"),
        pytest.param(OK + b"X: \x01\r\n", id="control character"),
        pytest.param(OK + b"X: a\r\n" * (MAX_RESPONSE_FIELDS + 1), id="too many fields"),
        pytest.param(b"HTTP/1.1 200 " + b"x" * 2000, id="a line without an end"),
    ],
)
def test_a_malformed_head_is_refused_at_once(data: bytes, piece: int) -> None:
    with pytest.raises(BrokenStream, match="not HTTP"):
        take(data, piece, max_size=1999)


def test_interim_heads_count_as_well() -> None:
    interim = b"HTTP/1.1 102 Wait\r\n\r\n"
    reader = ResponseHeadReader(3 * len(interim))
    inbox = bytearray(4 * interim)
    for _ in range(3):
        assert reader.take(inbox) == interim
    with pytest.raises(BrokenStream, match="too large"):
        reader.take(inbox)


@pytest.mark.parametrize("field", [b"Location: /?X-Amz-Signature=5ec\0", b"Bearer hf_secret"])
def test_no_message_quotes_a_line(field: bytes) -> None:
    with pytest.raises(BrokenStream) as caught:
        take(OK + field + b"\r\n")
    assert str(caught.value) == "not HTTP: malformed header field"


@pytest.mark.parametrize("value", [b" " * 400_000, b"a " * 200_000, b"a" * 400_000])
@pytest.mark.parametrize("start", [b"HTTP/1.1 200 ", OK + b"X:"])
def test_a_long_line_is_judged_in_linear_time(start: bytes, value: bytes) -> None:
    # If the blanks were tried one by one as the value's end, this would take longer than a test
    # may.
    with pytest.raises(BrokenStream):
        take(start + value + b"\0\r\n")
