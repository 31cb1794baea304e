"""Logging to standard error, one line a record.

With the level debug, the lines of a request begin with its id, as those of the access log do.
"""

import logging
import re
import sys
from typing import Final

from xetserve.base.request_id import REQUEST_ID

# What must never be printed, wherever it comes from: bearer tokens, the query of a signed URL, the
# password of a proxy. Masking too much is fine. Clients choose parts of a line, so every
# alternative starts with a mark that it does not run over again: the time stays linear in the
# line's length.
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

_label = ""  # of this process


def mask_secrets(text: str) -> str:
    """Take tokens, URL queries and URL passwords out of a line."""
    return _SECRETS.sub(
        lambda match: (match[match.lastindex] if match.lastindex else "") + "***", text
    )


class _MaskingFormatter(logging.Formatter):
    """The last line of defence: code should not log secrets, and this sees to it."""

    def format(self, record: logging.LogRecord) -> str:
        request_id = REQUEST_ID.get() if logging.getLogger().isEnabledFor(logging.DEBUG) else ""
        record.request = f"{request_id} " if request_id else ""
        return mask_secrets(super().format(record))


def set_up_logging(level: str) -> None:
    """Log records of at least this level (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MaskingFormatter(_FORMAT))
    logging.basicConfig(handlers=[handler], force=True)
    set_log_level(level)


def set_log_level(level: str) -> None:
    """Log records of at least this level from now on."""
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))


def label_process(label: str) -> None:
    """Say in every line which process it comes from, where several log to the same place."""
    global _label
    _label = label
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_MaskingFormatter(_FORMAT.replace("%(name)", f"[{label}] %(name)")))


def get_label() -> str:
    """Return the label of this process; "" where there is one process only."""
    return _label
