import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.http.messages import (
    Block,
    EmptyBody,
    Headers,
    Request,
    Response,
    error_response,
    json_response,
)


async def blocks() -> AsyncGenerator[Block, None]:
    yield [b"hello"]


# Headers


def test_header_names_are_looked_up_in_any_case() -> None:
    headers = Headers([("Content-Type", "text/plain"), ("x-Xet-hash", "abc")])
    assert headers.get("content-type") == "text/plain"
    assert headers.get("X-XET-HASH") == "abc"
    assert "CONTENT-TYPE" in headers
    assert "content" not in headers


def test_a_field_that_is_not_there_gives_the_default() -> None:
    headers = Headers()
    assert headers.get("range") is None
    assert headers.get("range", "none") == "none"
    assert headers.get_all("range") == []
    assert "range" not in headers
    assert list(headers) == []


def test_an_empty_value_is_a_value() -> None:
    headers = Headers([("Range", "")])
    assert headers.get("range", "none") == ""
    assert "range" in headers


def test_repeated_fields_keep_their_order() -> None:
    fields = [("Link", "<a>"), ("Vary", "x"), ("link", "<b>"), ("LINK", "<c>")]
    headers = Headers(fields)
    assert headers.get("Link") == "<a>"
    assert headers.get_all("link") == ["<a>", "<b>", "<c>"]
    assert list(headers) == fields


def test_raw_values_are_latin_1() -> None:
    headers = Headers.from_raw(
        [(b"x-name", "caf\u00e9".encode("latin-1")), (b"x-raw", b"\xff\x80")]
    )
    assert list(headers) == [("x-name", "caf\u00e9"), ("x-raw", "\xff\x80")]


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=10), st.binary(max_size=10)), max_size=5))
def test_any_raw_fields_come_through_unchanged(fields: list[tuple[bytes, bytes]]) -> None:
    headers = Headers.from_raw(fields)
    assert [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers] == fields


def test_fields_may_come_from_an_iterator() -> None:
    headers = Headers(pair for pair in [("a", "1"), ("b", "2")])
    assert list(headers) == list(headers) == [("a", "1"), ("b", "2")]


def test_values_are_not_printed() -> None:
    headers = Headers([("Authorization", "Bearer hf_secret"), ("Accept", "*/*")])
    assert repr(headers) == "Headers(Authorization, Accept)"
    request = Request("GET", "/", headers)
    assert "hf_secret" not in repr(request)


# Requests


@pytest.mark.parametrize(
    ("target", "path", "pairs"),
    [
        pytest.param("/", "/", [], id="root"),
        pytest.param("/a/b", "/a/b", [], id="path"),
        pytest.param("/a%2Fb%20c/%C3%A9", "/a%2Fb%20c/%C3%A9", [], id="path stays encoded"),
        pytest.param("/a?", "/a", [], id="empty query"),
        pytest.param("/a?x=1&y=2", "/a", [("x", "1"), ("y", "2")], id="two parameters"),
        pytest.param("/a?x=%26%3D&y=a+b", "/a", [("x", "&="), ("y", "a b")], id="decoded"),
        pytest.param("/a?x=&y", "/a", [("x", ""), ("y", "")], id="without values"),
        pytest.param("/a?x=1?2", "/a", [("x", "1?2")], id="second question mark"),
        pytest.param("/a?x=1;y=2", "/a", [("x", "1;y=2")], id="semicolon is no separator"),
        pytest.param("/a?x=%ff", "/a", [("x", "\ufffd")], id="not UTF-8"),
        pytest.param("/a?x=%zz", "/a", [("x", "%zz")], id="not hex"),
        pytest.param("/a?&&", "/a", [], id="nothing between"),
        pytest.param("*", "*", [], id="asterisk"),
    ],
)
def test_a_target_is_path_and_query(target: str, path: str, pairs: list[tuple[str, str]]) -> None:
    request = Request("GET", target)
    assert request.raw_path == path
    assert request.query_pairs == pairs
    assert request.query == dict(pairs)


def test_of_two_parameters_with_one_name_the_last_counts() -> None:
    request = Request("GET", "/?a=1&b=2&a=3")
    assert request.query == {"a": "3", "b": "2"}
    assert request.query_pairs == [("a", "1"), ("b", "2"), ("a", "3")]


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E)).map("/".__add__))
def test_any_target_has_a_path_and_a_query(target: str) -> None:
    request = Request("GET", target)
    assert target.startswith(request.raw_path)
    assert "?" not in request.raw_path
    assert set(request.query) == {name for name, _ in request.query_pairs}


@pytest.mark.parametrize(
    ("fields", "secure", "base_url"),
    [
        pytest.param([("Host", "hub.example")], False, "http://hub.example", id="host"),
        pytest.param([("host", "[::1]:8080")], False, "http://[::1]:8080", id="with a port"),
        pytest.param([("Host", "hub.example")], True, "https://hub.example", id="over TLS"),
        pytest.param([], False, "http://localhost", id="HTTP/1.0 without one"),
        pytest.param([("Host", "")], True, "https://localhost", id="empty"),
    ],
)
def test_base_url(fields: list[tuple[str, str]], secure: bool, base_url: str) -> None:
    assert Request("GET", "/x", Headers(fields), secure=secure).base_url == base_url


def test_requests_share_nothing() -> None:
    first, second = Request("GET", "/"), Request("GET", "/")
    assert first.headers is not second.headers
    assert first.body is not second.body


async def test_an_empty_body_is_empty_as_often_as_it_is_read() -> None:
    body = EmptyBody()
    for _ in range(2):
        assert await body.read(0) == b""
        assert [piece async for piece in body] == []


# Responses


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        pytest.param(Response(200), 0, id="no body"),
        pytest.param(Response(200, body=b"hello"), 5, id="bytes"),
        pytest.param(Response(200, body=blocks(), length=5), 5, id="stream of known length"),
        pytest.param(Response(200, body=blocks()), None, id="stream of unknown length"),
        pytest.param(Response(200, body=blocks(), length=0), 0, id="stream of nothing"),
        pytest.param(Response(200, length=7), 7, id="length without a body, for HEAD"),
        pytest.param(Response(200, body=blocks(), length=5, chunked=True), 5, id="chunked"),
    ],
)
def test_content_length(response: Response, expected: int | None) -> None:
    assert response.content_length == expected


class Logging:
    """A body and its observer, which log their end."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.log.append("body is closed")

    async def before_block(self) -> None:
        raise AssertionError

    def on_block(self, size: int) -> None:
        raise AssertionError

    def on_end(self) -> None:
        self.log.append("end")


async def test_closing_closes_the_body_and_tells_the_observer_once() -> None:
    body = Logging()
    response = Response(200, body=body, observer=body)
    await response.aclose()
    await response.aclose()
    assert body.log == ["end", "body is closed", "body is closed"]


async def test_bytes_need_no_closing() -> None:
    await Response(200, body=b"all").aclose()


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        pytest.param(200, "OK", id="ok"),
        pytest.param(206, "Partial Content", id="partial"),
        pytest.param(504, "Gateway Timeout", id="gateway timeout"),
        pytest.param(299, "", id="none that is known"),
        pytest.param(0, "", id="none at all"),
    ],
)
def test_reason(status: int, reason: str) -> None:
    assert Response(status).reason == reason


def test_responses_share_no_headers() -> None:
    first = Response(200)
    first.headers.append(("ETag", '"a"'))
    assert Response(200).headers == []


def test_json_response() -> None:
    response = json_response(200, {"path": "caf\u00e9"}, [("ETag", '"a"')])
    assert response.status == 200
    assert response.headers == [("Content-Type", "application/json"), ("ETag", '"a"')]
    assert response.body == '{"path": "caf\u00e9"}\n'.encode()


def test_errors_have_one_shape() -> None:
    response = error_response(404, 'no "a" here\n', [("X-Error-Code", "EntryNotFound")])
    assert response.status == 404
    assert ("X-Error-Code", "EntryNotFound") in response.headers
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {"error": 'no "a" here\n'}
    assert response.body.count(b"\n") == 1


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(json_values)
def test_any_json_value_can_be_answered(value: Any) -> None:
    body = json_response(200, value).body
    assert isinstance(body, bytes)
    assert json.loads(body) == value


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("\ud800", id="lone surrogate"),
        pytest.param(b"a/\xff\xfe.bin".decode(errors="surrogateescape"), id="a path not in UTF-8"),
    ],
)
def test_text_that_is_no_unicode_can_be_answered(message: str) -> None:
    # A Hub's JSON error text or a percent-decoded path may hold half a surrogate pair.
    body = error_response(404, message).body
    assert isinstance(body, bytes)
    assert json.loads(body) == {"error": message}


@settings(deadline=None)
@given(st.text(st.characters()))
def test_any_text_can_be_an_error(message: str) -> None:
    body = error_response(400, message).body
    assert isinstance(body, bytes)
    assert list(json.loads(body)) == ["error"]
