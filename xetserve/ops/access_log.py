"""The access log: write one line for each request to standard error, as text or as JSON.

Values from clients (path, user agent, request id) are masked as in all logs, and escaped, so that a
client cannot forge lines or fields. Only the query parameters in SHOWN appear with their values.

    text  time INFO xetserve.access: id peer "method path" status bytes seconds [cut]
          key=value ... "user agent"
    JSON  one object; unknown values are null; times are in milliseconds
"""

import json
import logging
import re
import sys
from typing import Final, Protocol

from xetserve.http.messages import Record, Request
from xetserve.http.relay import select_marks
from xetserve.ops.logs import add_priority, begin_json, format_text, mask_secrets

SHOWN: Final = frozenset({"revision", "type", "repo", "checksum"})  # parameters without secrets
NAME: Final = "xetserve.access"  # of the logger that its lines name
MAX_TEXT: Final = 1024  # characters of a value that a client chose

_UNSAFE: Final = re.compile(r"[^ !#-\[\]-~]")  # not printable ASCII, or a quote or backslash


class AccessLog(Protocol):
    """A log of answered requests."""

    def write(self, request: Request) -> None:
        """Write a line about a request and its record."""
        ...


def make_access_log(form: str, log_format: str = "text") -> AccessLog | None:
    """Return the access log for a form, "text" or "json"; None for "off".

    Args:
        log_format: the form of all other lines: with "json", those of the access log have it too.
    """
    if form == "off":
        return None
    return JsonLog() if "json" in (form, log_format) else TextLog()


def mask_target(target: str) -> str:
    """Return a request target for the log; the values of parameters not in SHOWN are masked."""
    path, mark, query = target.partition("?")
    path = mask_secrets(path)
    if not mark:
        return path[:MAX_TEXT]
    pairs = []
    for pair in query[:MAX_TEXT].split("&"):
        name, equals, value = pair.partition("=")
        if name in SHOWN:
            pairs.append(f"{name}{equals}{mask_secrets(value)}")
        else:
            pairs.append(f"{mask_secrets(name)}=***" if equals else "***")
    return f"{path}?{'&'.join(pairs)}"[:MAX_TEXT]


def escape(text: str) -> str:
    """Escape characters that could end a line or a quoted field, or control a terminal."""
    return _UNSAFE.sub(_escape_one, text)


def _escape_one(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class TextLog:
    """An access log of text lines."""

    def write(self, request: Request) -> None:
        record = request.record
        agent = _user_agent(request)
        text = (
            f"{escape(mask_secrets(request.request_id))} {request.peer or '-'} "
            f'"{escape(request.method)} {escape(mask_target(request.target))}" '
            f"{record.status} {record.sent} {record.total_time:.3f}"
            f"{'' if record.is_complete else ' cut'}"
            f" head={record.head_time:.3f} first={_optional_seconds(record.first_byte_time)}"
            f" upstream={_optional(record.upstream_bytes)} cache={_optional(record.cache_bytes)}"
            f" hits={_optional(record.cache_hits)} verified={_optional_yes(record.is_verified)}"
            f" token={record.token or '-'}"
            f"{''.join(f' {name}={value}' for name, value in _find_marks(request).items())}"
            f' "{"-" if agent is None else escape(agent)}"'
        )
        _write(format_text(logging.INFO, NAME, text))


class JsonLog:
    """An access log of JSON objects, one a line."""

    def write(self, request: Request) -> None:
        record = request.record
        line: dict[str, object] = {
            **begin_json(logging.INFO, NAME),
            "id": mask_secrets(request.request_id),
            "peer": request.peer or None,
            "method": request.method,
            "path": mask_target(request.target),
            "http": request.http_version,
            "status": record.status,
            "bytes": record.sent,
            **_times(record),
            "upstream_bytes": record.upstream_bytes,
            "cache_bytes": record.cache_bytes,
            "cache_hits": record.cache_hits,
            "verified": record.is_verified,
            "complete": record.is_complete,
            "token": record.token,
            **_find_marks(request),
            "user_agent": _user_agent(request),
        }
        _write(json.dumps(line))  # json.dumps escapes all but printable ASCII


def _times(record: Record) -> dict[str, float | None]:
    first = record.first_byte_time
    return {
        "head_ms": round(record.head_time * 1000, 3),
        "first_byte_ms": None if first is None else round(first * 1000, 3),
        "total_ms": round(record.total_time * 1000, 3),
    }


def _find_marks(request: Request) -> dict[str, str]:
    marks = select_marks(request.headers)
    return {name.lower().removeprefix("x-hf-").replace("-", "_"): value for name, value in marks}


def _user_agent(request: Request) -> str | None:
    agent = request.headers.get("user-agent")
    return None if agent is None else mask_secrets(agent[:MAX_TEXT])


def _optional(value: int | None) -> str:
    return "-" if value is None else str(value)


def _optional_seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _optional_yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _write(line: str) -> None:
    # One write for the whole line, since several processes write to the same file.
    try:
        sys.stderr.write(add_priority(logging.INFO, line) + "\n")
    except (OSError, ValueError):  # a closed pipe or a full disk must not fail requests
        logging.getLogger(__name__).debug("cannot write the access log")
