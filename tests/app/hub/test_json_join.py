"""Arrays joined as they pass."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.app.hub.json_join import MAX_HELD, ArrayJoiner
from xetserve.errors import FormatError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('[],{}" \\]ü'), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("]", max_size=2), inner),
    max_leaves=8,
)
BLANKS = st.text(" \t\r\n", max_size=3)


def join(pages: list[bytes], step: int) -> bytes:
    joiner = ArrayJoiner()
    parts = []
    for page in pages:
        parts += [joiner.feed(page[at : at + step]) for at in range(0, len(page), step)]
        parts.append(joiner.end_page())
    return b"".join([*parts, joiner.finish()])


@given(
    st.lists(st.tuples(st.lists(VALUES, max_size=4), BLANKS, BLANKS), max_size=4),
    st.integers(1, 40),
    st.sampled_from([None, 1]),
)
def test_all_members_in_their_order(
    pages: list[tuple[list[object], str, str]], step: int, indent: int | None
) -> None:
    texts = [
        f"{before}{json.dumps(page, indent=indent)}{behind}".encode()
        for page, before, behind in pages
    ]
    assert json.loads(join(texts, step)) == [value for page, _, _ in pages for value in page]


def test_what_is_ready_goes_on_at_once() -> None:
    joiner = ArrayJoiner()
    assert joiner.feed(b' [{"a": [1') == b'[{"a": [1'
    assert joiner.feed(b"]}, 2 ") == b"]}, 2"
    assert joiner.feed(b", 3]\n") == b" , 3"
    assert joiner.end_page() == b""
    assert joiner.feed(b"[") + joiner.feed(b"]") + joiner.end_page() == b""
    assert joiner.feed(b"[4]") == b",4"
    assert joiner.end_page() + joiner.finish() == b"]"


@pytest.mark.parametrize("text", [b"", b" ", b"{}", b"null", b"[1", b"[1,", b'["]"', b'{"a": []}'])
def test_what_is_no_array(text: bytes) -> None:
    joiner = ArrayJoiner()
    with pytest.raises(FormatError):  # noqa: PT012 - either of them may find it out
        joiner.feed(text)
        joiner.end_page()


def test_what_is_held_is_bounded() -> None:
    joiner = ArrayJoiner()
    joiner.feed(b"[1")
    with pytest.raises(FormatError):
        joiner.feed(b" " * (MAX_HELD + 1))
