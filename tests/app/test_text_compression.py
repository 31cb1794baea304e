"""Small answers and their content codings."""

import pytest

from xetserve.app.text_compression import MIN_SIZE, pack_document
from xetserve.http.encoding import decode_content
from xetserve.http.messages import Headers, Request, Response, error_response

TEXT = b"text " * MIN_SIZE


def pack(response: Response, accepted: str | None = "gzip, zstd") -> tuple[dict[str, str], bytes]:
    fields = [] if accepted is None else [("Accept-Encoding", accepted)]
    pack_document(Request("GET", "/", Headers(fields)), response)
    assert isinstance(response.body, bytes)
    return dict(response.headers), response.body


def document(body: bytes = TEXT, media_type: str = "text/html; charset=utf-8") -> Response:
    return Response(200, [("Content-Type", media_type)], body)


@pytest.mark.parametrize(
    ("accepted", "coding"), [("gzip, zstd", "zstd"), ("gzip, br", "gzip"), ("zstd;q=0.1", "zstd")]
)
def test_a_text_is_coded(accepted: str, coding: str) -> None:
    headers, body = pack(document(), accepted)
    assert (headers["Content-Encoding"], headers["Vary"]) == (coding, "Accept-Encoding")
    assert len(body) < len(TEXT) // 10
    assert decode_content(coding, body, len(TEXT)) == TEXT


def test_an_error_is_coded_too() -> None:
    headers, body = pack(error_response(404, "x" * 2000))
    assert b"x" * 2000 in decode_content(headers["Content-Encoding"], body, 3000)


@pytest.mark.parametrize("accepted", [None, "br", "zstd;q=0", "identity"])
def test_who_does_not_ask_gets_the_text(accepted: str | None) -> None:
    headers, body = pack(document(), accepted)
    assert ("Content-Encoding" in headers, headers["Vary"]) == (False, "Accept-Encoding")
    assert body == TEXT


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(document(TEXT[: MIN_SIZE - 1]), id="small"),
        pytest.param(document(media_type="application/octet-stream"), id="no text"),
        pytest.param(Response(200, [], TEXT), id="of no type"),
    ],
)
def test_other_answers_stay_as_they_are(response: Response) -> None:
    before = (list(response.headers), response.body)
    pack(response)
    assert (response.headers, response.body) == before
