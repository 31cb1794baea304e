"""HTTP-date (RFC 9110, 5.6.7): parse all three forms, write IMF-fixdate. Times are Unix seconds."""

import calendar
import re
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Final

_MONTHS: Final = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)
_FIFTY_YEARS: Final = 50 * 365.2425 * 86400  # seconds
_DAY: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY: Final = "(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTH: Final = f"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_FORMS: Final = tuple(
    re.compile(form, re.ASCII)
    for form in (
        rf"{_DAY}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",  # IMF-fixdate
        rf"{_LONG_DAY}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",  # RFC 850
        rf"{_DAY} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",  # asctime
    )
)


def parse_http_date(text: str, now: float) -> int | None:
    """Parse a date into Unix seconds; None: text is not a date.

    Args:
        now: Unix seconds. A two-digit year that is more than 50 years ahead of now is taken for
            the same year of the century before.
    """
    matches = (form.fullmatch(text.strip(" \t")) for form in _FORMS)
    match = next((match for match in matches if match is not None), None)
    if match is None:
        return None
    month = _MONTHS.index(match["month"]) + 1
    rest = month, int(match["day"]), int(match["hour"]), int(match["minute"]), int(match["second"])
    if len(match["year"]) == 4:
        return _to_seconds(int(match["year"]), *rest)
    century = datetime.fromtimestamp(now, UTC).year // 100 * 100
    seconds = _to_seconds(century + int(match["year"]), *rest)
    if seconds is not None and seconds > now + _FIFTY_YEARS:
        return _to_seconds(century - 100 + int(match["year"]), *rest)
    return seconds


def _to_seconds(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    if year < 1 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    if hour > 23 or minute > 59 or second > 60:  # 60: a leap second
        return None
    return calendar.timegm((year, month, day, hour, minute, second))


def format_http_date(seconds: float) -> str:
    """Return Unix seconds as IMF-fixdate."""
    return formatdate(seconds, usegmt=True)
