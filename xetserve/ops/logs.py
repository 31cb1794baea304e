"""Logging to standard error, one line a record."""

import logging
import re
import sys
from typing import Final

# What must never be printed, wherever it comes from: bearer tokens, and the query of a signed URL.
_SECRETS: Final = re.compile(
    r"(?i)(bearer\s+)[^\s'\",;]+|\bhf_[a-z0-9]{6,}|((?:https?://|/)[^\s'\"?]*\?)[^\s'\",;]+"
)


def mask_secrets(text: str) -> str:
    """Take tokens and URL queries out of a line."""
    return _SECRETS.sub(lambda match: (match[1] or match[2] or "") + "***", text)


class _MaskingFormatter(logging.Formatter):
    """The last line of defence: code should not log secrets, and this sees to it."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_secrets(super().format(record))


def set_up_logging(level: str) -> None:
    """Log records of at least this level (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))
