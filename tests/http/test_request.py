import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.errors import RequestError
from xetserve.http.framing import ChunkedFraming, LengthFraming
from xetserve.http.head import Head, RequestLimits
from xetserve.http.messages import Request
from xetserve.http.request import MAX_HOST_SIZE, find_framing, normalize_target, read_request

HOST = ("host", "h")


def read(
    target: str = "/a", *fields: tuple[str, str], method: str = "GET", version: str = "1.1"
) -> Request:
    return read_request(Head(method, target, version, list(fields), b""))


def refusal(
    target: str = "/a", *fields: tuple[str, str], method: str = "GET", version: str = "1.1"
) -> int:
    with pytest.raises(RequestError) as caught:
        read(target, *fields, method=method, version=version)
    return caught.value.status


def test_a_request_is_made_of_its_head() -> None:
    request = read("/a?b", HOST, ("x-a", "1"), ("x-a", "2"), method="POST")
    assert (request.method, request.target, request.http_version) == ("POST", "/a?b", "1.1")
    assert list(request.headers) == [HOST, ("x-a", "1"), ("x-a", "2")]


# Host


@pytest.mark.parametrize(
    "host",
    ["", "h", "h:", "h:0", "h:65535", "a_b.c-d", "127.0.0.1:80", "[::1]", "[::1]:80",
     "[fe80::1%25e0]", "a%2Db", "!$&'()*+,;=~", "h" * MAX_HOST_SIZE + ":65535"],
)  # fmt: skip
def test_a_host(host: str) -> None:
    assert read("/a", ("host", host)).headers.get("host") == host


@pytest.mark.parametrize(
    "host",
    ["a b", "a/b", "u@h", "h:80:80", "h:x", "h:-1", "h:65536", "h:000080", "[::1", "::1", "[]",
     "[g]", "[1.2.3.4]", "[::1]x", "[::1%]", "h?", "h#", "<h>", '"h"', "h\\", "a%2", "a%zz",
     "caf\u00e9", "h, h", "{h}", "h|", "h^", "h" * (MAX_HOST_SIZE + 1),
     f"[::1%{'0' * MAX_HOST_SIZE}]"],
)  # fmt: skip
def test_no_host(host: str) -> None:
    assert refusal("/a", ("host", host)) == 400


def test_http_1_1_needs_one_host_and_http_1_0_at_most_one() -> None:
    assert refusal("/a") == 400
    assert refusal("/a", HOST, HOST) == 400
    assert refusal("/a", HOST, ("host", "i"), version="1.0") == 400
    assert read("/a", version="1.0").headers.get("host") is None
    assert refusal("/a", ("host", "a b"), version="1.0") == 400


# The four forms of a target


@pytest.mark.parametrize(
    ("target", "host", "path"),
    [
        ("http://x/a", "x", "/a"),
        ("https://x/a", "x", "/a"),
        ("HTTP://X:80/a?b=/c", "X:80", "/a?b=/c"),
        ("http://x", "x", "/"),
        ("http://x?b", "x", "/?b"),
        ("http://x//y", "x", "//y"),
        ("http://[::1]:8080/", "[::1]:8080", "/"),
    ],
)
def test_an_absolute_target_names_the_host(target: str, host: str, path: str) -> None:
    request = read(target, ("x-a", "1"), HOST)
    assert request.target == path
    assert list(request.headers) == [("host", host), ("x-a", "1")]
    assert request.base_url == f"http://{host}"


def test_an_absolute_target_works_without_host_in_http_1_0_only() -> None:
    assert read("http://x/a", version="1.0").host == "x"
    assert refusal("http://x/a") == 400


@pytest.mark.parametrize(
    "target",
    ["http://", "http:///a", "http://:80/a", "http://u@x/a", "http://u:p@x/", "http://x:y/",
     "http:/a", "http:a", "ftp://x/a", "file:///a", "//x/a#b", "http://x/#a", "http://[::1/",
     "httpx://x/", "http://a%2/", "http://x\\y/", "javascript:alert(1)"],
)  # fmt: skip
def test_no_absolute_target(target: str) -> None:
    assert refusal(target, HOST) == 400


@pytest.mark.parametrize("target", ["a", "h:80", "?a", "", "*", "/a#b", "#", "\\a"])
def test_no_target(target: str) -> None:
    assert refusal(target, HOST) == 400


def test_an_asterisk_is_for_options() -> None:
    assert read("*", HOST, method="OPTIONS").target == "*"
    assert read("http://x", HOST, method="OPTIONS").target == "*"
    assert read("http://x/", HOST, method="OPTIONS").target == "/"
    assert read("http://x?a", HOST, method="OPTIONS").target == "/?a"


@pytest.mark.parametrize("target", ["h:80", "/", "*", "http://h/"])
def test_connect_is_not_implemented(target: str) -> None:
    assert refusal(target, HOST, method="CONNECT") == 501


# Expect


@pytest.mark.parametrize(
    "value", ["100-continue", "100-Continue", "", "100-continue, 100-continue"]
)
def test_an_expectation(value: str) -> None:
    assert read("/a", HOST, ("expect", value)).method == "GET"


@pytest.mark.parametrize(
    "value", ["x", "\u00a0100-continue", "100-continue; q", "100-continue, x", "200-ok"]
)
def test_another_expectation_is_417(value: str) -> None:
    assert refusal("/a", HOST, ("expect", value)) == 417
    assert read("/a", ("expect", value), version="1.0").http_version == "1.0"


# Framing


def framing_of(*fields: tuple[str, str], version: str = "1.1") -> object:
    return find_framing(read("/a", HOST, *fields, version=version), RequestLimits())


@pytest.mark.parametrize("value", ["chunked", "Chunked", " chunked"])
def test_chunked(value: str) -> None:
    assert isinstance(framing_of(("transfer-encoding", value)), ChunkedFraming)


@pytest.mark.parametrize(
    ("value", "length"), [("0", 0), ("5", 5), ("005", 5), ("9" * 18, 10**18 - 1)]
)
def test_a_length(value: str, length: int) -> None:
    framing = framing_of(("content-length", value))
    assert isinstance(framing, LengthFraming)
    assert framing.take(bytearray(b"123456")) == b"123456"[:length]


def test_without_either_there_is_no_body() -> None:
    framing = framing_of()
    assert isinstance(framing, LengthFraming)
    assert framing.take(bytearray(b"123")) == b""


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("content-length", value)], 400)
        for value in ["", "+5", "-5", "5, 5", "5,5", "5 5", "0x5", "5.0", "1e3", "\u00b2", "9" * 19]
    ]
    + [
        ([("content-length", "5"), ("content-length", "5")], 400),
        ([("content-length", "5"), ("content-length", "6")], 400),
        ([("content-length", "5"), ("transfer-encoding", "chunked")], 400),
        ([("transfer-encoding", "chunked"), ("content-length", "0")], 400),
    ]
    + [
        ([("transfer-encoding", value)], 400)
        for value in ["", "identity", "gzip", "xchunked", "chunked, gzip", "chunked, chunked",
                      "chunked,", "chunked;q=1", "\u00a0chunked", "chunked\u00a0", "chunked\x85",
                      '"chunked"']
    ]
    + [
        ([("transfer-encoding", "gzip, chunked")], 501),
        ([("transfer-encoding", "identity, chunked")], 501),
        ([("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")], 501),
        ([("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], 400),
        ([("transfer-encoding", "chunked"), ("transfer-encoding", "identity")], 400),
    ],
)  # fmt: skip
def test_no_framing(fields: list[tuple[str, str]], status: int) -> None:
    with pytest.raises(RequestError) as caught:
        framing_of(*fields)
    assert caught.value.status == status


def test_http_1_0_has_no_transfer_encoding() -> None:
    with pytest.raises(RequestError) as caught:
        framing_of(("transfer-encoding", "chunked"), version="1.0")
    assert caught.value.status == 400


# The one spelling of a target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a/b?c", "/a/b?c"),
        ("/api/models/o/n/xet%2Dread%2dtoken/main", "/api/models/o/n/xet-read-token/main"),
        ("/api//models//o?x=//%61", "/api//models//o?x=//%61"),
        ("/%41%7a%30%5F%7E%2e", "/Az0_~."),
        ("/a%2fb%3fc%25%c3%bc", "/a%2Fb%3Fc%25%C3%BC"),
        ("/a%252Db", "/a%252Db"),
        ("/a%%32D%2D", "/a%%32D%2D"),  # for whoever refuses it
        ("/a%2", "/a%2"),
        ("/a/%2e%2e/./b", "/a/.././b"),
        ("http://h/a%2Db", "/a-b"),
    ],
)
def test_a_target_has_one_spelling(target: str, expected: str) -> None:
    assert read(target, HOST).target == expected
    assert read(f"http://h{expected}", HOST).target == expected


@given(path=st.lists(st.sampled_from(["/", "%", "2", "5", "D", "d", "a", "%2D", "%25", "."])))
def test_it_is_not_changed_again(path: list[str]) -> None:
    once = normalize_target("/" + "".join(path))
    assert normalize_target(once) == once
