"""Members that are taken out of JSON as it passes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.app.hub.json_documents import DELICATE, DOCUMENTS, HASH, NAMES, without
from xetserve.app.hub.json_filter import MAX_MATCH, MemberFilter, NullFilter


def run(text: bytes, size: int) -> bytes:
    members = MemberFilter(NAMES)
    pieces = [members.feed(text[at : at + size]) for at in range(0, len(text), size)]
    return b"".join([*pieces, members.finish()])


@given(
    document=DOCUMENTS,
    filler=st.integers(0, 3),
    size=st.sampled_from((1, 7, 1000, 10**6)),
    indent=st.sampled_from((None, 0, 1, 4)),
    ascii_only=st.booleans(),
)
def test_it_is_the_document_without_them(
    document: Any, filler: int, size: int, indent: int | None, ascii_only: bool
) -> None:
    # Large enough for the text to be cut at many places.
    whole = [document, ["x" * 2500] * filler, document] if filler else document
    text = json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode()
    assert json.loads(run(text, size)) == without(whole)


@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_nothing_else_is_touched(size: int) -> None:
    listing = [{"type": "file", "path": f"f{n}", "lfs": {"oid": HASH}} for n in range(500)]
    text = json.dumps(listing).encode()
    assert run(text, size) == text


@pytest.mark.parametrize("start", range(0, 200, 7))
def test_wherever_the_pieces_are_cut(start: int) -> None:
    entry = b'{"path":"a","xetHash":"%b","size":1}' % HASH.encode()
    text = b"[" + b" " * start + b",".join([entry] * 300) + b"]"
    expected = b"[" + b" " * start + b",".join([b'{"path":"a","size":1}'] * 300) + b"]"
    assert run(text, 512) == expected


@pytest.mark.parametrize(
    "text",
    [b'{"xetHash":{"a":1},"b":2}', b'{"xetHash":[1],"b":2}', b'{"xetHash":"a\\"b"}',
     b'{"xetHash":%b}' % (b"1" * 40), b'{"xetHash"'],
)  # fmt: skip
def test_what_is_no_such_member_stays(text: bytes) -> None:
    assert run(text, 5) == text


@pytest.mark.parametrize("size", [1, 100_000])
def test_hashes_may_be_spared(size: int) -> None:
    members = [f'"xetHash" : "{HASH}"', '"xetHash": ""', '"xetHash":null', f'"xetHash":"{HASH}0"']
    text = b"[" + b", ".join(b'{%b, "b":1}' % each.encode() for each in members) + b"]"
    filter_ = MemberFilter(("xetHash",), spares_hashes=True)
    parts = [filter_.feed(text[at : at + size]) for at in range(0, len(text), size)]
    expected = b'[{%b, "b":1}, { "b":1}, { "b":1}, { "b":1}]' % members[0].encode()
    assert b"".join([*parts, filter_.finish()]) == expected


def test_little_is_held_back() -> None:
    members = MemberFilter(NAMES)
    given_out = sum(len(members.feed(b'{"a":1},' * 1000)) for _ in range(50))
    assert 50 * 8000 - given_out <= 2 * MAX_MATCH


def test_no_match_is_longer_than_what_is_held_back() -> None:
    blank = b" " * 64
    member = b'"xetEnabled"%b:%b"%b"' % (blank, blank, b"x" * 256)
    text = b"{" + blank + (blank + b"," + blank).join([member] * 4) + blank + b","
    assert len(text) < MAX_MATCH


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_rest_is_the_same_to_the_byte(size: int) -> None:
    text = b'[{"xetHash":"0",  "more":%b}]' % DELICATE
    assert run(text, size) == b'[{  "more":%b}]' % DELICATE


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_values_become_null(size: int) -> None:
    entries = [{"path": f'say "xetHash": {n}', "xetHash": "0" * 64, "size": n} for n in range(300)]
    text = json.dumps([*entries, {"xetHash": ""}, {"xetHash": 1}]).encode()
    members = NullFilter(("xetHash",))
    pieces = [members.feed(text[at : at + size]) for at in range(0, len(text), size)]
    found = json.loads(b"".join(pieces) + members.finish())
    assert found == [*({**each, "xetHash": None} for each in entries), *[{"xetHash": None}] * 2]
