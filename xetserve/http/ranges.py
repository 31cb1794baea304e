"""Range and Content-Range (RFC 9110, section 14)."""

import re
from typing import Final, NamedTuple

_RANGES: Final = re.compile(r"\s*bytes\s*=(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
# Blanks are not given back ("*+"): where a number may be empty, trying each split of a long run
# takes seconds.
_SPEC: Final = re.compile(r"\s*+(\d*)\s*+-\s*+(\d*)\s*+", re.ASCII)
_FROM_START: Final = re.compile(r"bytes=0-\d*", re.ASCII | re.IGNORECASE)
_RESUMPTION: Final = re.compile(
    r"\s*+bytes\s*+=\s*+0*+[1-9]\d*+\s*+-\s*+", re.ASCII | re.IGNORECASE
)
_CONTENT_RANGE: Final = re.compile(
    r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE
)
_MAX_DIGITS: Final = 19  # more than any file has bytes; longer numbers only cost time
MAX_SPANS: Final = 16  # parts of one answer; whoever asks for more gets the whole (RFC 9110, 14.2)
MAX_SPECS: Final = 256  # ranges in one field, before those that touch are joined


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


def parse_ranges(value: str, size: int) -> list[Span] | None:
    """Read a Range header for a representation of size bytes.

    Gives the spans in the client's order; those that overlap or touch are joined, in the place of
    the first of them (RFC 9110, 15.3.7.2). Ranges that have no byte are left out as long as another
    one has.

    None: serve the whole, because the header is malformed, names another unit, or asks for too many
        parts (RFC
    9110, 14.2: a server may ignore the field).

    Raises:
        UnsatisfiableRange: no range has a byte: each starts past the end, or is a suffix of none.
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
    """Read a Range header as parse_ranges does, for one part only; None: serve the whole.

    Raises:
        UnsatisfiableRange: the start lies past the end, or the suffix has no bytes.
    """
    spans = parse_ranges(value, size)
    return spans[0] if spans is not None and len(spans) == 1 else None


def is_from_start(value: str) -> bool:
    """Return whether a Range field asks for one part, from the first byte on."""
    return _FROM_START.fullmatch(value) is not None


def is_resumption(value: str) -> bool:
    """Return whether a Range header asks for all from a later byte on, as whoever has the bytes
    before does.
    """
    return _RESUMPTION.fullmatch(value) is not None


def _is_ordered(first: str, last: str) -> bool:
    """Return whether a range-spec is valid: not a mere dash, and not backwards."""
    if first and last:
        return _to_int(first) <= _to_int(last)
    return bool(first or last)


def _to_span(first: str, last: str, size: int) -> Span | None:
    """Return the bytes that a valid range-spec means; None: there are none."""
    if not first:
        start, end = max(0, size - _to_int(last)), size
    else:
        start, end = _to_int(first), min(size, _to_int(last) + 1) if last else size
    return Span(start, end) if start < end else None


def _join(spans: list[Span]) -> list[Span]:
    """Join spans that overlap or touch; each result stands where the first of its parts stood."""
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
    """Read a Content-Range header: the span, and the whole size unless it is "*"; None:
    malformed.
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
    """Write a Content-Range header for a 206 answer; size None: it is not known."""
    return f"bytes {span.start}-{span.end - 1}/{'*' if size is None else size}"


def format_unsatisfied_range(size: int) -> str:
    """Write a Content-Range header for a 416 answer."""
    return f"bytes */{size}"
