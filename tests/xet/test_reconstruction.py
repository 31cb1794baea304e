import base64
import copy
import hashlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.errors import FormatError
from xetserve.xet.hashes import MerkleTree, format_hash, hash_chunk, parse_hash
from xetserve.xet.reconstruction import (
    MAX_CHUNKS,
    MAX_OFFSET,
    MAX_RANGES,
    MAX_TERM_SIZE,
    MAX_TERMS,
    SLICE,
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
    TooLarge,
    iter_reconstruction,
    parse_reconstruction,
    to_v1,
    to_v2,
)
from xetserve.xet.xorb import iter_records

Json = dict[str, Any]

GROUP: Json = json.loads((Path(__file__).parents[1] / "data/reconstruction.json").read_text())[
    "reconstruction"
]
XORBS = {xorb["xorb_hash"]: base64.b64decode(xorb["xorb_base64"]) for xorb in GROUP["xorbs"]}
FILE: Json = GROUP["file"]
ANSWERED = [case for case in GROUP["cases"] if case["status"] == 200]

answered = pytest.mark.parametrize(
    "case", ANSWERED, ids=lambda case: case["range_header"] or "whole file"
)

A, B = "a" * 64, "b" * 64
URL = "https://data.example/a?X-Xet-Signed-Range=bytes%3D0-99&Signature=Zm9v~"


def v1_answer(case: Json) -> Json:
    """The answer as a v1 server gives it: a signed URL for each fetch range."""
    return {
        "offset_into_first_range": case["offset_into_first_range"],
        "terms": case["terms"],
        "fetch_info": {
            xorb: [
                {"range": part["chunks"], "url": f"{URL}{index}", "url_range": part["bytes"]}
                for index, part in enumerate(parts)
            ]
            for xorb, parts in case["fetch_ranges"].items()
        },
    }


def v2_answer(case: Json) -> Json:
    """The answer as a v2 server gives it: one URL for all ranges of a xorb."""
    return {
        "offset_into_first_range": case["offset_into_first_range"],
        "terms": case["terms"],
        "xorbs": {
            xorb: [{"url": URL, "ranges": parts}] for xorb, parts in case["fetch_ranges"].items()
        },
    }


def small_v1() -> Json:
    return {
        "offset_into_first_range": 10,
        "terms": [
            {"hash": A, "unpacked_length": 300, "range": {"start": 2, "end": 5}},
            {"hash": B, "unpacked_length": 40, "range": {"start": 0, "end": 1}},
        ],
        "fetch_info": {
            A: [
                {
                    "range": {"start": 1, "end": 6},
                    "url": URL,
                    "url_range": {"start": 100, "end": 599},
                }
            ],
            B: [{"range": {"start": 0, "end": 1}, "url": URL, "url_range": {"start": 0, "end": 0}}],
        },
    }


def small_v2() -> Json:
    answer = small_v1()
    del answer["fetch_info"]
    answer["xorbs"] = {
        A: [
            {
                "url": URL,
                "ranges": [
                    {"chunks": {"start": 0, "end": 1}, "bytes": {"start": 0, "end": 49}},
                    {"chunks": {"start": 1, "end": 6}, "bytes": {"start": 100, "end": 599}},
                ],
            }
        ],
        B: [
            {
                "url": URL,
                "ranges": [{"chunks": {"start": 0, "end": 1}, "bytes": {"start": 0, "end": 0}}],
            }
        ],
    }
    return answer


def parse(answer: object) -> Reconstruction:
    return parse_reconstruction(json.dumps(answer).encode())


def check_invariants(answer: Reconstruction) -> None:
    for term in answer.terms:
        info = answer.find_fetch_info(term)
        assert info.chunks.start <= term.chunks.start < term.chunks.end <= info.chunks.end
        assert 0 <= term.decoded_size <= MAX_TERM_SIZE
    for infos in answer.fetch_info.values():
        for info in infos:
            assert info.byte_range.size > 0
            assert info.url.isascii()
            assert " " not in info.url
    assert answer.decoded_size >= 0
    assert 0 <= answer.offset_into_first_range <= MAX_OFFSET


# Ranges


def test_ranges_are_half_open_and_their_header_is_inclusive() -> None:
    assert ByteRange(0, 1).size == 1
    assert ByteRange(52, 208).size == 156
    assert ByteRange(0, 1).to_header() == "bytes=0-0"
    assert ByteRange(52, 208).to_header() == "bytes=52-207"


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        pytest.param(ChunkRange(2, 5), True, id="itself"),
        pytest.param(ChunkRange(3, 4), True, id="inside"),
        pytest.param(ChunkRange(1, 5), False, id="starts before"),
        pytest.param(ChunkRange(2, 6), False, id="ends after"),
        pytest.param(ChunkRange(5, 6), False, id="behind"),
    ],
)
def test_contains(inner: ChunkRange, expected: bool) -> None:
    assert ChunkRange(2, 5).contains(inner) is expected


# Answers


@answered
@pytest.mark.parametrize("make_answer", [v1_answer, v2_answer], ids=["v1", "v2"])
def test_both_versions_become_the_same_plan(make_answer: Any, case: Json) -> None:
    answer = parse(make_answer(case))
    check_invariants(answer)
    assert answer.offset_into_first_range == case["offset_into_first_range"]
    assert [
        (format_hash(term.xorb_hash), term.decoded_size, *term.chunks) for term in answer.terms
    ] == [
        (term["hash"], term["unpacked_length"], term["range"]["start"], term["range"]["end"])
        for term in case["terms"]
    ]
    assert {
        format_hash(xorb): [(*info.chunks, info.byte_range.to_header()) for info in infos]
        for xorb, infos in answer.fetch_info.items()
    } == {
        xorb: [
            (
                part["chunks"]["start"],
                part["chunks"]["end"],
                f"bytes={part['bytes']['start']}-{part['bytes']['end']}",
            )
            for part in parts
        ]
        for xorb, parts in case["fetch_ranges"].items()
    }


@answered
def test_the_plan_rebuilds_the_asked_bytes(case: Json) -> None:
    answer = parse(v2_answer(case))
    content = b""
    for term in answer.terms:
        info = answer.find_fetch_info(term)
        start, end = info.byte_range
        records = list(iter_records(XORBS[format_hash(term.xorb_hash)][start:end]))
        assert len(records) == info.chunks.end - info.chunks.start
        first = term.chunks.start - info.chunks.start
        run = records[first : first + term.chunks.end - term.chunks.start]
        decoded = b"".join(bytes(record.decode()) for record in run)
        assert len(decoded) == term.decoded_size
        content += decoded
    content = content[answer.offset_into_first_range :]
    assert answer.decoded_size == len(content) >= case["content_length"]
    wanted = content[: case["content_length"]]
    assert hashlib.sha256(wanted).hexdigest() == case["content_sha256"]


def test_the_terms_of_the_whole_file_hash_to_the_file_hash() -> None:
    tree = MerkleTree()
    lengths = {xorb["xorb_hash"]: xorb["chunk_uncompressed_lengths"] for xorb in GROUP["xorbs"]}
    content = hashlib.sha256()
    for segment in FILE["segments"]:
        start, end = segment["chunk_start"], segment["chunk_end"]
        records = list(iter_records(XORBS[segment["xorb_hash"]]))
        chunks = [bytes(record.decode()) for record in records]
        assert [len(chunk) for chunk in chunks] == lengths[segment["xorb_hash"]]
        for chunk in chunks[start:end]:
            tree.add(hash_chunk(chunk), len(chunk))
            content.update(chunk)
    assert tree.size == FILE["size"]
    assert format_hash(tree.file_hash()) == FILE["file_hash"]
    assert content.hexdigest() == FILE["content_sha256"]


@pytest.mark.parametrize("make_answer", [small_v1, small_v2], ids=["v1", "v2"])
def test_decoded_size_is_without_the_offset(make_answer: Any) -> None:
    assert parse(make_answer()).decoded_size == 330


def test_an_empty_file_has_no_terms() -> None:
    answer: Json
    for answer in ({"terms": [], "fetch_info": {}}, {"terms": [], "xorbs": {}}):
        assert parse(answer) == Reconstruction(0, (), {})
        assert parse({**answer, "offset_into_first_range": 0}).decoded_size == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda answer: answer.update(more={"any": [1.5, None]}), id="at the top"),
        pytest.param(lambda answer: answer["terms"][0].update(more=1), id="in a term"),
        pytest.param(lambda answer: answer["terms"][0]["range"].update(more=1), id="in a range"),
        pytest.param(lambda answer: answer["xorbs"][A][0].update(more=1), id="beside a URL"),
        pytest.param(
            lambda answer: answer["xorbs"][A][0]["ranges"][0].update(more=1), id="in a fetch range"
        ),
        pytest.param(lambda answer: answer.update(fetch_info=None), id="an empty v1 field"),
    ],
)
def test_unknown_fields_are_ignored(change: Any) -> None:
    answer = small_v2()
    change(answer)
    assert parse(answer) == parse(small_v2())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            lambda answer: answer["xorbs"].update({"c" * 64: []}), id="a xorb without fetch ranges"
        ),
        pytest.param(
            lambda answer: answer["xorbs"].update({"c" * 64: answer["xorbs"][B]}), id="unused xorb"
        ),
        pytest.param(
            lambda answer: answer["terms"].extend(answer["terms"] * 2), id="terms that repeat"
        ),
        pytest.param(lambda answer: answer["terms"].reverse(), id="terms that go back"),
        pytest.param(
            lambda answer: answer["xorbs"][A].append(
                {
                    "url": URL,
                    "ranges": [{"chunks": {"start": 3, "end": 9}, "bytes": {"start": 9, "end": 9}}],
                }
            ),
            id="fetch ranges that overlap",
        ),
        pytest.param(
            lambda answer: answer.update(offset_into_first_range=299), id="offset over many chunks"
        ),
        pytest.param(
            lambda answer: answer["terms"][1].update(unpacked_length=4_294_967_295),
            id="the largest term",
        ),
        pytest.param(
            lambda answer: answer["xorbs"][A][0]["ranges"].append(
                {
                    "chunks": {"start": 4_294_967_285, "end": 4_294_967_295},
                    "bytes": {"start": 900, "end": 999},
                }
            ),
            id="the last chunk there is",
        ),
        pytest.param(
            lambda answer: answer["xorbs"][B][0]["ranges"][0]["bytes"].update(end=2**63 - 1),
            id="the last byte there is",
        ),
        pytest.param(
            lambda answer: answer["xorbs"][B][0].update(url="http://[::1]:8080/x?a=b#c"),
            id="an IPv6 address",
        ),
        pytest.param(
            lambda answer: answer["xorbs"][B][0].update(url="HTTPS://host"), id="upper-case scheme"
        ),
    ],
)
def test_what_a_server_may_answer(change: Any) -> None:
    answer = small_v2()
    answer["offset_into_first_range"] = 0
    change(answer)
    parsed = parse(answer)
    check_invariants(parsed)
    assert parse(to_v1(parsed)) == parse(to_v2(parsed)) == parsed


def test_a_fetch_range_that_holds_the_term_is_found_in_any_order() -> None:
    xorb = parse_hash(A)
    infos = tuple(
        FetchInfo(ChunkRange(*chunks), ByteRange(0, 1), f"http://host/{number}")
        for number, chunks in enumerate([(0, 3), (2, 4), (1, 9), (2, 5)])
    )
    answer = Reconstruction(0, (), {xorb: infos})
    assert answer.find_fetch_info(Term(xorb, ChunkRange(2, 5), 1)) in infos[2:]
    assert answer.find_fetch_info(Term(xorb, ChunkRange(3, 9), 1)) is infos[2]
    with pytest.raises(FormatError, match=rf"chunks 0\.\.4 of xorb {A}"):
        answer.find_fetch_info(Term(xorb, ChunkRange(0, 4), 1))
    with pytest.raises(FormatError, match=f"of xorb {B}"):
        answer.find_fetch_info(Term(parse_hash(B), ChunkRange(0, 1), 1))


# What is refused


def drop(*path: str | int) -> Any:
    def change(answer: Any) -> None:
        *front, last = path
        for key in front:
            answer = answer[key]
        del answer[last]

    return change


def put(value: object, *path: str | int) -> Any:
    def change(answer: Any) -> None:
        *front, last = path
        for key in front:
            answer = answer[key]
        answer[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(drop("terms"), "'terms'", id="no terms"),
        pytest.param(put(None, "terms"), "list", id="terms null"),
        pytest.param(put({}, "terms"), "list", id="terms an object"),
        pytest.param(put([None], "terms"), "field", id="a term null"),
        pytest.param(put(["text"], "terms"), "field", id="a term a string"),
        pytest.param(put([[]], "terms"), "field", id="a term a list"),
        pytest.param(drop("terms", 0, "hash"), "'hash'", id="a term without a hash"),
        pytest.param(put(None, "terms", 0, "hash"), "string", id="hash null"),
        pytest.param(put("A" * 64, "terms", 0, "hash"), "64 lower", id="hash in upper case"),
        pytest.param(put("\ud800" * 64, "terms", 0, "hash"), "64 lower", id="hash of surrogates"),
        pytest.param(drop("terms", 0, "range"), "'range'", id="a term without a range"),
        pytest.param(put(5, "terms", 0, "range"), "field", id="range a number"),
        pytest.param(put([2, 5], "terms", 0, "range"), "field", id="range a list"),
        pytest.param(put({"start": 2, "end": 2}, "terms", 0, "range"), "empty", id="range empty"),
        pytest.param(put({"start": 5, "end": 2}, "terms", 0, "range"), "empty", id="backwards"),
        pytest.param(put(-1, "terms", 0, "range", "start"), "within", id="negative chunk"),
        pytest.param(put(2**32, "terms", 0, "range", "end"), "within", id="chunk above u32"),
        pytest.param(put("2", "terms", 0, "range", "start"), "within", id="number in quotes"),
        pytest.param(put(2.0, "terms", 0, "range", "start"), "within", id="number with a point"),
        pytest.param(put(True, "terms", 0, "range", "start"), "within", id="true for a number"),
        pytest.param(drop("terms", 0, "unpacked_length"), "unpacked", id="no decoded size"),
        pytest.param(put(-1, "terms", 0, "unpacked_length"), "within", id="negative size"),
        pytest.param(put(2**32, "terms", 0, "unpacked_length"), "within", id="size above u32"),
        pytest.param(put(None, "terms", 0, "unpacked_length"), "within", id="size null"),
        pytest.param(put(float("nan"), "terms", 0, "unpacked_length"), "within", id="NaN"),
        pytest.param(put(float("inf"), "terms", 0, "unpacked_length"), "within", id="infinity"),
        pytest.param(put(300, "offset_into_first_range"), "offset 300", id="offset at its end"),
        pytest.param(put(2**63, "offset_into_first_range"), "within", id="offset above i64"),
        pytest.param(put(-1, "offset_into_first_range"), "within", id="negative offset"),
        pytest.param(put(None, "offset_into_first_range"), "within", id="offset null"),
        pytest.param(put([], "terms"), "offset 10 into a first term of 0", id="offset of nothing"),
        pytest.param(put(6, "terms", 0, "range", "start"), "empty", id="start behind the end"),
        pytest.param(put(7, "terms", 0, "range", "end"), "no fetch range", id="past the range"),
        pytest.param(put(0, "terms", 0, "range", "start"), "no fetch range", id="two half ranges"),
        pytest.param(put("c" * 64, "terms", 0, "hash"), "no fetch range", id="unknown xorb"),
        pytest.param(drop("xorbs", B), "no fetch range", id="missing xorb"),
        pytest.param(drop("xorbs"), "'fetch_info'", id="no fetch info"),
        pytest.param(put(None, "xorbs"), "field", id="xorbs null"),
        pytest.param(put([], "xorbs"), "field", id="xorbs a list"),
        pytest.param(put("x", "xorbs"), "field", id="xorbs a string"),
        pytest.param(put([], "xorbs", "*" * 64), "64 lower", id="redacted xorb hash"),
        pytest.param(put(None, "xorbs", A), "list", id="entries null"),
        pytest.param(put({}, "xorbs", A), "list", id="entries an object"),
        pytest.param(put([[]], "xorbs", A), "field", id="an entry a list"),
        pytest.param(drop("xorbs", A, 0, "url"), "'url'", id="no URL"),
        pytest.param(drop("xorbs", A, 0, "ranges"), "'ranges'", id="no ranges"),
        pytest.param(put({}, "xorbs", A, 0, "ranges"), "list", id="ranges an object"),
        pytest.param(drop("xorbs", A, 0, "ranges", 0, "bytes"), "'bytes'", id="no bytes"),
        pytest.param(drop("xorbs", A, 0, "ranges", 0, "chunks"), "'chunks'", id="no chunks"),
        pytest.param(
            put({"start": 5, "end": 4}, "xorbs", A, 0, "ranges", 0, "bytes"), "empty", id="no byte"
        ),
        pytest.param(
            put(2**63, "xorbs", A, 0, "ranges", 0, "bytes", "end"), "within", id="byte above i64"
        ),
    ],
)
def test_answers_out_of_shape_are_format_errors(change: Any, message: str) -> None:
    answer = small_v2()
    change(answer)
    with pytest.raises(FormatError, match=message):
        parse(answer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(drop("fetch_info"), "'fetch_info'", id="no fetch info"),
        pytest.param(put(None, "fetch_info"), "field", id="fetch info null"),
        pytest.param(put({}, "fetch_info", A), "list", id="entries an object"),
        pytest.param(drop("fetch_info", A, 0, "url_range"), "'url_range'", id="no byte range"),
        pytest.param(drop("fetch_info", A, 0, "range"), "'range'", id="no chunk range"),
        pytest.param(drop("fetch_info", A, 0, "url"), "'url'", id="no URL"),
        pytest.param(put(1, "fetch_info", A, 0, "url"), "string", id="URL a number"),
        pytest.param(put("", "fetch_info", A, 0, "url"), "http", id="URL empty"),
        pytest.param(put([], "fetch_info", A), "no fetch range", id="no entries"),
        pytest.param(put({}, "xorbs"), "no fetch range", id="both versions at once"),
    ],
)
def test_v1_answers_out_of_shape_are_format_errors(change: Any, message: str) -> None:
    answer = small_v1()
    change(answer)
    with pytest.raises(FormatError, match=message):
        parse(answer)


SECRET = "c0ffee-signature"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(f"/a?s={SECRET}", id="relative"),
        pytest.param(f"//host/a?s={SECRET}", id="no scheme"),
        pytest.param(f"ftp://host/a?s={SECRET}", id="ftp"),
        pytest.param(f"file:///etc/passwd?s={SECRET}", id="a file"),
        pytest.param(f"unix:/run/x?s={SECRET}", id="a socket"),
        pytest.param(f"http:///a?s={SECRET}", id="no host"),
        pytest.param(f"http://user@/a?s={SECRET}", id="a user without a host"),
        pytest.param(f"http://:80/a?s={SECRET}", id="a port without a host"),
        pytest.param(f"http://host:65536/a?s={SECRET}", id="port out of range"),
        pytest.param(f"http://host:0/a?s={SECRET}", id="port 0"),
        pytest.param(f"http://host:http/a?s={SECRET}", id="port with letters"),
        pytest.param(f"http://host:{SECRET}/", id="no port at all"),
        pytest.param(f"http://[::1/a?s={SECRET}", id="open bracket"),
        pytest.param(f"http://[{SECRET}]/a", id="no address in brackets"),
        pytest.param(f"http://host/a b?s={SECRET}", id="blank"),
        pytest.param(f" http://host/a?s={SECRET}", id="blank first"),
        pytest.param(f"http://host/a?s={SECRET}\r\nX: y", id="line break"),
        pytest.param(f"http://host/a?s={SECRET}\t", id="tab"),
        pytest.param(f"http://host/a?s={SECRET}\0", id="NUL"),
        pytest.param(f"http://host/a?s={SECRET}\x7f", id="DEL"),
        pytest.param(f"http://host/\u00e9?s={SECRET}", id="not ASCII"),
        pytest.param(f"http://ho\u2100st/?s={SECRET}", id="not ASCII in the host"),
        pytest.param(f"http://host/\ud800?s={SECRET}", id="lone surrogate"),
    ],
)
@pytest.mark.parametrize("make_answer", [small_v1, small_v2], ids=["v1", "v2"])
def test_odd_urls_are_refused_and_never_quoted(make_answer: Any, url: str) -> None:
    answer = make_answer()
    entries = answer["xorbs" if "xorbs" in answer else "fetch_info"][A]
    entries[0]["url"] = url
    with pytest.raises(FormatError, match="data URL") as caught:
        parse(answer)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="open brace"),
        pytest.param(b"<html>busy</html>", id="HTML"),
        pytest.param(b"null", id="null"),
        pytest.param(b"0", id="a number"),
        pytest.param(b'"terms"', id="a string"),
        pytest.param(b'["terms"]', id="a list"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b"\xff\xfe\xfd", id="not UTF-8"),
        pytest.param(b'{"terms": "\xed\xa0\x80"}', id="an encoded surrogate"),
        pytest.param(b'{"\\ud800": 1}', id="a surrogate for a name"),
        pytest.param(b'{"terms": [], "xorbs": {}} x', id="something behind"),
        pytest.param(b"[" * 200_000, id="deep nesting"),
        pytest.param(b'{"a":' * 200_000, id="deep objects"),
        pytest.param(b'{"terms": ' + b"[" * 900 + b"]" * 900 + b"}", id="nesting that parses"),
        pytest.param(b'{"terms": [], "xorbs": {}, "x": ' + b"9" * 5000 + b"}", id="5000 digits"),
        pytest.param(
            b'{"terms": [], "xorbs": {}, "offset_into_first_range": ' + b"9" * 400 + b"}",
            id="400 digits",
        ),
        pytest.param(
            b'{"terms": [], "xorbs": {}, "offset_into_first_range": 1e999}', id="infinity"
        ),
        pytest.param(
            b'{"terms": [], "xorbs": {}, "offset_into_first_range": NaN}', id="not a number"
        ),
        pytest.param(
            b'{"terms": [], "xorbs": {}, "offset_into_first_range": -Infinity}', id="-Infinity"
        ),
        pytest.param(b'{"terms": [], "xorbs": {}, "offset_into_first_range": 0.0}', id="0.0"),
        pytest.param(b'{"terms": [], "terms": null, "xorbs": {}}', id="the last of two counts"),
    ],
)
def test_other_bodies_are_format_errors(body: bytes) -> None:
    with pytest.raises(FormatError):
        parse_reconstruction(body)


def test_of_two_fields_with_one_name_the_last_counts() -> None:
    text = json.dumps(small_v2())
    doubled = '{"terms": null, "xorbs": 0,' + text[1:]
    assert parse_reconstruction(doubled.encode()) == parse(small_v2())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_may_begin_with_a_byte_order_mark(encoding: str) -> None:
    assert parse_reconstruction(json.dumps(small_v1()).encode(encoding)) == parse(small_v1())


# There and back

hashes = st.binary(min_size=32, max_size=32)
spans = st.tuples(st.integers(0, 2**20), st.integers(1, 2**11))
chunk_ranges = spans.map(lambda span: ChunkRange(span[0], span[0] + span[1]))
byte_ranges = st.tuples(st.integers(0, 2**40), st.integers(1, 2**26)).map(
    lambda span: ByteRange(span[0], span[0] + span[1])
)
urls = st.text("abcXYZ019%&=?/-_.~+;,:@", max_size=20).map("http://host:8080/".__add__)
fetch_infos = st.builds(FetchInfo, chunk_ranges, byte_ranges, urls)


def in_order(infos: list[FetchInfo]) -> tuple[FetchInfo, ...]:
    return tuple(sorted(infos, key=lambda info: info.chunks.start))


@st.composite
def reconstructions(draw: st.DrawFn) -> Reconstruction:
    fetch_info = draw(
        st.dictionaries(hashes, st.lists(fetch_infos, max_size=4).map(in_order), max_size=3)
    )
    choices = [(xorb, info) for xorb, infos in fetch_info.items() for info in infos]
    terms = []
    for xorb, info in draw(st.lists(st.sampled_from(choices), max_size=5)) if choices else ():
        start = draw(st.integers(info.chunks.start, info.chunks.end - 1))
        end = draw(st.integers(start + 1, info.chunks.end))
        terms.append(Term(xorb, ChunkRange(start, end), draw(st.integers(0, MAX_TERM_SIZE))))
    first = terms[0].decoded_size if terms else 0
    offset = draw(st.integers(0, max(0, first - 1)))
    return Reconstruction(offset, tuple(terms), fetch_info)


@settings(deadline=None)
@given(reconstructions())
def test_answers_survive_both_versions(answer: Reconstruction) -> None:
    check_invariants(answer)
    assert parse(to_v1(answer)) == answer
    assert parse(to_v2(answer)) == answer


@answered
def test_the_wire_forms_are_what_servers_send(case: Json) -> None:
    assert to_v1(parse(v1_answer(case))) == v1_answer(case)
    assert to_v2(parse(v2_answer(case))) == v2_answer(case)


# Anything at all

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 600)
    | st.floats()
    | st.sampled_from([A, B, URL, "*" * 64, 2**32 - 1, 2**32, 2**63 - 1, 2**63, "\ud800"])
    | st.text(max_size=5)
)
names = st.sampled_from(
    ["terms", "xorbs", "fetch_info", "hash", "range", "start", "end", "url", "ranges", "chunks",
     "bytes", "url_range", "unpacked_length", "offset_into_first_range", A, B]
) | st.text(max_size=3)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = []
    for key in keys if isinstance(value, (dict, list)) else ():
        found.append((value, key))
        found += places(value[key]) if isinstance(value[key], (dict, list)) else []
    return found


@st.composite
def damaged_answers(draw: st.DrawFn) -> Any:
    answer = copy.deepcopy(draw(st.sampled_from([small_v1(), small_v2()])))
    for _ in range(draw(st.integers(1, 3))):
        found = places(answer)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        if draw(st.booleans()):
            container[key] = draw(values)
        else:
            del container[key]
    return answer


@st.composite
def damaged_bodies(draw: st.DrawFn) -> bytes:
    body = bytearray(json.dumps(draw(st.sampled_from([small_v1(), small_v2()]))).encode())
    for index in draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
        body[index] = draw(st.sampled_from(b'{}[]":,0-9\\.eEnN') | st.integers(0, 255))
    cut = draw(st.none() | st.integers(0, len(body)))
    return bytes(body[:cut])


bodies = (
    st.binary(max_size=60)
    | damaged_bodies()
    | (values | damaged_answers()).map(lambda value: json.dumps(value).encode())
)


@settings(deadline=None, max_examples=1000)
@given(bodies)
def test_any_body_gives_a_sound_plan_or_a_format_error(body: bytes) -> None:
    try:
        answer = parse_reconstruction(body)
    except FormatError:
        return
    check_invariants(answer)
    assert parse(to_v1(answer)) == parse(to_v2(answer)) == answer


def many_ranges(count: int, *, overlap: bool) -> bytes:
    """An answer with as many terms as fetch ranges of one xorb."""
    ranges = [(0, 2 * count) if overlap else (2 * n, 2 * n + 1) for n in range(count)]
    terms = [(2 * n, 2 * n + 1) for n in range(count)]
    if overlap:  # each range but the first starts later than any term, and ends too early
        ranges = [(0, 4 * count), *((2 * n, 2 * n + 1) for n in range(1, count))]
        terms = [(2 * n, 2 * n + 2) for n in range(1, count)]
    answer = {
        "terms": [
            {"hash": A, "unpacked_length": 1, "range": {"start": start, "end": end}}
            for start, end in terms
        ],
        "fetch_info": {
            A: [
                {
                    "range": {"start": start, "end": end},
                    "url": "http://data.test/",
                    "url_range": {"start": 0, "end": 9},
                }
                for start, end in ranges
            ]
        },
    }
    return json.dumps(answer).encode()


def test_thousands_of_ranges_take_no_quadratic_time() -> None:
    answer = parse_reconstruction(many_ranges(16_000, overlap=False))
    assert len(answer.terms) == 16_000  # 128 million comparisons, if each range were looked at


def test_an_answer_is_read_in_steps_of_some_work() -> None:
    """Counted are the calls of Python functions, which every term and range takes some of."""
    body = many_ranges(10_000, overlap=False)
    steps: list[int] = [0]
    sys.setprofile(lambda frame, event, arg: steps.append(steps.pop() + (event == "call")))
    try:
        reading = iter_reconstruction(body)
        while next(reading, "the end") is None:
            steps.append(0)
    finally:
        sys.setprofile(None)
    assert len(steps) > 50
    assert max(steps) < 50 * SLICE


def make_answer(terms: int, ranges: int) -> bytes:
    value = small_v1()
    value["terms"] *= terms
    value["fetch_info"][A] *= ranges
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("terms", "ranges"), [(MAX_TERMS + 1, 1), (1, MAX_RANGES + 1)], ids=["terms", "ranges"]
)
def test_an_answer_about_too_much_is_told_from_a_damaged_one(terms: int, ranges: int) -> None:
    with pytest.raises(TooLarge, match=str(max(terms, ranges) - 1)):
        parse_reconstruction(make_answer(terms, ranges))


@pytest.mark.parametrize("where", ["terms", "ranges"])
def test_chunks_are_counted_however_few_terms_name_them(where: str) -> None:
    """A term is a line, and may name a billion chunks; whoever plans a window looks at each."""
    many = {"start": 0, "end": MAX_CHUNKS // 16}
    value = small_v1()
    term, entry = {**value["terms"][0], "range": many}, {**value["fetch_info"][A][0], "range": many}
    value["fetch_info"][A] = [entry]
    if where == "terms":
        value["terms"] = [term] * 16
    else:
        value["terms"] = [term]
        value["fetch_info"][A] *= 15
    parse_reconstruction(json.dumps(value).encode())
    if where == "terms":
        value["terms"].append(term)
    else:
        value["fetch_info"][A] += [entry] * 2
    with pytest.raises(TooLarge, match="chunks"):
        parse_reconstruction(json.dumps(value).encode())


def test_reading_ends_where_an_answer_is_too_large() -> None:
    """What follows is not looked at: it is not even JSON."""
    with pytest.raises(TooLarge):
        parse_reconstruction(make_answer(MAX_TERMS + 1, 1)[:-1000] + b"x" * 1000)


def test_empty_xorbs_count() -> None:
    value = {"terms": [], "xorbs": {f"{number:064x}": [] for number in range(MAX_RANGES + 1)}}
    with pytest.raises(TooLarge):
        parse_reconstruction(json.dumps(value).encode())


def test_ranges_that_overlap_are_searched_only_so_far() -> None:
    assert len(parse_reconstruction(many_ranges(1000, overlap=True)).terms) == 999
    with pytest.raises(FormatError, match="overlap"):
        parse_reconstruction(many_ranges(4000, overlap=True))
