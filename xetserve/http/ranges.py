"""Range and Content-Range (RFC 9110, section 14): parse and write both fields."""

import re
from typing import Final, NamedTuple

# Blanks may stand around the field and around commas, nowhere else (RFC 9110, 14.1.2 and 5.6.1).
# They match possessively ("*+"): a number may be empty, and backtracking over a long run of blanks
# takes seconds.
_RANGES: Final = re.compile(r"\s*bytes=(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_SPEC: Final = re.compile(r"\s*+(\d*)-(\d*)\s*+", re.ASCII)
_FROM_START: Final = re.compile(r"bytes=0-\d*", re.ASCII | re.IGNORECASE)
_RESUMPTION: Final = re.compile(r"\s*+bytes=\s*+0*+[1-9]\d*+-\s*+", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE: Final = re.compile(
    r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE
)
_MAX_DIGITS: Final = 19  # larger than any file; converting longer numbers only costs time
MAX_SPANS: Final = 16  # parts in one response; a request for more gets the whole (RFC 9110, 14.2)
MAX_SPECS: Final = 256  # ranges in one field, before adjacent ones are joined


class Span(NamedTuple):
    """Byte positions [start, end) of a representation."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Return the number of bytes in the span."""
        return self.end - self.start


class UnsatisfiableRange(ValueError):
    """The representation has no byte of a valid Range; the status is 416."""


def parse_ranges(value: str, size: int) -> list[Span] | None:
    """Parse a Range header for a representation of size bytes.

    Returns the spans in the client's order. Spans that overlap or touch are joined at the place of
    the first one (RFC 9110, 15.3.7.2). Ranges without a byte are dropped if another range has one.

    Returns None if the field is to be ignored and the whole representation served (RFC 9110, 14.2):
    it is malformed, has another unit, or requests more than MAX_SPANS parts.

    Raises:
        UnsatisfiableRange: no range has a byte: each one starts past the end or is an empty suffix.
    """
    match = _RANGES.fullmatch(value)
    specs = [] if match is None else [spec for spec in match[1].split(",") if spec.strip()]
    if not 0 < len(specs) <= MAX_SPECS:
        return None
    spans: list[Span] = []
    for text in specs:
        spec = _SPEC.fullmatch(text)
        if spec is None or not _is_ordered(spec[1], spec[2]):
            return None
        span = _to_span(spec[1], spec[2], size)
        if span is not None:
            spans.append(span)
    if not spans:
        raise UnsatisfiableRange
    joined = _join(spans)
    return joined if len(joined) <= MAX_SPANS else None


def parse_range(value: str, size: int) -> Span | None:
    """Parse a Range header as parse_ranges does; None if the result is not exactly one part.

    Raises:
        UnsatisfiableRange: no range has a byte.
    """
    spans = parse_ranges(value, size)
    return spans[0] if spans is not None and len(spans) == 1 else None


def is_from_start(value: str) -> bool:
    """Return whether a Range field requests one range that starts at the first byte."""
    return _FROM_START.fullmatch(value) is not None


def is_resumption(value: str) -> bool:
    """Return whether a Range field requests all bytes from a later byte on.

    A client that resumes a download sends such a field.
    """
    return _RESUMPTION.fullmatch(value) is not None


def _is_ordered(first: str, last: str) -> bool:
    """Return whether a range-spec is valid: it has a number, and first is not after last."""
    if first and last:
        return _to_int(first) <= _to_int(last)
    return bool(first or last)


def _to_span(first: str, last: str, size: int) -> Span | None:
    """Return the span of a valid range-spec; None: it has no byte."""
    if not first:
        start, end = max(0, size - _to_int(last)), size
    else:
        start, end = _to_int(first), min(size, _to_int(last) + 1) if last else size
    return Span(start, end) if start < end else None


def _join(spans: list[Span]) -> list[Span]:
    """Join spans that overlap or touch; each result takes the place of its first part."""
    order = sorted(range(len(spans)), key=lambda number: spans[number])
    joined: list[tuple[int, Span]] = []  # (place, span)
    for number in order:
        span = spans[number]
        if joined and span.start <= joined[-1][1].end:
            place, last = joined[-1]
            joined[-1] = (min(place, number), Span(last.start, max(last.end, span.end)))
        else:
            joined.append((number, span))
    return [span for _, span in sorted(joined)]


def _to_int(digits: str) -> int:
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS


def parse_content_range(value: str) -> tuple[Span, int | None] | None:
    """Parse a Content-Range header into the span and the complete size, None for "*".

    Returns None if the field is malformed.
    """
    match = _CONTENT_RANGE.fullmatch(value.strip())
    if match is None:
        return None
    first, last, total = match.groups()
    span = Span(int(first), int(last) + 1)
    size = None if total == "*" else int(total)
    if span.size < 1 or (size is not None and span.end > size):  # RFC 9110, 14.4
        return None
    return span, size


def format_content_range(span: Span, size: int | None) -> str:
    """Return the Content-Range of a 206 response; size None: unknown."""
    return f"bytes {span.start}-{span.end - 1}/{'*' if size is None else size}"


def format_unsatisfied_range(size: int) -> str:
    """Return the Content-Range of a 416 response."""
    return f"bytes */{size}"
