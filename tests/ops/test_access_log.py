"""The access log: what is in a line, and what clients cannot do to it."""

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.http.messages import Headers, Record, Request
from xetserve.ops import logs
from xetserve.ops.access_log import JsonLog, TextLog, escape, make_access_log, mask_target
from xetserve.ops.logs import label_process

SECRET = "S3CR3T"


def make_request(**changes: object) -> Request:
    request = Request(
        "GET",
        "/download/a/b/c.bin?revision=main",
        Headers([("User-Agent", "curl/8")]),
        request_id="0123456789abcdef",
        peer="192.0.2.1",
        record=Record(
            status=200,
            sent=5,
            is_complete=True,
            head_time=0.0123,
            first_byte_time=0.02,
            total_time=1.5,
            token="a1b2c3d4",
            is_verified=True,
            upstream_bytes=4,
            cache_bytes=1,
            cache_hits=2,
        ),
    )
    for name, value in changes.items():
        setattr(request, name, value)
    return request


@pytest.fixture(autouse=True)
def _no_label() -> Iterator[None]:
    yield
    logs._label = ""


def text_of(request: Request, capsys: pytest.CaptureFixture[str]) -> str:
    TextLog().write(request)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    return err[:-1]


def json_of(request: Request, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    JsonLog().write(request)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    found: dict[str, object] = json.loads(line)
    return found


def test_a_text_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = text_of(make_request(), capsys)
    assert re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", "", line) == (
        "INFO xetserve.access: 0123456789abcdef 192.0.2.1 "
        '"GET /download/a/b/c.bin?revision=main" 200 5 1.500 '
        "head=0.012 first=0.020 upstream=4 cache=1 hits=2 verified=yes token=a1b2c3d4 "
        '"curl/8"'
    )


def test_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = json_of(make_request(), capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(line.pop("time")))
    assert line == {
        "level": "info", "logger": "xetserve.access",
        "id": "0123456789abcdef", "peer": "192.0.2.1", "method": "GET",
        "path": "/download/a/b/c.bin?revision=main", "http": "1.1", "status": 200, "bytes": 5,
        "head_ms": 12.3, "first_byte_ms": 20.0, "total_ms": 1500.0, "upstream_bytes": 4,
        "cache_bytes": 1, "cache_hits": 2, "verified": True, "complete": True,
        "token": "a1b2c3d4", "user_agent": "curl/8",
    }  # fmt: skip


def test_what_is_not_known_is_a_dash_or_null(capsys: pytest.CaptureFixture[str]) -> None:
    request = Request("-", "-", record=Record(status=400))
    line = text_of(request, capsys)
    assert ' - "- -" 400 0 0.000 cut head=0.000 first=- ' in line
    assert line.endswith(' upstream=- cache=- hits=- verified=- token=- "-"')
    found = json_of(request, capsys)
    assert (found["peer"], found["verified"], found["token"]) == (None, None, None)
    assert (found["first_byte_ms"], found["user_agent"]) == (None, None)
    assert found["complete"] is False


def test_marks_of_a_request_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    trace = f"00-{'a1' * 16}-{'b2' * 8}-01"
    headers = Headers([("X-HF-Download-Counter", "1"), ("Traceparent", trace)])
    request = make_request(headers=headers)
    assert text_of(request, capsys).endswith(
        f' token=a1b2c3d4 download_counter=1 traceparent={trace} "-"'
    )
    found = json_of(request, capsys)
    assert (found["download_counter"], found["traceparent"]) == ("1", trace)
    headers = Headers([("X-HF-Download-Counter", 'x"'), ("traceparent", f"{trace}\t{SECRET}")])
    assert text_of(make_request(headers=headers), capsys).endswith(' token=a1b2c3d4 "-"')


def test_a_worker_says_who_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    label_process("worker 3")
    assert " INFO [worker 3] xetserve.access: " in text_of(make_request(), capsys)
    assert json_of(make_request(), capsys)["process"] == "worker 3"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param("/a/b", "/a/b", id="no query"),
        pytest.param("/a?", "/a?***", id="an empty one"),
        pytest.param("/a?revision=refs/pr/1&type=dataset&repo=a/b", None, id="what was asked for"),
        pytest.param(f"/a?token={SECRET}", "/a?token=***", id="token"),
        pytest.param(f"/a?X-Amz-Signature={SECRET}&type=model", "/a?X-Amz-Signature=***&type=model",
                     id="signature"),
        pytest.param(f"/a?{SECRET}", "/a?***", id="without a name"),
        pytest.param(f"/a?revision=hf_{SECRET}abc", "/a?revision=***", id="token as a revision"),
        pytest.param(f"/a?%72evision={SECRET}", "/a?%72evision=***", id="a name in disguise"),
        pytest.param(f"/a/hf_{SECRET}abc/b", "/a/***/b", id="token in the path"),
        pytest.param(f"/a?hf_{SECRET}abc=1", "/a?***=***", id="token as a name"),
        pytest.param(f"/a?x=1?revision={SECRET}", "/a?x=***", id="a second question mark"),
    ],
)  # fmt: skip
def test_a_target_is_masked(target: str, expected: str | None) -> None:
    assert mask_target(target) == (target if expected is None else expected)


def test_a_long_target_is_cut() -> None:
    assert len(mask_target("/" + "a" * 60_000 + "?revision=b")) < 2048
    assert len(mask_target("/a?revision=" + "b" * 60_000)) < 2048


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("a\r\nb", r"a\x0d\x0ab", id="line break"),
        pytest.param('a" 200 "', r"a\x22 200 \x22", id="quotation marks"),
        pytest.param("\\x41", r"\x5cx41", id="backslash"),
        pytest.param("\x1b[2J", r"\x1b[2J", id="steering a terminal"),
        pytest.param("\x9b2J\xff", r"\x9b2J\xff", id="steering in Latin-1"),
        pytest.param("\u2028", r"\u2028", id="another line break"),
    ],
)
def test_values_are_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


@settings(deadline=None)
@given(st.text(), st.text(), st.text())
def test_no_client_can_forge_a_line(method: str, target: str, agent: str) -> None:
    request = make_request(
        method=method, target=target, headers=Headers([("User-Agent", agent)]), request_id="x"
    )
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xetserve.ops.access_log._write", lines.append)
        TextLog().write(request)
        JsonLog().write(request)
    text, encoded = lines
    assert text.isascii()
    assert text.isprintable()
    assert len(re.findall('"', text)) == 4
    assert encoded.isascii()
    assert encoded.isprintable()
    assert json.loads(encoded)["status"] == 200


def test_a_user_agent_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    request = make_request(headers=Headers([("User-Agent", f"x Bearer {SECRET}")]))
    assert SECRET not in text_of(request, capsys)
    assert json_of(request, capsys)["user_agent"] == "x Bearer ***"


def test_a_form_has_its_log() -> None:
    assert isinstance(make_access_log("text"), TextLog)
    assert isinstance(make_access_log("json"), JsonLog)
    assert make_access_log("off") is None
    assert isinstance(make_access_log("text", "json"), JsonLog)
    assert make_access_log("off", "json") is None


def test_a_log_that_cannot_be_written_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError("no space left")

    monkeypatch.setattr("sys.stderr", Full())
    TextLog().write(make_request())
