"""Questions about several files, and their answers."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.errors import FormatError
from xetserve.xet.batch import (
    MAX_BATCH_FILES,
    make_batch_answer,
    merge_fetch_infos,
    parse_batch,
    parse_batch_names,
)
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Term

A, B = bytes(range(32)), bytes(32)


def question(*names: object) -> bytes:
    return json.dumps([{"prefix": "default", "hash": name} for name in names]).encode()


def test_questions() -> None:
    names = [format_hash(hash_) for hash_ in (A, B, A)]
    assert parse_batch(question(*names)) == parse_batch_names(names) == [A, B]
    assert parse_batch(b"[]") == []
    assert parse_batch(json.dumps([{"hash": names[0]}]).encode()) == [A]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"null", b"[1]", b'["x"]', b"[{}]", b'[{"hash":1}]', b'[{"hash":["x"]}]',
     b'{"hash":"' + b"0" * 64 + b'"}', question("0" * 63), question("z" * 64), b"[" * 100_000,
     b'\xff[{"hash":"' + b"0" * 64 + b'"}]'],
)  # fmt: skip
def test_what_is_no_question(body: bytes) -> None:
    with pytest.raises(FormatError):
        parse_batch(body)


def test_how_many_files() -> None:
    names = [format_hash(number.to_bytes(32)) for number in range(MAX_BATCH_FILES + 1)]
    assert len(parse_batch(question(*names[1:], *names[1:]))) == MAX_BATCH_FILES
    with pytest.raises(FormatError, match="more than 100 files"):
        parse_batch(question(*names))


@given(st.binary(max_size=100) | st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("hash"), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_comes(body: bytes) -> None:
    with suppress(FormatError):
        assert parse_batch(body) == []


def info(first: int, url: str) -> FetchInfo:
    return FetchInfo(ChunkRange(first, first + 2), ByteRange(first * 10, first * 10 + 20), url)


def test_answers() -> None:
    merged = merge_fetch_infos(
        [{A: (info(4, "http://a/4"),)}, {A: (info(1, "http://b/1"), info(4, "http://b/4"))}, {}]
    )
    assert merged == {A: (info(1, "http://b/1"), info(4, "http://a/4"))}
    term = Term(A, ChunkRange(4, 6), 300)
    assert make_batch_answer({A: [term], B: []}, merged) == {
        "files": {
            format_hash(A): [
                {"hash": format_hash(A), "unpacked_length": 300, "range": {"start": 4, "end": 6}}
            ],
            format_hash(B): [],
        },
        "fetch_info": {
            format_hash(A): [
                {
                    "range": {"start": first, "end": first + 2},
                    "url": url,
                    "url_range": {"start": first * 10, "end": first * 10 + 19},
                }
                for first, url in ((1, "http://b/1"), (4, "http://a/4"))
            ]
        },
    }
