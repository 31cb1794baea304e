"""Conditional requests (RFC 9110, section 13): evaluate the conditions; the caller responds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from xetserve.http.dates import parse_http_date
from xetserve.http.messages import Headers

_ETAG: Final = re.compile(r'(?:W/)?"[!#-~\x80-\xff]*"')
_CONDITIONS: Final = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
_LIST_ITEM: Final = re.compile(rf"[ \t,]*({_ETAG.pattern})[ \t]*(?=,|$)")


class Verdict(Enum):
    """The result of a request's conditions."""

    PROCEED = auto()
    NOT_MODIFIED = auto()  # 304
    FAILED = auto()  # 412


@dataclass(frozen=True, slots=True)
class Validators:
    """The validators of the current version of a resource (RFC 9110, 8.8).

    etags: strong entity-tags with their quotes. The first is for the unencoded content, the others
        for content codings that the client accepts.
    last_modified: Unix seconds.
    """

    etags: Sequence[str] = ()
    last_modified: int | None = None


def has_conditions(headers: Headers) -> bool:
    """Return whether a request has conditions that check_conditions evaluates."""
    return any(name in headers for name in _CONDITIONS)


def is_etag(text: str) -> bool:
    """Return whether a text is an entity-tag, quotes included."""
    return _ETAG.fullmatch(text) is not None


def parse_etags(value: str) -> list[str]:
    """Parse a list of entity-tags; weak ones keep their W/. Parsing stops at a malformed item."""
    found = []
    position = 0
    while (match := _LIST_ITEM.match(value, position)) is not None:
        found.append(match[1])
        position = match.end()
    return found


def check_conditions(
    headers: Headers, current: Validators, now: float
) -> tuple[Verdict, str | None]:
    """Evaluate the conditions of a GET or HEAD of an existing resource (RFC 9110, 13.2.2).

    Args:
        now: Unix seconds, see parse_http_date.

    Returns:
        The verdict, and for NOT_MODIFIED the entity-tag of the version that the client has.
    """
    modified = current.last_modified
    if_match = _join(headers, "if-match")
    if if_match is not None:
        if not _has_strong_match(if_match, current.etags):
            return Verdict.FAILED, None
    elif modified is not None and modified > _date(headers, "if-unmodified-since", now, modified):
        return Verdict.FAILED, None
    if_none_match = _join(headers, "if-none-match")
    if if_none_match is not None:
        matching = _find_weak_match(if_none_match, current.etags)
        return (Verdict.PROCEED if matching is None else Verdict.NOT_MODIFIED), matching or None
    if modified is not None and modified <= _date(headers, "if-modified-since", now, modified - 1):
        return Verdict.NOT_MODIFIED, current.etags[0] if current.etags else None
    return Verdict.PROCEED, None


def allows_range(headers: Headers, etag: str | None, last_modified: int | None, now: float) -> bool:
    """Return whether the server should honour the Range field, given If-Range (RFC 9110, 13.1.5).

    Args:
        etag: the entity-tag of the representation that the range would select from.
    """
    values = headers.get_all("if-range")
    if not values:
        return True
    value = values[0].strip(" \t")
    if len(values) > 1:
        return False
    if '"' in value:
        return value == etag  # a weak entity-tag never matches
    date = parse_http_date(value, now)
    return date is not None and date == last_modified


def _has_strong_match(value: str, etags: Sequence[str]) -> bool:
    if value.strip(" \t") == "*":
        return True
    return not set(parse_etags(value)).isdisjoint(etags)


def _find_weak_match(value: str, etags: Sequence[str]) -> str | None:
    """Return the first of etags that value lists, by weak comparison; None: no match.

    Returns "" if value is "*" and the resource has no entity-tag.
    """
    if value.strip(" \t") == "*":
        return etags[0] if etags else ""
    listed = {tag.removeprefix("W/") for tag in parse_etags(value)}
    return next((etag for etag in etags if etag in listed), None)


def _join(headers: Headers, name: str) -> str | None:
    """Return the lines of a list field joined to one; None: the field is absent."""
    values = headers.get_all(name)
    return ", ".join(values) if values else None


def _date(headers: Headers, name: str, now: float, default: int) -> int:
    """Return the date in a field, in Unix seconds; default if the field is absent or invalid."""
    values = headers.get_all(name)
    date = parse_http_date(values[0], now) if len(values) == 1 else None
    return default if date is None else date
