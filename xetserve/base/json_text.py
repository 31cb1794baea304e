"""Parse JSON from untrusted sources: every fault raises FormatError."""

import json
from collections.abc import Callable
from typing import Any, Final

from xetserve.errors import FormatError

MAX_DEPTH: Final = 64  # of nested lists and objects: repr and json.dumps recurse, too
MAX_DIGITS: Final = 20  # of an integer: 64 bits and a sign


def parse_json(
    text: bytes | bytearray | str,
    make_object: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """Parse a JSON text in UTF-8 or UTF-16.

    Numbers are finite, and integers have no more digits than 64 bits need. Strings may hold half a
    surrogate pair, which has no UTF-8 form.

    Args:
        make_object: makes the value of an object from its members; may raise ValueError.

    Raises:
        FormatError: the text is not such JSON, or is nested more than MAX_DEPTH deep. The message
            says which.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=make_object,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
        _check_depth(value)
    except UnicodeError:  # its message would quote the text
        raise FormatError("it is not Unicode") from None
    except RecursionError:
        raise FormatError("it is nested too deeply") from None
    except ValueError as exc:
        raise FormatError(str(exc)) from None
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number is too large")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        inside: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inside += each.values()
            elif isinstance(each, list):
                inside += each
        level = inside
    raise ValueError("it is nested too deeply")
