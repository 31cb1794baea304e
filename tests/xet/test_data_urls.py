"""An upstream's URLs become ours, and say all that is needed to serve them."""

from dataclasses import dataclass, field

import pytest
from blake3 import blake3

from xetserve.errors import FormatError
from xetserve.xet import data_urls
from xetserve.xet.data_urls import MAX_GRANT_SIZE, MAX_USES, SEALED_SLICE, Granter, TooManyUses
from xetserve.xet.grants import (
    DIGEST_SIZE,
    MAX_PLACES,
    Grant,
    GrantedRange,
    TermUse,
    open_grant,
    seal_grant,
)
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction, Term
from xetserve.xet.signing import Sealer

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


def test_more_uses_of_one_range_than_a_url_can_name_are_refused() -> None:
    """They would leave the file without proof."""
    plan = Plan()
    plan.add(X, 0)
    for number in range(2000):
        plan.use(X, number % 9, number % 9 + 1, number * number % 65_521)
    with pytest.raises(TooManyUses, match="HF_HUB_DISABLE_XET"):
        plan.rewrite()


def test_more_places_than_can_be_looked_at_are_refused() -> None:
    plan = Plan()
    plan.add(X, 0)
    for _ in range(MAX_PLACES // 8 + 1):
        plan.use(X, 0, 8, 100)
    with pytest.raises(TooManyUses):
        plan.rewrite()


def test_terms_that_are_alike_are_named_together() -> None:
    """A file of zeros is one chunk, and thousands of terms."""
    plan = Plan()
    plan.add(X, 0)
    for _ in range(20_000):
        plan.use(X, 3, 4, 65_536)
    plan.use(X, 0, 2, 500)
    plan.use(X, 3, 4, 65_536)
    (info,) = plan.rewrite().fetch_info[X]
    assert len(info.url) < 500
    rest, zeros = read(info.url).ranges[0].uses
    assert rest == TermUse(ChunkRange(0, 2), 20_000 * 65_536, 500)
    assert zeros == TermUse(ChunkRange(3, 4), 0, 65_536, (65_536, 19_999, 66_036, 1))
    positions = [*range(0, 20_000 * 65_536, 65_536), 20_000 * 65_536 + 500]
    assert list(zeros.iter_positions()) == positions
    assert (zeros.num_terms, zeros.num_places) == (20_001, 20_001)


def name(plan: Plan, hashes: dict[int, bytes]) -> GrantedRange:
    """What the grant of a proven file's only range says; hashes: of its chunks, by their places."""

    def find(file_hash: bytes, position: int, size: int) -> bytes | None:
        found = [hashes[at] for at in sorted(hashes) if position <= at < position + size]
        return b"".join(found)

    answer = Reconstruction(0, tuple(plan.terms), {x: tuple(i) for x, i in plan.infos.items()})
    granter = Granter(SEALER, BASE, issued=1.0, expires=2.0, instance="a", find_hashes=find)
    given = granter.rewrite(answer, 0, FILE, 12_345, has_single_ranges=False)
    ((info,),) = given.fetch_info.values()
    return read(info.url).ranges[0]


def test_of_a_proven_file_one_place_of_each_chunk_is_named_and_nothing_refused() -> None:
    plan = Plan()
    plan.add(X, 0)
    hashes, position = {}, 0
    for number in range(3000):
        chunk = number * number % 9
        plan.use(X, chunk, chunk + 1, 10 + chunk)
        hashes[position] = bytes([chunk]) * 32
        position += 10 + chunk
    granted = name(plan, hashes)
    assert [use.chunks.start for use in granted.uses] == [0, 1, 4, 7]
    expected = blake3(b"".join(bytes([chunk]) * 32 for chunk in (0, 1, 4, 7)))
    assert granted.digest == expected.hexdigest(DIGEST_SIZE)


@pytest.mark.parametrize("wrong", [0, 10, 20, 40])
def test_a_chunk_that_is_not_the_same_at_all_its_places_proves_nothing(wrong: int) -> None:
    plan = Plan()
    plan.add(X, 0)
    plan.use(X, 0, 1, 10)
    plan.use(X, 0, 1, 10)
    plan.use(X, 0, 3, 30)
    hashes = {0: b"0" * 32, 10: b"0" * 32, 20: b"0" * 32, 30: b"1" * 32, 40: b"2" * 32}
    assert name(plan, hashes).digest
    plan.use(X, 2, 3, 10)
    hashes[50] = b"2" * 32
    assert name(plan, hashes).digest
    granted = name(plan, {**hashes, wrong: b"x" * 32})
    assert granted.digest == ""
    assert sum(use.num_terms for use in granted.uses) == 4


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


def test_a_grant_is_not_printed() -> None:
    plan = Plan()
    plan.add(X, 0)
    assert "http" not in repr(read(plan.rewrite().fetch_info[X][0].url))


def test_urls_are_sealed_in_steps_of_some_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted is what is sealed: terms, and ranges."""
    plan = Plan()
    for number in range(300):
        plan.add(X, number)
        for start in range(10 * number, 10 * number + 9):
            for _ in range(10):
                plan.use(X, start, start + 1, 5)
    for _ in range(10_000):
        plan.use(X, 0, 5, 7)
    plan.add(Y, 0, "http://data.test/other")
    steps = [0]

    def seal(sealer: Sealer, grant: Grant) -> str:
        steps[-1] += sum(1 + len(each.uses) for each in grant.ranges)
        return seal_grant(sealer, grant)

    monkeypatch.setattr(data_urls, "seal_grant", seal)
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
    uses = read(given.fetch_info[X][-1].url).ranges[-1].uses
    assert sum(use.num_terms for use in uses) == 90
