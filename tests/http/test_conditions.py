"""Conditional requests, as a table in the order of RFC 9110, 13.2.2."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.http.conditions import (
    Validators,
    Verdict,
    allows_range,
    check_conditions,
    has_conditions,
    is_etag,
    parse_etags,
)
from xetserve.http.messages import Headers

NOW = 1_800_000_000
CHANGED = 784_111_777
BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
AT = "Sun, 06 Nov 1994 08:49:37 GMT"
AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"
CURRENT = Validators(('"a"', '"a-zstd"'), CHANGED)
BARE = Validators()

GO, SAME, FAIL = Verdict.PROCEED, Verdict.NOT_MODIFIED, Verdict.FAILED


def check(
    fields: dict[str, str] | list[tuple[str, str]], current: Validators = CURRENT
) -> tuple[Verdict, str | None]:
    pairs = list(fields.items()) if isinstance(fields, dict) else fields
    return check_conditions(Headers(pairs), current, NOW)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, GO),
        ({"Range": "bytes=0-1"}, GO),
        # Alone
        ({"If-Match": '"a"'}, GO),
        ({"If-Match": '"a-zstd"'}, GO),
        ({"If-Match": '"x", "a"'}, GO),
        ({"If-Match": '"x","a","y"'}, GO),
        ({"If-Match": "*"}, GO),
        ({"If-Match": " * "}, GO),
        ({"If-Match": '"b"'}, FAIL),
        ({"If-Match": 'W/"a"'}, FAIL),
        ({"If-Match": "a"}, FAIL),
        ({"If-Match": '"A"'}, FAIL),
        ({"If-Match": ""}, FAIL),
        ({"If-Unmodified-Since": BEFORE}, FAIL),
        ({"If-Unmodified-Since": AT}, GO),
        ({"If-Unmodified-Since": AFTER}, GO),
        ({"If-Unmodified-Since": "Sunday, 06-Nov-94 08:49:36 GMT"}, FAIL),
        ({"If-Unmodified-Since": "Sun Nov  6 08:49:36 1994"}, FAIL),
        ({"If-Unmodified-Since": "yesterday"}, GO),
        ({"If-None-Match": '"a"'}, SAME),
        ({"If-None-Match": 'W/"a"'}, SAME),
        ({"If-None-Match": '"x", W/"a", "y"'}, SAME),
        ({"If-None-Match": "*"}, SAME),
        ({"If-None-Match": '"b"'}, GO),
        ({"If-None-Match": "a"}, GO),
        ({"If-None-Match": '"b", *'}, GO),
        ({"If-None-Match": ""}, GO),
        ({"If-None-Match": 'w/"a"'}, GO),
        ({"If-None-Match": '"x" "a"'}, GO),
        ({"If-Modified-Since": BEFORE}, GO),
        ({"If-Modified-Since": AT}, SAME),
        ({"If-Modified-Since": AFTER}, SAME),
        ({"If-Modified-Since": "Sunday, 06-Nov-94 08:49:37 GMT"}, SAME),
        ({"If-Modified-Since": "Sun Nov  6 08:49:37 1994"}, SAME),
        ({"If-Modified-Since": "now"}, GO),
        ({"If-Modified-Since": f"{AT}, {AT}"}, GO),
        # Together: entity-tags stand above dates, and failures above 304.
        ({"If-Match": '"a"', "If-Unmodified-Since": BEFORE}, GO),
        ({"If-Match": '"b"', "If-Unmodified-Since": AFTER}, FAIL),
        ({"If-Match": '"b"', "If-None-Match": '"a"'}, FAIL),
        ({"If-Match": '"a"', "If-None-Match": '"a"'}, SAME),
        ({"If-Match": '"a"', "If-None-Match": '"b"'}, GO),
        ({"If-Match": '"a"', "If-Modified-Since": AT}, SAME),
        ({"If-Unmodified-Since": BEFORE, "If-None-Match": '"a"'}, FAIL),
        ({"If-Unmodified-Since": AT, "If-None-Match": '"a"'}, SAME),
        ({"If-Unmodified-Since": AT, "If-Modified-Since": AT}, SAME),
        ({"If-None-Match": '"b"', "If-Modified-Since": AFTER}, GO),
        ({"If-None-Match": '"a"', "If-Modified-Since": BEFORE}, SAME),
    ],
    ids=str,
)  # fmt: skip
def test_verdicts(fields: dict[str, str], expected: Verdict) -> None:
    assert check(fields)[0] is expected
    assert has_conditions(Headers(fields.items())) == any(name != "Range" for name in fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"If-Match": '"a"'}, FAIL),
        ({"If-Match": "*"}, GO),
        ({"If-None-Match": '"a"'}, GO),
        ({"If-None-Match": "*"}, SAME),
        ({"If-Modified-Since": AFTER}, GO),
        ({"If-Unmodified-Since": BEFORE}, GO),
    ],
    ids=str,
)
def test_something_without_validators(fields: dict[str, str], expected: Verdict) -> None:
    assert check(fields, BARE) == (expected, None)


@pytest.mark.parametrize(
    ("value", "etag"),
    [
        ('"a"', '"a"'),
        ('W/"a"', '"a"'),
        ('"a-zstd"', '"a-zstd"'),
        ('"a-zstd", "a"', '"a"'),
        ("*", '"a"'),
    ],
)
def test_the_version_that_the_client_has_is_named(value: str, etag: str) -> None:
    assert check({"If-None-Match": value}) == (SAME, etag)


def test_lists_may_come_in_several_lines_and_dates_may_not() -> None:
    assert check([("If-None-Match", '"x"'), ("If-None-Match", '"a"')])[0] is SAME
    assert check([("If-Match", '"x"'), ("If-Match", '"a"')])[0] is GO
    assert check([("If-Modified-Since", AT), ("If-Modified-Since", AT)])[0] is GO
    assert check([("If-Unmodified-Since", BEFORE), ("If-Unmodified-Since", BEFORE)])[0] is GO


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        ('"a"', ['"a"']),
        ('""', ['""']),
        ('"a", W/"b" ,"c"', ['"a"', 'W/"b"', '"c"']),
        (',, "a",,\t"b",', ['"a"', '"b"']),
        ('"a,b"', ['"a,b"']),
        ('"a\\"', ['"a\\"']),
        ('"a" "b"', []),
        ('"a", b, "c"', ['"a"']),
        ('"a', []),
        ('"a b"', []),
        ('"\xe9"', ['"\xe9"']),
    ],
)
def test_parse_etags(value: str, expected: list[str]) -> None:
    assert parse_etags(value) == expected


@settings(deadline=None)
@given(st.text() | st.text('"W/a, *'))
def test_any_list_gives_entity_tags(value: str) -> None:
    assert all(is_etag(tag) for tag in parse_etags(value))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], True),
        (['"a"'], True),
        ([' "a"\t'], True),
        (['W/"a"'], False),
        (['"a-zstd"'], False),
        (['"b"'], False),
        (['"a", "a"'], False),
        (['"a"', '"a"'], False),
        (["a"], False),
        (["*"], False),
        ([""], False),
        ([AT], True),
        (["Sunday, 06-Nov-94 08:49:37 GMT"], True),
        ([BEFORE], False),
        ([AFTER], False),
    ],
)
def test_if_range_compares_strongly_and_exactly(values: list[str], expected: bool) -> None:
    headers = Headers([("If-Range", value) for value in values])
    assert allows_range(headers, '"a"', CHANGED, NOW) is expected
    # Without validators nothing matches.
    assert allows_range(headers, None, None, NOW) is not bool(values)
