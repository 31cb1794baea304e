"""The Date field of responses, formatted once a second."""

import time
from email.utils import formatdate

_cache: tuple[int, str] = (0, "")


def http_date() -> str:
    """Return the current time as an HTTP-date (RFC 9110, 5.6.7)."""
    global _cache
    now = int(time.time())
    if _cache[0] != now:
        _cache = (now, formatdate(now, usegmt=True))
    return _cache[1]
