"""Which failure becomes which answer."""

import json

import pytest

from xetserve.app.errors import CHALLENGE, HUB_CLIENT_DELAY, from_error
from xetserve.errors import (
    BrokenStream,
    ConfigError,
    FormatError,
    IntegrityError,
    RangeUnsatisfiable,
    RequestError,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamOffline,
    UpstreamRefused,
    UpstreamTimeout,
    UrlExpired,
    XetserveError,
)
from xetserve.http.messages import Headers, Request

WITH_TOKEN = Headers([("authorization", "Bearer hf_x")])
REQUEST = Request("GET", "/download/o/n/a?x=secret", WITH_TOKEN, request_id="r1")


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        pytest.param(RequestError(400, "m"), 400, [], id="400"),
        pytest.param(RequestError(405, "m", [("Allow", "GET")]), 405, [("Allow", "GET")], id="405"),
        pytest.param(UpstreamError("m"), 502, [], id="502"),
        pytest.param(UpstreamRefused("m"), 502, [], id="refused"),
        pytest.param(UrlExpired("m"), 502, [], id="expired"),
        pytest.param(RangeUnsatisfiable("m"), 502, [], id="416 is the upstream's trouble"),
        pytest.param(UpstreamTimeout("m"), 504, [], id="504"),
        pytest.param(UpstreamBusy("m"), 503, [], id="503"),
        pytest.param(UpstreamBusy("m", retry_after=1.2), 503, [("Retry-After", "2")], id="later"),
        pytest.param(
            UpstreamBusy("m", status=429, headers=[("RateLimit", "r=0")]), 429,
            [("RateLimit", "r=0")], id="429",
        ),
        pytest.param(UpstreamDenied("m", status=401), 401, [CHALLENGE], id="401"),
        pytest.param(UpstreamDenied("m", status=403), 403, [], id="403"),
        pytest.param(
            UpstreamMissing("m", headers=[("X-Error-Code", "EntryNotFound")]), 404,
            [("X-Error-Code", "EntryNotFound")], id="404",
        ),
        pytest.param(IntegrityError("m"), 502, [], id="integrity"),
        pytest.param(FormatError("m"), 502, [], id="format"),
    ],
)  # fmt: skip
def test_from_error(error: XetserveError, status: int, headers: list[tuple[str, str]]) -> None:
    response = from_error(error, REQUEST)
    assert response.status == status
    assert response.headers == [("Content-Type", "application/json"), *headers]
    assert isinstance(response.body, bytes)
    assert json.loads(response.body)["error"].endswith("m")


HUB_CLIENT = {"user-agent": "unknown/None; hf_hub/2.4.0; python/3.11.7"}
LATER = [("Retry-After", str(HUB_CLIENT_DELAY))]


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        pytest.param(UpstreamError("m"), 429, LATER, id="502"),
        pytest.param(UpstreamTimeout("m"), 429, LATER, id="504"),
        pytest.param(UpstreamBusy("m"), 429, LATER, id="503"),
        pytest.param(UpstreamBusy("m", retry_after=1), 429, [("Retry-After", "1")], id="later"),
        pytest.param(UpstreamRefused("m"), 502, [], id="refused"),
        pytest.param(UpstreamOffline("m"), 504, [], id="offline"),
        pytest.param(UpstreamMissing("m"), 404, [], id="404"),
        pytest.param(IntegrityError("m"), 502, [], id="integrity"),
    ],
)
@pytest.mark.parametrize("span", [{}, {"range": "bytes=100-"}])
def test_huggingface_hub_waits_for_what_may_pass(
    error: XetserveError, status: int, headers: list[tuple[str, str]], span: dict[str, str]
) -> None:
    fields = Headers({**HUB_CLIENT, **span}.items())
    response = from_error(error, Request("GET", "/o/n/resolve/main/a", fields))
    assert response.status == status
    assert response.headers == [("Content-Type", "application/json"), *headers]


@pytest.mark.parametrize(
    ("method", "path", "changed"),
    [
        ("HEAD", "/o/n/resolve/main/a", {}),
        ("GET", "/api/models/o/n", {}),
        ("GET", "/o/n/resolve/main/a", {"range": "bytes=100-200"}),
        ("GET", "/o/n/resolve/main/a", {"user-agent": "curl/8.5.0"}),
    ],
)
def test_others_are_told_of_the_failure(method: str, path: str, changed: dict[str, str]) -> None:
    fields = Headers({**HUB_CLIENT, **changed}.items())
    assert from_error(UpstreamTimeout("m"), Request(method, path, fields)).status == 504


@pytest.mark.parametrize(
    ("error", "is_noted"),
    [
        pytest.param(UpstreamDenied("m", status=401), True, id="401"),
        pytest.param(UpstreamDenied("m", status=403, code="GatedRepo"), True, id="gated"),
        pytest.param(UpstreamMissing("m", code="RepoNotFound"), True, id="no repository"),
        pytest.param(UpstreamMissing("m", code="EntryNotFound"), False, id="no file"),
        pytest.param(UpstreamDenied("m", status=403), False, id="disabled"),
        pytest.param(UpstreamError("m"), False, id="a failure"),
    ],
)
def test_a_refusal_without_a_token_says_that_none_came(
    error: UpstreamError, is_noted: bool
) -> None:
    error.headers = (("X-Error-Message", "m"), ("X-Error-Code", "c"))
    note = " (no token came with the request)"
    for headers, expected in ((Headers(), f"m{note if is_noted else ''}"), (WITH_TOKEN, "m")):
        response = from_error(error, Request("GET", "/o/n/resolve/main/a", headers))
        assert isinstance(response.body, bytes)
        assert json.loads(response.body)["error"] == expected
        assert ("X-Error-Message", expected) in response.headers
        assert ("X-Error-Code", "c") in response.headers


@pytest.mark.parametrize("error", [BrokenStream("x"), ConfigError("x"), XetserveError("x")])
def test_what_is_no_clients_business_flies_on(error: XetserveError) -> None:
    with pytest.raises(type(error)):
        from_error(error, REQUEST)


def test_neither_causes_nor_queries_show(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    error = UpstreamError("the data host answered 500")
    error.__cause__ = ValueError("http://data.test/x?X-Sig=secret")
    response = from_error(error, REQUEST)
    assert isinstance(response.body, bytes)
    assert b"secret" not in response.body
    assert "secret" not in caplog.text
    assert "r1" in caplog.text
