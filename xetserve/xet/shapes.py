"""Checks of JSON values from other servers: type and bounds.

Each function returns the value, or raises FormatError. The message does not quote the value, which
may be a signed URL.
"""

from math import isfinite
from typing import Any, Final
from urllib.parse import urlsplit

from xetserve.errors import FormatError

MAX_TIME: Final = 1e15  # Unix seconds; later than any clock, and still exact as a float


def check_integer(value: Any, limit: int) -> int:
    """Check and return an integer from 0 to limit, inclusive."""
    if type(value) is not int or not 0 <= value <= limit:
        raise FormatError(f"a number is not within 0..{limit}")
    return value


def check_time(value: Any) -> float:
    """Check and return a time in Unix seconds, 0 to MAX_TIME."""
    if type(value) not in (int, float) or not (isfinite(value) and 0 <= value <= MAX_TIME):
        raise FormatError("a time is not in Unix seconds")
    return float(value)


def check_text(value: Any) -> str:
    """Check and return a string."""
    if not isinstance(value, str):
        raise FormatError("a hash or URL is not a string")
    return value


def check_list(value: Any) -> list[Any]:
    """Check and return a list."""
    if not isinstance(value, list):
        raise FormatError("a list is expected")
    return value


def check_url(value: Any) -> str:
    """Check and return an http(s) URL, unchanged; it is safe to put into a request line."""
    url = check_text(value)
    if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        raise FormatError("a data URL has a character that is not allowed in URLs")
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # bad brackets or a bad port; urlsplit's message quotes them
        is_http = False
    if not is_http:
        raise FormatError("a data URL is not http(s) with a host")
    return url
