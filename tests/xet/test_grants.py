"""An upstream's URLs become ours, and say all that is needed to serve them."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings

from tests.sealed import changed
from xetserve.errors import FormatError
from xetserve.net.url import parse_url
from xetserve.xet import grants
from xetserve.xet.grants import (
    DIGEST_SIZE,
    MAX_GRANT_SIZE,
    MAX_USES,
    PURPOSE,
    SEALED_SLICE,
    Grant,
    Granter,
    TermUse,
    make_digest,
    open_grant,
    seal_grant,
)
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction, Term
from xetserve.xet.sealing import Sealer

SEALER = Sealer(b"k" * 32)
X, Y, FILE = b"x" * 32, b"y" * 32, b"f" * 32
BASE = "http://us.test:1"


@dataclass
class Plan:
    """Fetch ranges of ten chunks and a thousand bytes each, and terms over them."""

    terms: list[Term] = field(default_factory=list)
    infos: dict[bytes, list[FetchInfo]] = field(default_factory=dict)

    def add(self, xorb: bytes, number: int, url: str = "http://data.test/signed") -> None:
        chunks = ChunkRange(10 * number, 10 * number + 9)
        bytes_ = ByteRange(1000 * number, 1000 * number + 900)
        self.infos.setdefault(xorb, []).append(FetchInfo(chunks, bytes_, url))

    def use(self, xorb: bytes, start: int, end: int, size: int) -> None:
        self.terms.append(Term(xorb, ChunkRange(start, end), size))

    def rewrite(self, start: int = 0, *, offset: int = 0, single: bool = False) -> Reconstruction:
        answer = Reconstruction(
            offset, tuple(self.terms), {x: tuple(each) for x, each in self.infos.items()}
        )
        granter = Granter(SEALER, BASE, issued=100.5, expires=1000.5, instance="a")
        return granter.rewrite(answer, start, FILE, 12_345, has_single_ranges=single)


def read(url: str) -> Grant:
    text = url.rpartition("&grant=")[2]
    assert len(text) <= MAX_GRANT_SIZE
    grant = open_grant(SEALER, text)
    assert grant is not None
    return grant


@pytest.mark.parametrize("single", [False, True])
def test_everything_needed_is_in_the_url(single: bool) -> None:
    plan = Plan()
    plan.add(X, 0)
    plan.add(X, 2)
    plan.add(Y, 1, "http://data.test/other")
    plan.use(X, 2, 5, 300)
    plan.use(Y, 10, 19, 900)
    plan.use(X, 20, 29, 500)
    plan.use(X, 0, 5, 400)
    answer = plan.rewrite(5000, offset=7, single=single)
    assert (answer.offset_into_first_range, list(answer.terms)) == (7, plan.terms)
    first, second = answer.fetch_info[X]
    assert (first.url == second.url) is not single
    assert first.url.startswith(f"{BASE}/xorbs/{'78' * 32}?file={'66' * 32}&grant=")
    assert [info[:2] for info in answer.fetch_info[X]] == [info[:2] for info in plan.infos[X]]
    grant = read(first.url)
    assert grant[:7] == (X, FILE, 12_345, "http://data.test/signed", 100.5, 1000.5, "a")
    assert grant.ranges[0].uses == (
        TermUse(ChunkRange(0, 5), 4993 + 300 + 900 + 500, 400),
        TermUse(ChunkRange(2, 5), 4993, 300),
    )
    assert read(second.url).ranges[-1].uses == (TermUse(ChunkRange(20, 29), 6193, 500),)
    assert read(answer.fetch_info[Y][0].url).url == "http://data.test/other"


def test_a_range_is_found_as_it_is() -> None:
    plan = Plan()
    plan.add(X, 0)
    plan.add(X, 1)
    grant = read(plan.rewrite().fetch_info[X][0].url)
    assert grant.find(ByteRange(0, 900)) == grant.ranges[0]
    assert grant.find(ByteRange(1000, 1900)) == grant.ranges[1]
    for other in (ByteRange(0, 901), ByteRange(0, 899), ByteRange(5, 6), ByteRange(950, 960)):
        assert grant.find(other) is None


def test_many_ranges_get_several_urls_of_bearable_length() -> None:
    plan = Plan()
    for number in range(3000):
        plan.add(X, number, "http://data.test/" + "s" * 2000)
        plan.use(X, 10 * number, 10 * number + 9, 77 * number)
    infos = plan.rewrite().fetch_info[X]
    assert [info[:2] for info in infos] == [info[:2] for info in plan.infos[X]]
    urls = {info.url for info in infos}
    assert 6 <= len(urls) < 100
    for info in infos:
        assert read(info.url).find(info.byte_range) is not None


def test_too_many_uses_of_one_range_are_not_all_named() -> None:
    plan = Plan()
    plan.add(X, 0)
    for number in range(50_000):
        plan.use(X, number % 9, number % 9 + 1, number * number % 65_521)
    (info,) = plan.rewrite().fetch_info[X]
    assert 300 < len(read(info.url).ranges[0].uses) < 50_000


def test_a_url_that_cannot_be_carried_is_an_error() -> None:
    plan = Plan()
    # Random enough not to shrink.
    plan.add(X, 0, "http://data.test/" + SEALER.seal("x", list(range(0, 1_000_000, 97))))
    with pytest.raises(FormatError, match="too long"):
        plan.rewrite()


def test_terms_before_the_file_are_an_error() -> None:
    plan = Plan()
    plan.add(X, 0)
    plan.use(X, 0, 9, 900)
    with pytest.raises(FormatError, match="byte -5 of the file"):
        plan.rewrite(5, offset=10)


def test_a_proven_file_has_digests_of_its_ranges() -> None:
    """Chunks that several terms use count once, those between terms not at all."""
    hashes = {chunk: bytes([chunk]) * 32 for chunk in range(30)}
    uses = [
        TermUse(ChunkRange(0, 4), 100, 40),
        TermUse(ChunkRange(1, 3), 500, 20),
        TermUse(ChunkRange(3, 5), 900, 20),
        TermUse(ChunkRange(7, 8), 0, 10),
    ]

    def find(file_hash: bytes, position: int, size: int) -> bytes | None:
        assert file_hash == FILE
        (use,) = (each for each in uses if each.position == position)
        assert use.decoded_size == size
        return b"".join(hashes[chunk] for chunk in range(*use.chunks))

    expected = blake3(b"".join(hashes[chunk] for chunk in (0, 1, 2, 3, 4, 7)))
    assert make_digest(FILE, uses, find) == expected.hexdigest(DIGEST_SIZE)
    assert make_digest(FILE, uses, lambda _, position, size: None if position == 900 else b"") == ""
    assert make_digest(FILE, uses, lambda _, position, size: bytes(32)) == ""


def test_a_grant_is_not_printed() -> None:
    plan = Plan()
    plan.add(X, 0)
    assert "http" not in repr(read(plan.rewrite().fetch_info[X][0].url))


SEALED = [
    "78" * 32,
    "66" * 32,
    9,
    "http://data.test/x",
    1.5,
    2.0,
    "instance",
    [[0, 5, 0, 900, [[0, 5, 7, 300]], "digest"]],
]


def test_the_shape_that_is_changed_below_is_the_one_of_grants() -> None:
    grant = open_grant(SEALER, SEALER.seal(PURPOSE, SEALED))
    assert grant is not None
    assert seal_grant(SEALER, grant) == SEALER.seal(PURPOSE, SEALED)


@settings(max_examples=500)
@given(value=changed(SEALED))
def test_a_grant_of_any_other_shape_is_none(value: Any) -> None:
    grant = open_grant(SEALER, SEALER.seal(PURPOSE, value))
    if grant is not None:  # then all of it is what it should be
        assert open_grant(SEALER, seal_grant(SEALER, grant)) == grant
        assert 0 <= grant.issued < grant.expires + 1e15
        parse_url(grant.url)
        assert all(each.byte_range.size > 0 for each in grant.ranges)


def test_urls_are_sealed_in_steps_of_some_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted is what is sealed: terms, and ranges."""
    plan = Plan()
    for number in range(300):
        plan.add(X, number)
        for start in range(10 * number, 10 * number + 9):
            for _ in range(10):
                plan.use(X, start, start + 1, 5)
    for _ in range(20_000):
        plan.use(X, 0, 5, 7)
    plan.add(Y, 0, "http://data.test/other")
    steps = [0]

    def seal(sealer: Sealer, grant: Grant) -> str:
        steps[-1] += sum(1 + len(each.uses) for each in grant.ranges)
        return seal_grant(sealer, grant)

    monkeypatch.setattr(grants, "seal_grant", seal)
    answer = Reconstruction(0, tuple(plan.terms), {x: tuple(i) for x, i in plan.infos.items()})
    granter = Granter(SEALER, BASE, issued=1.0, expires=2.0, instance="a")
    reading = granter.iter_rewrite(answer, 0, FILE, 1, has_single_ranges=False)
    while next(reading, "the end") is None:
        steps.append(0)
    assert len(steps) > 300 // SEALED_SLICE
    assert max(steps) < 8 * MAX_USES
    # All ranges are there, and those with few terms have them all.
    given = granter.rewrite(answer, 0, FILE, 1, has_single_ranges=False)
    assert [info[:2] for info in given.fetch_info[X]] == [info[:2] for info in plan.infos[X]]
    assert len(read(given.fetch_info[X][-1].url).ranges[-1].uses) == 90
