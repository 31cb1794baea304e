import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xetserve.http.ranges import (
    MAX_SPANS,
    MAX_SPECS,
    Span,
    UnsatisfiableRange,
    format_content_range,
    format_unsatisfied_range,
    is_from_start,
    is_resumption,
    parse_content_range,
    parse_range,
    parse_ranges,
)

RECONSTRUCTION: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data/reconstruction.json").read_text()
)["reconstruction"]

MAX_SIZE = 2**63 - 1
HUGE = "9" * 5000


def ask(value: str, size: int) -> Span | int | None:
    """What parse_range says, 416 for an unsatisfiable range."""
    try:
        return parse_range(value, size)
    except UnsatisfiableRange:
        return 416


def oracle(first: int | None, last: int | None, size: int) -> Span | int | None:
    """RFC 9110, 14.1.2, byte by byte."""
    if first is None and last is None:
        return None
    if first is None:
        assert last is not None
        wanted = [at for at in range(size) if at >= size - last]
    elif last is None:
        wanted = [at for at in range(size) if at >= first]
    elif last < first:
        return None
    else:
        wanted = [at for at in range(size) if first <= at <= last]
    return Span(wanted[0], wanted[-1] + 1) if wanted else 416


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        pytest.param("bytes=0-4", 10, Span(0, 5), id="first five"),
        pytest.param("bytes=0-0", 10, Span(0, 1), id="first byte"),
        pytest.param("bytes=9-9", 10, Span(9, 10), id="last byte"),
        pytest.param("bytes=0-9", 10, Span(0, 10), id="all of it"),
        pytest.param("bytes=0-", 10, Span(0, 10), id="all of it, open"),
        pytest.param("bytes=5-", 10, Span(5, 10), id="from the middle"),
        pytest.param("bytes=-3", 10, Span(7, 10), id="last three"),
        pytest.param("bytes=-10", 10, Span(0, 10), id="all of it, from the end"),
        pytest.param("bytes=-11", 10, Span(0, 10), id="more than there is, from the end"),
        pytest.param("bytes=5-10", 10, Span(5, 10), id="end past the end"),
        pytest.param(f"bytes=5-{HUGE}", 10, Span(5, 10), id="end of 5000 digits"),
        pytest.param(f"bytes=-{HUGE}", 10, Span(0, 10), id="suffix of 5000 digits"),
        pytest.param("bytes=" + "0" * 5000 + "5-7", 10, Span(5, 8), id="5000 zeros"),
        pytest.param(f"bytes={MAX_SIZE - 1}-", MAX_SIZE, Span(MAX_SIZE - 1, MAX_SIZE), id="8 EiB"),
        pytest.param("bytes=10-", 10, 416, id="starts at the end"),
        pytest.param("bytes=10-20", 10, 416, id="starts at the end, closed"),
        pytest.param("bytes=11-11", 10, 416, id="starts past the end"),
        pytest.param(f"bytes={HUGE}-", 10, 416, id="start of 5000 digits"),
        pytest.param(f"bytes={HUGE}-{HUGE}", 10, 416, id="both of 5000 digits"),
        pytest.param("bytes=-0", 10, 416, id="last none"),
        pytest.param("bytes=0-", 0, 416, id="of nothing"),
        pytest.param("bytes=0-0", 0, 416, id="first byte of nothing"),
        pytest.param("bytes=-5", 0, 416, id="last five of nothing"),
        pytest.param("bytes=5-4", 10, None, id="backwards"),
        pytest.param(f"bytes={HUGE}-4", 10, None, id="far backwards"),
        pytest.param("bytes=20-15", 10, None, id="backwards and past the end"),
        pytest.param("bytes=0-1,4-5", 10, None, id="several are ignored"),
        pytest.param("bytes=0-1,", 10, Span(0, 2), id="a comma"),
        pytest.param("bytes=-", 10, None, id="no number"),
        pytest.param("bytes=", 10, None, id="no range"),
        pytest.param("bytes", 10, None, id="no equals sign"),
        pytest.param("", 10, None, id="empty"),
        pytest.param("=0-4", 10, None, id="no unit"),
        pytest.param("chunks=0-4", 10, None, id="another unit"),
        pytest.param("bytes 0-4", 10, None, id="blank for the equals sign"),
        pytest.param("bytes=--5", 10, None, id="two dashes"),
        pytest.param("bytes=+1-5", 10, None, id="plus sign"),
        pytest.param("bytes=0x1-0x5", 10, None, id="hex"),
        pytest.param("bytes=1_0-2_0", 100, None, id="underscores"),
        pytest.param("bytes=1.0-2", 10, None, id="decimal point"),
        pytest.param("bytes=0-4;q=1", 10, None, id="parameter"),
        pytest.param("bytes=\u0661-\u0662", 10, None, id="digits of another script"),
        pytest.param("bytes=\xb2-\xb3", 10, None, id="superscripts"),
        pytest.param("Bytes=0-4", 10, Span(0, 5), id="unit in upper case"),
        pytest.param("  bytes=0-4  ", 10, Span(0, 5), id="blanks around it"),
        pytest.param("bytes=\t0-4 ", 10, Span(0, 5), id="blanks around the range"),
        pytest.param("bytes=0 - 9", 10, None, id="blanks around the dash"),
        pytest.param("bytes=0 -9", 10, None, id="a blank before the dash"),
        pytest.param("bytes=0- 9", 10, None, id="a blank behind the dash"),
        pytest.param("bytes= -9 -", 10, None, id="a blank in a suffix"),
        pytest.param("bytes = 0-4", 10, None, id="blanks around the equals sign"),
    ],
)
def test_parse_range(value: str, size: int, expected: Span | int | None) -> None:
    assert ask(value, size) == expected


numbers = st.none() | st.integers(0, 40)


@settings(deadline=None)
@given(numbers, numbers, st.integers(0, 30), st.integers(0, 3))
def test_parse_range_picks_what_the_rfc_picks(
    first: int | None, last: int | None, size: int, zeros: int
) -> None:
    texts = ["" if number is None else "0" * zeros + str(number) for number in (first, last)]
    assert ask(f"bytes={'-'.join(texts)}", size) == oracle(first, last, size)


@settings(deadline=None)
@given(st.integers(0, MAX_SIZE - 1), st.integers(0, MAX_SIZE - 1), st.integers(1, MAX_SIZE))
def test_parse_range_counts_exactly_in_large_files(first: int, last: int, size: int) -> None:
    expected = None if last < first else 416 if first >= size else Span(first, min(size, last + 1))
    assert ask(f"bytes={first}-{last}", size) == expected


@settings(deadline=None)
@given(
    st.text() | st.text("bytes=-0123456789, ") | st.text("0123456789-, ").map("bytes=".__add__),
    st.integers(0, MAX_SIZE),
)
@example("bytes=0-\n", 5)
def test_any_range_gives_a_span_inside_the_file(value: str, size: int) -> None:
    span = ask(value, size)
    if isinstance(span, Span):
        assert 0 <= span.start < span.end <= size
        assert 0 < span.size <= size
        assert parse_range(f"bytes={span.start}-{span.end - 1}", size) == span
    else:
        assert span in (None, 416)


def ask_several(value: str, size: int) -> list[tuple[int, int]] | int | None:
    """What parse_ranges says, as pairs; 416 for an unsatisfiable range."""
    try:
        spans = parse_ranges(value, size)
    except UnsatisfiableRange:
        return 416
    return None if spans is None else [(span.start, span.end) for span in spans]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("0-0,2-2", [(0, 1), (2, 3)], id="two"),
        pytest.param("8-9,0-1,4-5", [(8, 10), (0, 2), (4, 6)], id="in the client's order"),
        pytest.param("0-1 , 4-5\t,-1", [(0, 2), (4, 6), (9, 10)], id="blanks"),
        pytest.param("0-3,2-5", [(0, 6)], id="overlapping"),
        pytest.param("2-5,0-3", [(0, 6)], id="overlapping, backwards"),
        pytest.param("0-3,4-5", [(0, 6)], id="touching"),
        pytest.param("4-5,0-3", [(0, 6)], id="touching, backwards"),
        pytest.param("0-1,3-4", [(0, 2), (3, 5)], id="a gap of one"),
        pytest.param("0-9,2-3", [(0, 10)], id="one inside the other"),
        pytest.param("6-7,0-1,7-8", [(6, 9), (0, 2)], id="joined in the place of the first"),
        pytest.param("0-1,6-7,1-2", [(0, 3), (6, 8)], id="joined with an earlier one"),
        pytest.param("0-1,4-5,2-3", [(0, 6)], id="joined by a third"),
        pytest.param("5-,-3", [(5, 10)], id="to the end twice"),
        pytest.param("0-0,0-0,0-0", [(0, 1)], id="the same three times"),
        pytest.param("0-1,20-30", [(0, 2)], id="one past the end"),
        pytest.param("20-30,0-1,-0", [(0, 2)], id="only one with bytes"),
        pytest.param("20-30,-0", 416, id="none with bytes"),
        pytest.param(",0-1,,3-4,", [(0, 2), (3, 5)], id="empty items"),
        pytest.param(" , ", None, id="only empty items"),
        pytest.param("0-1,5-4", None, id="one backwards spoils all"),
        pytest.param("0-1,x", None, id="nonsense spoils all"),
        pytest.param("20-30,x", None, id="nonsense beside one past the end"),
        pytest.param("0-1;3-4", None, id="semicolon"),
        pytest.param("0-1,bytes=3-4", None, id="the unit again"),
        pytest.param(f"0-1,{HUGE}-,4-{HUGE}", [(0, 2), (4, 10)], id="5000 digits"),
    ],
)
def test_parse_ranges(value: str, expected: list[tuple[int, int]] | int | None) -> None:
    assert ask_several(f"bytes={value}", 10) == expected


def make_specs(count: int, step: int = 2) -> str:
    return "bytes=" + ",".join(f"{at}-{at}" for at in range(0, count * step, step))


def test_too_many_parts_are_the_whole() -> None:
    assert len(parse_ranges(make_specs(MAX_SPANS), 10_000) or ()) == MAX_SPANS
    assert parse_ranges(make_specs(MAX_SPANS + 1), 10_000) is None
    # What counts is what is left once they are joined, up to a point.
    assert ask_several(make_specs(MAX_SPECS, 1), 10_000) == [(0, MAX_SPECS)]
    assert ask_several(make_specs(MAX_SPECS + 1, 1), 10_000) is None


specs = st.tuples(numbers, numbers).filter(lambda spec: spec != (None, None))


@settings(deadline=None)
@given(st.lists(specs, min_size=1, max_size=12), st.integers(0, 30))
def test_parse_ranges_gives_the_bytes_that_are_asked_for(
    wanted: list[tuple[int | None, int | None]], size: int
) -> None:
    texts = ["-".join("" if n is None else str(n) for n in spec) for spec in wanted]
    singles = [oracle(first, last, size) for first, last in wanted]
    spans = ask_several("bytes=" + ",".join(texts), size)
    if None in singles:
        assert spans is None
        return
    asked = {at for span in singles if isinstance(span, Span) for at in range(*span)}
    if not asked:
        assert spans == 416
        return
    assert isinstance(spans, list)
    given_out = [at for span in spans for at in range(*span)]
    assert set(given_out) == asked
    assert len(given_out) == len(asked)  # no byte twice
    starts, ends = {start for start, _ in spans}, {end for _, end in spans}
    assert not starts & ends  # none that touch


@pytest.mark.parametrize(
    "case",
    [case for case in RECONSTRUCTION["cases"] if case["range_header"]],
    ids=lambda case: case["range_header"],
)
def test_ranges_mean_what_they_mean_to_the_cas(case: dict[str, Any]) -> None:
    span = ask(case["range_header"], RECONSTRUCTION["file"]["size"])
    if case["status"] == 416:
        assert span == 416
    else:
        assert isinstance(span, Span)
        assert span.size == case["content_length"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("bytes 0-4/10", (Span(0, 5), 10), id="first five of ten"),
        pytest.param("bytes 0-0/1", (Span(0, 1), 1), id="one byte"),
        pytest.param("bytes 5-9/10", (Span(5, 10), 10), id="up to the end"),
        pytest.param("bytes 5-9/*", (Span(5, 10), None), id="unknown size"),
        pytest.param(" bytes 0-4/10 ", (Span(0, 5), 10), id="blanks around it"),
        pytest.param("Bytes 0-4/10", (Span(0, 5), 10), id="unit in upper case"),
        pytest.param("bytes 5-4/10", None, id="backwards"),
        pytest.param("bytes 0-9/9", None, id="ends past the size"),
        pytest.param("bytes 0-0/0", None, id="a byte of nothing"),
        pytest.param("bytes */10", None, id="unsatisfied"),
        pytest.param("bytes */*", None, id="two stars"),
        pytest.param("bytes -4/10", None, id="no start"),
        pytest.param("bytes 0-/10", None, id="no end"),
        pytest.param("bytes 0-4", None, id="no size"),
        pytest.param("bytes 0-4/", None, id="empty size"),
        pytest.param("bytes=0-4/10", None, id="equals sign"),
        pytest.param("chunks 0-4/10", None, id="another unit"),
        pytest.param("bytes 0-4/10, bytes 5-9/10", None, id="two"),
        pytest.param("bytes 0-4/\u0661", None, id="digits of another script"),
        pytest.param(f"bytes 0-{HUGE}/*", None, id="5000 digits"),
        pytest.param("", None, id="empty"),
    ],
)
def test_parse_content_range(value: str, expected: tuple[Span, int | None] | None) -> None:
    assert parse_content_range(value) == expected


@pytest.mark.parametrize("spec", ["{}x", "{}1x", "1{}x", "1-{}x", "1-1{}x", "-{}x", "-1{}x"])
def test_a_long_run_of_blanks_is_read_in_linear_time(spec: str) -> None:
    # If each split of the run were tried, this would take longer than a test may.
    assert parse_ranges("bytes=" + spec.format(" " * 400_000), 10) is None


@settings(deadline=None)
@given(st.text() | st.text("bytes -/*0123456789") | st.text("-/*0123456789").map("bytes ".__add__))
def test_any_content_range_is_sound_or_nothing(value: str) -> None:
    parsed = parse_content_range(value)
    if parsed is not None:
        span, size = parsed
        assert 0 <= span.start < span.end
        assert size is None or span.end <= size


@settings(deadline=None)
@given(st.integers(1, MAX_SIZE), st.data())
def test_what_is_written_is_read_back(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    span = Span(start, data.draw(st.integers(start + 1, size)))
    assert parse_content_range(format_content_range(span, size)) == (span, size)


def test_written_ends_are_inclusive() -> None:
    assert format_content_range(Span(0, 5), 10) == "bytes 0-4/10"
    assert format_unsatisfied_range(10) == "bytes */10"
    assert format_unsatisfied_range(0) == "bytes */0"


@pytest.mark.parametrize("value", ["bytes=1-", "bytes=0012-", " Bytes= 5- "])
def test_a_resumption(value: str) -> None:
    assert is_resumption(value)


@pytest.mark.parametrize(
    "value", ["bytes=0-", "bytes=-5", "bytes=1-2", "bytes=1-,5-", "x=1-", "bytes=5 -", ""]
)
def test_no_resumption(value: str) -> None:
    assert not is_resumption(value)


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=0-0", "bytes=0-100000", "Bytes=0-1"])
def test_from_the_first_byte_on(value: str) -> None:
    assert is_from_start(value)


@pytest.mark.parametrize(
    "value", ["bytes=1-", "bytes=-0", "bytes=0-0,2-3", "bytes=00-1", "x=0-", ""]
)
def test_not_from_the_first_byte_on(value: str) -> None:
    assert not is_from_start(value)
