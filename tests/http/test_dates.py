import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.http.dates import format_http_date, parse_http_date

NOW = 1_800_000_000  # January 2027
THEN = 784_111_777  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT", THEN, id="IMF-fixdate"),
        pytest.param("Sunday, 06-Nov-94 08:49:37 GMT", THEN, id="RFC 850"),
        pytest.param("Sun Nov  6 08:49:37 1994", THEN, id="asctime"),
        pytest.param("Wed Nov 16 08:49:37 1994", THEN + 864_000, id="asctime, two digits"),
        pytest.param(" Sun, 06 Nov 1994 08:49:37 GMT\t", THEN, id="blanks around it"),
        pytest.param("Thu, 01 Jan 1970 00:00:00 GMT", 0, id="the epoch"),
        pytest.param("Wed, 31 Dec 1969 23:59:59 GMT", -1, id="before the epoch"),
        pytest.param("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_800, id="a leap second"),
        pytest.param("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800, id="a leap day"),
        pytest.param("Friday, 01-Jan-27 00:00:00 GMT", 1_798_761_600, id="this century"),
        pytest.param("Friday, 01-Jan-76 00:00:00 GMT", 3_345_062_400, id="49 years ahead"),
        pytest.param("Friday, 01-Jan-78 00:00:00 GMT", 252_460_800, id="51 years ahead: past"),
        pytest.param("Wed, 29 Feb 2023 00:00:00 GMT", None, id="no leap day"),
        pytest.param("Sun, 31 Nov 1994 08:49:37 GMT", None, id="day 31 of 30"),
        pytest.param("Sun, 00 Nov 1994 08:49:37 GMT", None, id="day 0"),
        pytest.param("Sun, 06 Nov 1994 24:00:00 GMT", None, id="hour 24"),
        pytest.param("Sun, 06 Nov 1994 08:60:37 GMT", None, id="minute 60"),
        pytest.param("Sun, 06 Nov 1994 08:49:61 GMT", None, id="second 61"),
        pytest.param("Sun, 06 Nov 0000 08:49:37 GMT", None, id="year 0"),
        pytest.param("Sun, 6 Nov 1994 08:49:37 GMT", None, id="one digit"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 UTC", None, id="UTC"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 +0000", None, id="offset"),
        pytest.param("Sun, 06 Nov 1994 08:49:37", None, id="no zone"),
        pytest.param("06 Nov 1994 08:49:37 GMT", None, id="no weekday"),
        pytest.param("Sunday, 06 Nov 1994 08:49:37 GMT", None, id="long weekday"),
        pytest.param("sun, 06 nov 1994 08:49:37 gmt", None, id="lower case"),
        pytest.param("Son, 06 Nov 1994 08:49:37 GMT", None, id="another language"),
        pytest.param("1994-11-06T08:49:37Z", None, id="ISO 8601"),
        pytest.param("784111777", None, id="seconds"),
        pytest.param("Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT", None,
                     id="two"),
        pytest.param("Sun, \u0660\u0666 Nov 1994 08:49:37 GMT", None,
                     id="digits of another script"),
        pytest.param("", None, id="empty"),
    ],
)  # fmt: skip
def test_parse_http_date(text: str, expected: int | None) -> None:
    assert parse_http_date(text, NOW) == expected


@settings(deadline=None)
@given(st.integers(-62_135_596_800, 253_402_300_799))
def test_what_is_written_is_read_back(seconds: int) -> None:
    assert parse_http_date(format_http_date(seconds), NOW) == seconds


@settings(deadline=None)
@given(st.text() | st.text("MonSunJanFeb0123456789:-, GMT"))
def test_any_text_is_a_date_or_none(text: str) -> None:
    assert parse_http_date(text, NOW) is None or len(text) >= 24
