"""The access log: a line for each request on standard error, as text or as JSON.

What clients choose (path, user agent, request id) is masked like everything that is logged, and
escaped, so that a line is a line and a field a field whatever they send. Of the query only the
parameters show that name what was asked for.

    text  time INFO xetserve.access: id peer "method path" status bytes seconds [cut]
          key=value ... "user agent"
    JSON  one object; unknown values are null; times in milliseconds
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Final, Protocol

from xetserve.http.messages import Record, Request
from xetserve.ops.logs import get_label, mask_secrets

SHOWN: Final = frozenset({"revision", "type", "repo", "checksum"})  # parameters that are no secrets
MAX_TEXT: Final = 1024  # characters of a value that a client chose

_UNSAFE: Final = re.compile(
    r"[^ !#-\[\]-~]"
)  # all but printable ASCII; quotation marks, backslashes


class AccessLog(Protocol):
    """Whoever takes requests that are answered."""

    def write(self, request: Request) -> None:
        """Log a request, from its record."""
        ...


def make_access_log(form: str) -> AccessLog | None:
    """Return the access log of a form: text, json; None for off."""
    if form == "off":
        return None
    return JsonLog() if form == "json" else TextLog()


def mask_target(target: str) -> str:
    """Make a request target fit to be logged: parameters that could be secrets lose their
    values.
    """
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
    """Escape what could end a line or a quoted field, or steer a terminal."""
    return _UNSAFE.sub(_escape_one, text)


def _escape_one(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class TextLog:
    """Lines for people, and for grep."""

    def write(self, request: Request) -> None:
        record = request.record
        agent = _user_agent(request)
        now = datetime.now().astimezone()
        _write(
            f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d} "
            f"INFO {_label()}xetserve.access: "
            f"{escape(mask_secrets(request.request_id))} {request.peer or '-'} "
            f'"{escape(request.method)} {escape(mask_target(request.target))}" '
            f"{record.status} {record.sent} {record.total_time:.3f}"
            f"{'' if record.is_complete else ' cut'}"
            f" head={record.head_time:.3f} first={_optional_seconds(record.first_byte_time)}"
            f" upstream={_optional(record.upstream_bytes)} cache={_optional(record.cache_bytes)}"
            f" hits={_optional(record.cache_hits)} verified={_optional_yes(record.is_verified)}"
            f" token={record.token or '-'}"
            f' "{"-" if agent is None else escape(agent)}"'
        )


class JsonLog:
    """Objects for programs."""

    def write(self, request: Request) -> None:
        record = request.record
        line: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
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
            "user_agent": _user_agent(request),
        }
        if label := get_label():
            line["process"] = label
        _write(json.dumps(line))  # ASCII alone: whatever is odd is escaped


def _times(record: Record) -> dict[str, float | None]:
    first = record.first_byte_time
    return {
        "head_ms": round(record.head_time * 1000, 3),
        "first_byte_ms": None if first is None else round(first * 1000, 3),
        "total_ms": round(record.total_time * 1000, 3),
    }


def _user_agent(request: Request) -> str | None:
    agent = request.headers.get("user-agent")
    return None if agent is None else mask_secrets(agent[:MAX_TEXT])


def _optional(value: int | None) -> str:
    return "-" if value is None else str(value)


def _optional_seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _optional_yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def _label() -> str:
    label = get_label()
    return f"[{label}] " if label else ""


def _write(line: str) -> None:
    # In one piece: several processes write to the same place.
    try:
        sys.stderr.write(line + "\n")
    except (
        OSError,
        ValueError,
    ):  # nobody reads it, or the disk is full: no reason to fail requests
        logging.getLogger(__name__).debug("the access log cannot be written")
