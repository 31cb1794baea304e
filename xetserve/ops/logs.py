"""Logging to standard error, one line a record, with secrets masked.

At level debug, the lines of a request begin with its id, like those of the access log.
"""

import logging
import re
import sys
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

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(request)s%(message)s"

_label = ""  # the label of this process, see label_process


def mask_secrets(text: str) -> str:
    """Replace tokens, URL queries and URL passwords in a text by "***"."""
    return _SECRETS.sub(
        lambda match: (match[match.lastindex] if match.lastindex else "") + "***", text
    )


class _MaskingFormatter(logging.Formatter):
    """A formatter that masks secrets, in case the code logs one."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get() if logging.getLogger().isEnabledFor(logging.DEBUG) else ""
        record.request = f"{request_id} " if request_id else ""
        return mask_secrets(super().format(record))


def set_up_logging(level: str) -> None:
    """Log records of at least this level (debug, info, warning, error) to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MaskingFormatter(_FORMAT))
    logging.basicConfig(handlers=[handler], force=True)
    set_log_level(level)


def set_log_level(level: str) -> None:
    """Set the lowest level that is logged."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))


def label_process(label: str) -> None:
    """Add a label to every log line of this process, for example "worker 1"."""
    global _label
    _label = label
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_MaskingFormatter(_FORMAT.replace("%(name)", f"[{label}] %(name)")))


def get_label() -> str:
    """Return the label of this process; "" if it has none."""
    return _label
