"""Bearer tokens: their form, not their worth."""

import base64
import re

import pytest
from blake3 import blake3

from xetserve.app.auth import MAX_TOKEN_SIZE, fingerprint, get_token
from xetserve.errors import RequestError
from xetserve.http.messages import Headers, Request


def request_with(*values: str) -> Request:
    return Request("GET", "/", Headers([("authorization", value) for value in values]))


@pytest.mark.parametrize(
    ("value", "token"),
    [
        ("Bearer hf_abc", "hf_abc"),
        ("bearer hf_abc", "hf_abc"),
        ("BEARER   hf_abc", "hf_abc"),
        (" Bearer hf_abc ", "hf_abc"),
        ("Bearer a.b-c_d~e+f/g==", "a.b-c_d~e+f/g=="),
        ("Bearer " + "x" * MAX_TOKEN_SIZE, "x" * MAX_TOKEN_SIZE),
    ],
)
@pytest.mark.parametrize("required", [True, False])
def test_a_token_is_taken_as_it_is(value: str, token: str, required: bool) -> None:
    assert get_token(request_with(value), required=required) == token


def test_none_is_needed_where_none_is_required() -> None:
    assert get_token(Request("GET", "/"), required=False) is None


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param([""], id="empty"),
        pytest.param(["Bearer"], id="scheme alone"),
        pytest.param(["Bearer "], id="scheme and blank"),
        pytest.param(["hf_secret"], id="no scheme"),
        pytest.param(["Basic aGY6c2VjcmV0"], id="another scheme"),
        pytest.param(["Bearerhf_secret"], id="no blank"),
        pytest.param(["Bearer hf_secret more"], id="two words"),
        pytest.param(["Bearer hf_secret, Bearer b"], id="a list"),
        pytest.param(["Bearer hf_secret\r\nX: y"], id="a line break"),
        pytest.param(["Bearer hf_secret\u20ac"], id="not ASCII"),
        pytest.param(["Bearer \uff48f"], id="wide letters"),
        pytest.param(["Bearer hf=secret"], id="= in the middle"),
        pytest.param(["Bearer " + "x" * (MAX_TOKEN_SIZE + 1)], id="too long"),
        pytest.param(["Bearer hf_secret", "Bearer hf_secret"], id="two headers"),
    ],
)
def test_anything_else_is_401_and_is_not_repeated(values: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        get_token(request_with(*values), required=True)
    error = caught.value
    assert error.status == 401
    assert error.headers == (("WWW-Authenticate", 'Bearer realm="xetserve"'),)
    assert "secret" not in str(error)


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer"])
def test_a_token_from_a_variable_that_is_not_set(value: str) -> None:
    with pytest.raises(RequestError, match="the token in the Authorization header is empty: is "):
        get_token(request_with(value), required=True)


def test_a_bad_one_is_refused_even_where_none_is_required() -> None:
    with pytest.raises(RequestError):
        get_token(request_with("Basic aGY6c2VjcmV0"), required=False)


def test_a_fingerprint_tells_tokens_apart_and_nothing_else() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}", fingerprint("hf_a"))
    assert fingerprint("hf_a") == fingerprint("hf_a") != fingerprint("hf_b")
    assert fingerprint("hf_a") != blake3(b"hf_a").hexdigest(length=4)


def make_basic(text: str) -> Request:
    return request_with(f"Basic {base64.b64encode(text.encode()).decode()}")


def test_a_password_is_a_token_where_git_asks() -> None:
    for text in ("me:hf_abc", ":hf_abc"):
        assert get_token(make_basic(text), required=False, takes_basic=True) == "hf_abc"


@pytest.mark.parametrize(
    "request_", [make_basic("hf_abc"), make_basic("me:"), make_basic("me:a b"), make_basic("ü:ü"),
                 request_with("Basic *"), request_with("Basic "), request_with("Basic")]
)  # fmt: skip
def test_other_credentials_are_401(request_: Request) -> None:
    with pytest.raises(RequestError) as caught:
        get_token(request_, required=False, takes_basic=True)
    assert caught.value.status == 401
