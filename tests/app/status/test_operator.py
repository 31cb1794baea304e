"""Who the operator is."""

import base64

import pytest

from tests.fakes import FakeBody
from xetserve.app.status.operator import COOKIE, LIFETIME, Operator
from xetserve.errors import RequestError
from xetserve.http.messages import Headers, Request

TOKEN = "operator-token-0123"


def ask(*fields: tuple[str, str]) -> Request:
    return Request("GET", "/", Headers(fields))


def basic(text: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(text.encode()).decode()


async def log_in(
    operator: Operator, body: bytes, *, secure: bool = False, prefix: str = ""
) -> dict[str, str] | None:
    request = Request("POST", "/operator", body=FakeBody(body), secure=secure, prefix=prefix)
    response = await operator.log_in(request)
    return None if response is None else dict(response.headers)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        pytest.param(("Authorization", f"Bearer {TOKEN}"), True, id="bearer"),
        pytest.param(basic(f"operator:{TOKEN}"), True, id="password"),
        pytest.param(basic(f":{TOKEN}"), True, id="password alone"),
        pytest.param(("Authorization", f"Bearer {TOKEN}4"), False, id="another"),
        pytest.param(("Authorization", "Bearer hf_clients_token"), False, id="of the Hub"),
        pytest.param(basic(f"{TOKEN}:"), False, id="as a name"),
        pytest.param(("Authorization", "Bearer"), False, id="none"),
        pytest.param(("Authorization", "nonsense"), False, id="nonsense"),
        pytest.param(("Cookie", f"{COOKIE}={TOKEN}"), False, id="as a cookie"),
        pytest.param(("Cookie", f"{COOKIE}=9999999999."), False, id="an unsigned cookie"),
        pytest.param(("Cookie", f"{COOKIE}=²."), False, id="an odd cookie"),
        pytest.param(("X-Other", "1"), False, id="nothing"),
    ],
)
def test_the_operator_is_known_by_the_token(field: tuple[str, str], expected: bool) -> None:
    assert Operator(TOKEN).is_operator(ask(field)) is expected


@pytest.mark.parametrize("value", ["Bearer ", "Bearer x", "", "Basic Og=="])
def test_without_a_token_nobody_is_the_operator(value: str) -> None:
    assert not Operator("").is_operator(ask(("Authorization", value)))


def test_others_are_told_what_they_need() -> None:
    with pytest.raises(RequestError) as caught:
        Operator(TOKEN).insist(ask())
    assert caught.value.status == 401
    assert caught.value.headers == (("WWW-Authenticate", 'Bearer realm="xetserve"'),)


async def test_a_cookie_is_good_for_a_while_and_for_the_same_token() -> None:
    now = 1000.0
    operator = Operator(TOKEN, lambda: now)
    headers = await log_in(operator, f"token=+{TOKEN}&user=x".encode())
    assert headers is not None
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes
    assert TOKEN not in cookie
    request = ask(("Cookie", f"a=b;{cookie}; c=d"))
    assert operator.is_operator(request)
    assert Operator(TOKEN, lambda: now).is_operator(request)  # another worker
    assert not Operator(TOKEN + "x", lambda: now).is_operator(request)
    now += LIFETIME + 1
    assert not operator.is_operator(request)


async def test_an_end_that_was_put_off_is_not_ours() -> None:
    headers = await log_in(Operator(TOKEN), f"token={TOKEN}".encode())
    assert headers is not None
    expires, _, mac = headers["Set-Cookie"].partition(";")[0].partition("=")[2].partition(".")
    forged = f"{COOKIE}={int(expires) + 1}.{mac}"
    assert not Operator(TOKEN).is_operator(ask(("Cookie", forged)))


async def test_over_tls_the_cookie_stays_there() -> None:
    headers = await log_in(Operator(TOKEN), f"token={TOKEN}".encode(), secure=True)
    assert headers is not None
    assert headers["Set-Cookie"].endswith("; Secure")


async def test_below_a_path_the_cookie_stays_there() -> None:
    headers = await log_in(Operator(TOKEN), f"token={TOKEN}".encode(), prefix="/hf")
    assert headers is not None
    assert "; Path=/hf/; " in headers["Set-Cookie"]


async def test_the_operator_may_leave() -> None:
    headers = await log_in(Operator(TOKEN), b"logout=1")
    assert headers is not None
    assert headers["Set-Cookie"].startswith(f"{COOKIE}=; Path=/; Max-Age=0;")


@pytest.mark.parametrize("body", [b"", b"token=", b"token=x", b"\xff", b"token=" + b"%00" * 9])
async def test_another_token_gives_no_cookie(body: bytes) -> None:
    assert await log_in(Operator(TOKEN), body) is None


async def test_a_form_has_an_end() -> None:
    with pytest.raises(RequestError) as caught:
        await log_in(Operator(TOKEN), b"x" * 10_000)
    assert caught.value.status == 413
