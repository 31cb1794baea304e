"""JSON that is none, or more than anybody wants to work with."""

import json

import pytest

from xetserve.base.json_text import MAX_DEPTH, parse_json
from xetserve.errors import FormatError


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**63), 2**64 - 1, 1.5, "é\n", "\U0001f600", [], {}, {"a": [1, {"b": "c"}]}],
)
def test_json_is_parsed(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(b"", "Expecting value", id="nothing"),
        pytest.param(b"{", "property name", id="cut"),
        pytest.param(b"{} {}", "Extra data", id="two"),
        pytest.param(b'"\xff"', "Unicode", id="bytes that are no text"),
        pytest.param(b"[" * 100_000, "nested", id="lists without end"),
        pytest.param(b'{"a":' * 100_000, "nested", id="objects without end"),
        pytest.param(b"[" * 500 + b"]" * 500, "nested", id="deeper than anybody means"),
        pytest.param(b"1" * 21, "too large", id="an integer of 21 digits"),
        pytest.param(b"1" * 10_000, "too large", id="one of 10,000 digits"),
        pytest.param(b"1e400", "too large", id="a float that is none"),
        pytest.param(b"-1e400", "too large", id="a negative one"),
        pytest.param(b"NaN", "NaN", id="NaN"),
        pytest.param(b"[-Infinity]", "Infinity", id="infinity"),
    ],
)
def test_what_is_wrong_is_a_format_error(text: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_json(text)


def test_the_deepest_that_is_taken() -> None:
    parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(FormatError, match="nested"):
        parse_json(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_objects_may_be_made_by_others() -> None:
    def refuse(members: list[tuple[str, object]]) -> object:
        raise ValueError(f"{members[0][0]} is not wanted")

    with pytest.raises(FormatError, match="a is not wanted"):
        parse_json(b'{"a": 1}', refuse)
