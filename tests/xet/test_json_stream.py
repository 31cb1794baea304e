"""JSON read value by value is what json.loads makes of it."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sealed import JSON
from xetserve.errors import FormatError
from xetserve.xet import json_stream
from xetserve.xet.json_stream import MAX_VALUE_SIZE, Cursor


def walk(text: bytes) -> dict[str, Any]:
    cursor = Cursor(text)
    found: dict[str, Any] = {}
    for key in cursor.members():
        found[key] = [cursor.take() for _ in cursor.items()] if cursor.opens("[") else cursor.take()
    cursor.finish()
    return found


@given(
    value=st.dictionaries(st.text(), JSON),
    indent=st.sampled_from([None, 1]),
    size=st.integers(1, 9),
)
def test_a_text_is_what_it_is_at_once(value: Any, indent: int | None, size: int) -> None:
    text = json.dumps(value, indent=indent).encode()
    assert repr(walk(text)) == repr(value)  # NaN is not equal to itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "MAX_VALUE_SIZE", size)
        with suppress(FormatError):  # it has larger values
            assert repr(walk(text)) == repr(value)


@given(text=st.text('[]{}:,"1 ax\\n', max_size=12).map(str.encode) | st.binary(max_size=9))
def test_what_is_no_object_is_refused(text: bytes) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict):
        assert walk(text) == value
    else:
        with pytest.raises(FormatError):
            walk(text)


@pytest.mark.parametrize(
    "value",
    [b'"%b"' % (b"x" * MAX_VALUE_SIZE), b"[" * 100_000, b"9" * 10_000, b"[%b]" % (b"[]," * 90_000)],
    ids=["a long string", "deep", "a long number", "many lists"],
)
@pytest.mark.parametrize("after", [b"}", b',"b":[1,2,3]}' + b" " * MAX_VALUE_SIZE])
def test_a_value_has_a_bound(value: bytes, after: bytes) -> None:
    with pytest.raises(FormatError):
        walk(b'{"a":[1,{"b":%b}]' % value + after)


def test_values_may_be_many() -> None:
    values = [{"a": "x" * 1000}] * 2000
    assert walk(json.dumps({"a": values}).encode()) == {"a": values}
