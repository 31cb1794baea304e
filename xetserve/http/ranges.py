"""Range and Content-Range (RFC 9110, section 14)."""

import re
from typing import Final, NamedTuple

_SINGLE: Final = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE: Final = re.compile(
    r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE
)
_MAX_DIGITS: Final = 19  # more than any file has bytes; longer numbers only cost time


class Span(NamedTuple):
    """Byte positions [start, end) of a representation."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes in the span."""
        return self.end - self.start


class UnsatisfiableRange(ValueError):
    """A valid range of which the representation has no byte: 416."""


def parse_range(value: str, size: int) -> Span | None:
    """Read a Range header for a representation of size bytes.

    None: serve the whole, because the header is malformed, names another unit, or asks for
    several ranges (RFC 9110, 14.2: a server may ignore the field).

    Raises:
        UnsatisfiableRange: the start lies past the end, or the suffix has no bytes.
    """
    match = _SINGLE.fullmatch(value)
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        suffix = _to_int(last)
        if suffix == 0 or size == 0:
            raise UnsatisfiableRange
        return Span(max(0, size - suffix), size)
    start = _to_int(first)
    if last and _to_int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableRange
    return Span(start, min(size, _to_int(last) + 1) if last else size)


def _to_int(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def parse_content_range(value: str) -> tuple[Span, int | None] | None:
    """Read a Content-Range header: the span, and the whole size unless it is "*"; None: malformed."""
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, total = match.groups()
    span = Span(int(first), int(last) + 1)
    size = None if total == "*" else int(total)
    if span.size < 1 or (size is not None and span.end > size):  # RFC 9110, 14.4
        return None
    return span, size


def format_content_range(span: Span, size: int) -> str:
    """Write a Content-Range header for a 206 answer."""
    return f"bytes {span.start}-{span.end - 1}/{size}"


def format_unsatisfied_range(size: int) -> str:
    """Write a Content-Range header for a 416 answer."""
    return f"bytes */{size}"
