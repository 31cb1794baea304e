"""Logging to standard error, one line a record, as text or as JSON, with secrets masked.

At level debug, the lines of a request begin with its id, like those of the access log.

Where standard error is the journal of systemd, each line begins with its priority (sd-daemon(3)),
which the journal removes, and text has no time, which the journal adds.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from xetserve.base.request_id import REQUEST_ID

# Secrets that must never be printed: bearer tokens, queries of signed URLs, passwords of proxies.
# The pattern may mask too much. Clients choose parts of a line, so each alternative starts with a
# marker that its rest does not match again: matching takes linear time.
_SECRETS: Final = re.compile(
    r"""(?ix)
      ( (?: (?: (?:bearer|basic) (?:\s|%20)+ | access[-_]?token ['"]? \s* [:=] \s* ) ['"]? )+ )
      [^\s'",;?]+
    | (?-i:hf_) (?: [a-z0-9]{6,} | (?:oauth|jwt)_ ) [\w.-]*
    | ( // ) [^/?\s"]* (?=@)
    | ( \? ) \S+
    """
)

# Levels and the priorities of syslog(3) that the journal knows.
_PRIORITIES: Final = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
_DEBUG_PRIORITY: Final = 7

_label = ""  # the label of this process, see label_process
_form = "text"  # see set_log_format


def mask_secrets(text: str) -> str:
    """Replace tokens, URL queries and URL passwords in a text by "***"."""
    return _SECRETS.sub(
        lambda match: (match[match.lastindex] if match.lastindex else "") + "***", text
    )


class _Formatter(logging.Formatter):
    """A formatter that masks secrets, in case the code logs one."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get() if logging.getLogger().isEnabledFor(logging.DEBUG) else ""
        text = super().format(record)  # "message", then the traceback if there is one
        if _form == "json":
            line = format_json(record.levelno, record.name, text, request_id)
        else:
            start = f"{request_id} " if request_id else ""
            line = mask_secrets(format_text(record.levelno, record.name, start + text))
        return add_priority(record.levelno, line)


def format_text(level: int, name: str, message: str) -> str:
    """Return the text of a record: time, level, process, logger and message."""
    now = datetime.now().astimezone()
    time = "" if _is_journal else f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d} "
    label = f"[{_label}] " if _label else ""
    return f"{time}{logging.getLevelName(level)} {label}{name}: {message}"


def format_json(level: int, name: str, message: str, request_id: str = "") -> str:
    """Return a record as a JSON object in one line."""
    line = {**begin_json(level, name), "message": mask_secrets(message)}
    if request_id:
        line["id"] = mask_secrets(request_id)
    return json.dumps(line)  # escapes all but printable ASCII


def begin_json(level: int, name: str) -> dict[str, object]:
    """Return the members of every JSON line: time, level, logger and the process's label."""
    line: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(level).lower(),
        "logger": name,
    }
    return line | ({"process": _label} if _label else {})


def add_priority(level: int, text: str) -> str:
    """Return lines for the journal with their priority; for others, the text unchanged."""
    if not _is_journal:
        return text
    priority = next((number for least, number in _PRIORITIES if level >= least), _DEBUG_PRIORITY)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def leads_to_journal(environ: Mapping[str, str]) -> bool:
    """Return whether standard error is the journal's socket, which JOURNAL_STREAM names.

    Children inherit the variable, but perhaps not the socket. Source: systemd.exec(5).
    """
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


_is_journal = leads_to_journal(os.environ)


def set_up_logging(level: str, form: str = "text") -> None:
    """Log records of at least this level (debug, info, warning, error) to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler], force=True)
    set_log_level(level)
    set_log_format(form)


def set_log_level(level: str) -> None:
    """Set the lowest level that is logged."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))


def set_log_format(form: str) -> None:
    """Set the form of all lines, text or json."""
    global _form
    _form = form


def label_process(label: str) -> None:
    """Add a label to every log line of this process, for example "worker 1"."""
    global _label
    _label = label


def write_error(message: str) -> None:
    """Write the error that ends the program to standard error, in the form of the log."""
    text = mask_secrets(f"xetserve: {message}")
    if _form == "json":
        text = format_json(logging.ERROR, "xetserve", message)
    sys.stderr.write(add_priority(logging.ERROR, text) + "\n")
