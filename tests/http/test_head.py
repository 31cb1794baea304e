import pytest

from xetserve.errors import RequestError
from xetserve.http.head import (
    MAX_EMPTY_LINES,
    MAX_METHOD_SIZE,
    Head,
    HeadReader,
    RequestLimits,
    parse_field_line,
)

LINE = b"GET /a?b HTTP/1.1\r\n"
HOST = b"Host: h\r\n"
SMALL = RequestLimits(max_url_size=20, max_head_size=200, max_fields=3)


def take(data: bytes, limits: RequestLimits = SMALL, piece: int = 0) -> tuple[Head | None, bytes]:
    """Read a head, by pieces of so many bytes; gives what is left, too."""
    reader = HeadReader(limits)
    inbox = bytearray()
    size = piece or len(data) or 1
    for at in range(0, len(data), size):
        inbox += data[at : at + size]
        head = reader.take(inbox)
        if head is not None:
            return head, bytes(inbox) + data[at + size :]
    return None, bytes(inbox)


def refusal(data: bytes, limits: RequestLimits = SMALL) -> int:
    """The status that data is refused with, the same however it is cut."""
    statuses = set()
    for piece in (0, 1, 3, 7):
        with pytest.raises(RequestError) as caught:
            take(data, limits, piece)
        statuses.add((caught.value.status, str(caught.value)))
    ((status, _),) = statuses
    return status


@pytest.mark.parametrize("piece", [0, 1, 2, 5])
@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n" * MAX_EMPTY_LINES])
def test_a_head_is_taken_and_nothing_else(before: bytes, piece: int) -> None:
    head = LINE + HOST + b"X-A: \t a  b \t\r\n\r\n"
    found, left = take(before + head + b"GET /next", piece=piece)
    assert found == Head("GET", "/a?b", "1.1", [("host", "h"), ("x-a", "a  b")], head)
    assert left == b"GET /next"


@pytest.mark.parametrize(
    "data",
    [b"", b"\r", b"\r\n", b"\r\n\r", b"G", b"GET /", LINE[:-1], LINE, LINE + HOST,
     LINE + HOST + b"\r"],
)  # fmt: skip
def test_an_incomplete_head_waits(data: bytes) -> None:
    assert take(data)[0] is None
    assert take(data, piece=1)[0] is None


@pytest.mark.parametrize(
    ("version", "found"), [(b"1.0", "1.0"), (b"1.1", "1.1"), (b"1.2", "1.1"), (b"1.9", "1.1")]
)
def test_a_later_minor_version_is_taken_for_the_latest(version: bytes, found: str) -> None:
    head, _ = take(b"GET / HTTP/%b\r\n\r\n" % version)
    assert head is not None
    assert head.version == found


@pytest.mark.parametrize(
    "line",
    [b"GET / HTTP/2.0", b"GET / HTTP/0.9", b"GET / HTTP/0.0", b"GET / HTTP/9.9", b"PRI * HTTP/2.0"],
)
def test_other_versions_are_505(line: bytes) -> None:
    assert refusal(line + b"\r\n") == 505


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /\r\n", id="HTTP/0.9"),
        pytest.param(b"GET\r\n", id="one word"),
        pytest.param(b"GET / http/1.1\r\n", id="name of the protocol in lower case"),
        pytest.param(b"GET / HTTP/1.10\r\n", id="two digits"),
        pytest.param(b"GET / HTTP/11.1\r\n", id="two digits before the dot"),
        pytest.param(b"GET / HTTP/1\r\n", id="no minor version"),
        pytest.param(b"GET / HTTP/1.1 \r\n", id="blank at the end"),
        pytest.param(b"GET / HTTPS/1.1\r\n", id="another protocol"),
        pytest.param(b"GET  / HTTP/1.1\r\n", id="two blanks"),
        pytest.param(b"GET\t/ HTTP/1.1\r\n", id="tab"),
        pytest.param(b"GET / / HTTP/1.1\r\n", id="blank in the target"),
        pytest.param(b"GET /\xe9 HTTP/1.1\r\n", id="target not ASCII"),
        pytest.param(b"GET /\0 HTTP/1.1\r\n", id="NUL in the target"),
        pytest.param(b"GET /\x7f HTTP/1.1\r\n", id="DEL in the target"),
        pytest.param(b"G(T / HTTP/1.1\r\n", id="method is no token"),
        pytest.param(b"GET / HTTP/1.1\n", id="bare line feed"),
        pytest.param(b"GET / HTTP/1.1\r\r\n", id="two carriage returns"),
        pytest.param(b"GET /\rX HTTP/1.1\r\n", id="bare carriage return"),
        pytest.param(b" GET / HTTP/1.1\r\n", id="blank before it"),
        pytest.param(b"\nGET / HTTP/1.1\r\n", id="line feed before it"),
        pytest.param(b"\rGET / HTTP/1.1\r\n", id="carriage return before it"),
        pytest.param(b"\x16\x03\x01", id="TLS"),
        pytest.param(b"\0", id="NUL"),
        pytest.param(b"\r\n" * (MAX_EMPTY_LINES + 1), id="too many empty lines"),
        pytest.param(LINE + b" X: folded\r\n", id="folded first field"),
        pytest.param(LINE + b"X: a\r\n b\r\n", id="folded field"),
        pytest.param(LINE + b"X: a\r\n\tb\r\n", id="folded with a tab"),
        pytest.param(LINE + b"X : a\r\n", id="blank before the colon"),
        pytest.param(LINE + b"X\t: a\r\n", id="tab before the colon"),
        pytest.param(LINE + b": a\r\n", id="empty name"),
        pytest.param(LINE + b"X\r\n", id="no colon"),
        pytest.param(LINE + b"X\xe9: a\r\n", id="name not ASCII"),
        pytest.param(LINE + b"X(: a\r\n", id="name is no token"),
        pytest.param(LINE + b"X: a\0\r\n", id="NUL in a value"),
        pytest.param(LINE + b"X: a\x1b[2J\r\n", id="escape in a value"),
        pytest.param(LINE + b"X: a\x7f\r\n", id="DEL in a value"),
        pytest.param(LINE + b"X: a\rY: b\r\n", id="bare carriage return in a value"),
        pytest.param(LINE + b"X: a\n", id="bare line feed after a value"),
        pytest.param(LINE + b"\n", id="bare line feed as the empty line"),
    ],
)
def test_a_malformed_line_is_400_as_soon_as_it_is_there(data: bytes) -> None:
    assert refusal(data) == 400


@pytest.mark.parametrize("rest", [b"", b" HTTP/1.1\r\n", b"a" * 300])
def test_a_target_beyond_the_limit_is_414(rest: bytes) -> None:
    longest = b"/" + b"a" * (SMALL.max_url_size - 1)
    head, _ = take(b"GET " + longest + b" HTTP/1.1\r\n\r\n")
    assert head is not None
    assert head.target == longest.decode()
    assert refusal(b"GET " + longest + b"a" * 41 + rest) == 414
    assert refusal(b"GET " + longest + b"a HTTP/1.1\r\n") == 414


@pytest.mark.parametrize("rest", [b"", b" / HTTP/1.1\r\n", b"a" * 300])
def test_a_method_beyond_the_limit_is_501(rest: bytes) -> None:
    longest = b"A" * MAX_METHOD_SIZE
    head, _ = take(longest + b" / HTTP/1.1\r\n\r\n")
    assert head is not None
    assert head.method == longest.decode()
    assert refusal(longest + b"A" * 40 + rest) == 501
    assert refusal(longest + b"A / HTTP/1.1\r\n") == 501


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\n", b"\r", b""])
def test_a_head_beyond_the_limit_is_431(end: bytes) -> None:
    start = b"GET / HTTP/1.1\r\nX: "
    fill = SMALL.max_head_size - len(start) - len(b"\r\n\r\n")
    head, _ = take(start + b"a" * fill + b"\r\n\r\n")
    assert head is not None
    assert len(head.raw) == SMALL.max_head_size
    assert refusal(start + b"a" * (fill + 5 - len(end)) + end) == 431


def test_a_head_is_431_where_the_limit_is_below_that_of_the_target() -> None:
    limits = RequestLimits(max_url_size=1000, max_head_size=100)
    assert refusal(b"GET /" + b"a" * 96, limits) == 431
    assert refusal(b"GET /" + b"a" * 96 + b" HTTP/1.1\r\n", limits) == 431


def test_empty_lines_before_it_do_not_count() -> None:
    start = b"GET / HTTP/1.1\r\nX: "
    fill = SMALL.max_head_size - len(start) - len(b"\r\n\r\n")
    assert take(b"\r\n\r\n" + start + b"a" * fill + b"\r\n\r\n")[0] is not None


def test_one_field_too_many_is_431() -> None:
    fields = b"X: a\r\n" * SMALL.max_fields
    assert take(LINE + fields + b"\r\n")[0] is not None
    assert refusal(LINE + fields + b"X: a\r\n") == 431


def test_the_method_is_known_before_the_fields() -> None:
    reader = HeadReader(SMALL)
    assert reader.take(bytearray(b"HEAD / HTTP/1.1\r")) is None
    assert reader.method == ""
    with pytest.raises(RequestError):
        reader.take(bytearray(b"HEAD / HTTP/1.1\r\nbad\r\n"))
    assert reader.method == "HEAD"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"Host:h", ("host", "h")),
        (b"X-A: ", ("x-a", "")),
        (b"X-A:", ("x-a", "")),
        (b'!#$%&\'*+-.^_`|~09AZ: "a" \t b ', ("!#$%&'*+-.^_`|~09az", '"a" \t b')),
        (b"X: caf\xe9", ("x", "caf\u00e9")),
        (b"X: a: b", ("x", "a: b")),
    ],
)
def test_parse_field_line(line: bytes, field: tuple[str, str]) -> None:
    assert parse_field_line(line) == field


@pytest.mark.parametrize("value", [b" " * 400_000, b"a " * 200_000, b"a" * 400_000])
def test_a_long_line_is_judged_in_linear_time(value: bytes) -> None:
    # If the blanks were tried one by one as the value's end, this would take longer than a test
    # may.
    with pytest.raises(RequestError, match="malformed"):
        take(LINE + b"X: " + value + b"\0\r\n", RequestLimits(max_head_size=1_000_000))
