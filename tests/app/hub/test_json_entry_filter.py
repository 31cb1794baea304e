"""Members that stay in large entries of a listing, and go from all others."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.app.hub.json_documents import DELICATE, DOCUMENTS, HASH, NAMES, without
from xetserve.app.hub.json_entry_filter import MAX_ENTRY, EntryFilter

LIMIT = 1000


def run(text: bytes, size: int) -> bytes:
    entries = EntryFilter(NAMES, LIMIT)
    pieces = [entries.feed(text[at : at + size]) for at in range(0, len(text), size)]
    return b"".join([*pieces, entries.finish()])


def is_large(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("size")) is int and entry["size"] > LIMIT


ENTRIES = st.fixed_dictionaries(
    {
        "path": st.text(max_size=9) | st.sampled_from(('"', "[", "}", "\\")),
        "xetHash": st.just(HASH),
    },
    optional={
        "size": st.sampled_from((0, LIMIT, LIMIT + 1, 10**12, -1, None, "1001", 1001.5)),
        "lfs": st.fixed_dictionaries({"size": st.just(10**9), "oid": st.just("o")}),
        "more": DOCUMENTS,
    },
)
SIZES = st.sampled_from((1, 7, 1000, 10**6))
INDENTS = st.sampled_from((None, 0, 4))


@given(entries=st.lists(ENTRIES | DOCUMENTS, max_size=6), size=SIZES, indent=INDENTS)
def test_the_size_of_an_entry_decides(entries: list[Any], size: int, indent: int | None) -> None:
    text = json.dumps(entries, indent=indent).encode()
    expected = [each if is_large(each) else without(each) for each in entries]
    assert json.loads(run(text, size)) == expected


@given(document=DOCUMENTS, size=SIZES)
def test_other_documents_lose_them_everywhere(document: Any, size: int) -> None:
    document = {"size": 10**9, "xetHash": HASH, "siblings": [document]}
    assert json.loads(run(json.dumps(document).encode(), size)) == without(document)


@given(text=st.binary(max_size=60) | st.text('[]{}"\\,:x', max_size=60).map(str.encode), size=SIZES)
def test_whatever_comes_goes_on(text: bytes, size: int) -> None:
    """What is no JSON has no members to be taken out."""
    assert run(text, size) == text


@pytest.mark.parametrize("value", ["", "*" * 64, HASH[1:], HASH.upper(), None, 0])
def test_what_is_no_hash_goes_from_large_entries_too(value: Any) -> None:
    entry = {"path": "a", "xetHash": value, "size": LIMIT + 1}
    assert json.loads(run(json.dumps([entry]).encode(), 1000)) == [without(entry)]
    entry["xetHash"] = HASH
    assert json.loads(run(json.dumps([entry]).encode(), 1000)) == [entry]


@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_the_rest_is_the_same_to_the_byte(size: int) -> None:
    large = b'{"xetHash":"%b", "size" :1001,"more":%b}' % (
        b"0" * 64,
        DELICATE.replace(b"9" * 5000, b"9"),
    )
    text = b'[{"xetHash":"0",  "size":5}, %b ,{"size":5,"xetHash":"0"}, %b]' % (large, DELICATE)
    assert run(text, size) == b'[{  "size":5}, %b ,{"size":5}, %b]' % (large, DELICATE)


def listing(count: int) -> list[dict[str, Any]]:
    source = random.Random(3)
    return [
        {
            "type": "file",
            "oid": f"{source.getrandbits(160):040x}",
            "size": source.choice((5, 10**6)),
            "lfs": {"oid": HASH, "size": 5, "pointerSize": 130},
            "xetHash": HASH,
            "path": f"folder/{number}.bin",
        }
        for number in range(count)
    ]


@pytest.mark.parametrize("piece", [1, 65_536])
def test_a_listing_in_bounded_memory(piece: int) -> None:
    entries = listing(1500)
    text = json.dumps(entries).encode()
    filtering, given_out, most = EntryFilter(NAMES, LIMIT), [], 0
    taken = 0
    for at in range(0, len(text), piece):
        given_out.append(filtering.feed(text[at : at + piece]))
        taken += len(given_out[-1])
        most = max(most, at + piece - taken)
    given_out.append(filtering.finish())
    expected = [each if is_large(each) else without(each) for each in entries]
    assert json.loads(b"".join(given_out)) == expected
    assert most < len(text) / 2


def test_an_entry_beyond_all_bounds_loses_them() -> None:
    huge = {"size": 10**9, "xetHash": HASH, "more": ["x" * 50] * (MAX_ENTRY // 40)}
    text = json.dumps([*listing(3), huge, *listing(3)]).encode()
    found = json.loads(run(text, 5000))
    assert found[:3] == [each if is_large(each) else without(each) for each in listing(3)]
    assert found[3:] == without([huge, *listing(3)])
