"""What speaks for stored records: a proof of the very bytes marks them, and without one they are
not the last word.
"""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeCas, FakeResponse
from tests.pipeline.cache.cache_site import Site, make_xorb
from tests.pipeline.cache.cached_file import entries, ledgers, running
from tests.pipeline.cache.filled import make_store
from tests.pipeline.reading import FILE, SIZE, damaged, make_engine, open_reader, read_all
from xetserve.base.lru_dict import LruDict
from xetserve.cachetools.archive_reader import Importer
from xetserve.cachetools.archive_writer import write_archive
from xetserve.cachetools.verify import Checker, Report, count_contents
from xetserve.errors import IntegrityError, XetserveError
from xetserve.pipeline.cache import coverage_table
from xetserve.pipeline.cache.coverage import Coverage
from xetserve.pipeline.cache.entry import (
    EntryKey,
    Indexer,
    Standing,
    make_entry_name,
    parse_entry_name,
)
from xetserve.pipeline.cache.layout import iter_xorbs, list_entries
from xetserve.pipeline.cache.store import prepare_folder
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.xet.compression import Scheme
from xetserve.xet.grants import Grant, GrantedRange, TermUse
from xetserve.xet.hashes import hash_chunk
from xetserve.xet.reconstruction import ChunkRange, FetchInfo
from xetserve.xet.xorb import parse_chunk_header

XORB = make_xorb(9, 5, 300)
LEAVES = [(hash_chunk(chunk), len(chunk)) for chunk in XORB.chunks]


def standings(folder: Path) -> set[Standing]:
    return {Standing.of(path.name) for path in entries(folder)}


def set_standing(folder: Path, standing: Standing) -> None:
    """Rename all entries."""
    for path in entries(folder):
        path.rename(standing.rename(str(path)))


# Marks.


@pytest.mark.parametrize("parts", [1, 3], ids=["whole", "in parts"])
async def test_what_proves_a_file_marks_what_it_was_read_from(tmp_path: Path, parts: int) -> None:
    step = -(-SIZE // parts)
    async with running(tmp_path) as process:
        for start in range(0, SIZE, step):
            assert await process.read(start, min(SIZE, start + step)) is (start + step >= SIZE)
    assert standings(tmp_path) == {Standing.PROVEN}
    cas = FakeCas(FILE)
    async with running(tmp_path, cas) as process:
        assert await process.read()
    assert cas.fetched == []


async def test_a_part_marks_nothing_until_its_file_is_read(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        assert not await process.read(SIZE // 3, SIZE)
    assert standings(tmp_path) == {Standing.UNPROVEN}
    async with running(tmp_path) as process:
        assert await process.read()
    assert standings(tmp_path) == {Standing.PROVEN}


async def test_entries_from_before_are_marked_when_they_are_read(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        assert await process.read()
    for standing in (Standing.UNPROVEN, Standing.IMPORTED):
        set_standing(tmp_path, standing)
        cas = FakeCas(FILE)
        async with running(tmp_path, cas) as process:
            # The ledger is here: every part is held against it.
            for start in range(0, SIZE, 50_000):
                assert await process.read(start, min(SIZE, start + 50_000))
        assert cas.fetched == []
        assert standings(tmp_path) == {Standing.PROVEN}


async def test_it_is_remembered_of_few_entries_how_much_is_proven(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many ranges are stored of files that nobody reads to their end."""
    monkeypatch.setattr(site.cache.coverages, "_coverages", LruDict(max_num=3, max_cost=10))
    for chunk in range(1, 8):
        await site.fill(chunk, chunk + 1)
    assert len(site.cache.coverages._coverages) == 3
    await site.fill(10, 18)
    assert len(site.cache.coverages._coverages) == 3  # of 10 chunks
    assert coverage_table.MAX_COVERAGES * 8192 > coverage_table.MAX_COVERED


async def test_nothing_wrong_is_marked(tmp_path: Path) -> None:
    async with running(tmp_path, damaged()) as process:
        with pytest.raises(IntegrityError):
            await process.read()
        await process.cache.settle()
        assert standings(tmp_path) <= {Standing.UNPROVEN}
    async with running(tmp_path) as process:
        assert await process.read()
    assert standings(tmp_path) == {Standing.PROVEN}


class Noted:
    """An origin that remembers what it was told."""

    def __init__(self) -> None:
        self.proven: set[int] = set()

    def note_hash(self, chunk: int, size: int, chunk_hash: bytes) -> None:
        pass

    def note_proven(self, chunks: ChunkRange) -> None:
        self.proven |= set(range(*chunks))


class Patched(FakeResponse):
    """An answer of which the bytes up to a cut are from one place, and those behind from
    another.
    """

    def __init__(self, data: bytes, cut: int, first: Noted, second: Noted) -> None:
        super().__init__(data, 10_000)
        self._cut = cut
        self._places = (first, second)

    @property
    def origin(self) -> Noted:  # type: ignore[override]
        return self._places[self._at > self._cut]

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        if self._at < self._cut:
            view = view[: self._cut - self._at]
        return await super().receive_into(view, timeout)


class PatchedCas(FakeCas):
    """A CAS whose data comes from two places."""

    cut = 0
    first, second = Noted(), Noted()

    @asynccontextmanager
    async def open_data(self, *args: Any, **kwargs: Any) -> AsyncIterator[FakeResponse]:
        async with super().open_data(*args, **kwargs) as response:
            yield Patched(response._data, self.cut, self.first, self.second)


@pytest.mark.parametrize("chunk", [1, 7])
@pytest.mark.parametrize("into", [0, 3, 8, 100], ids=["between", "header", "payload", "middle"])
async def test_a_record_that_came_from_two_places_proves_neither(chunk: int, into: int) -> None:
    (xorb, chunks) = FILE.runs[0]
    cas = PatchedCas(FILE)
    cas.first, cas.second = Noted(), Noted()
    cas.cut = sum(map(len, xorb.records[:chunk])) + into
    engine = make_engine(cas, ByteBudget(1 << 27))
    info = FetchInfo(chunks, xorb.byte_range(chunks), f"http://d/1/{xorb.xorb_hash.hex()}/0")
    grant = Grant(
        *(xorb.xorb_hash, FILE.file_hash, SIZE, info.url, 0.0, 0.0, "a"),
        (GrantedRange(chunks, info.byte_range, (TermUse(chunks, 0, SIZE),)),),
    )
    reader = engine.read_packed(grant, grant.ranges[0])
    async for _ in reader:
        pass
    assert reader.is_verified
    assert cas.first.proven == set(range(chunk))
    assert cas.second.proven == set(range(chunk + (into > 0), chunks.end))


@given(st.permutations(range(len(LEAVES))), st.booleans())
def test_a_whole_xorb_is_proven_by_its_hash(order: list[int], is_right: bool) -> None:
    marked: list[str] = []
    coverage = Coverage(XORB.xorb_hash, ChunkRange(0, len(LEAVES)), marked.append)
    for chunk in order:
        chunk_hash, size = LEAVES[chunk]
        coverage.note_hash(chunk, size, chunk_hash if is_right or chunk != 4 else bytes(32))
    assert coverage.is_proven is is_right
    coverage.settle("path")
    assert marked == ["path"] * is_right


@given(st.integers(0, 7), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_an_entry_is_proven_once_all_of_it_is(first: int, parts: list[tuple[int, int]]) -> None:
    marked: list[str] = []
    coverage = Coverage(XORB.xorb_hash, ChunkRange(first, 9), marked.append, "path")
    seen: set[int] = set()
    for one, other in parts:
        start, end = max(first, min(one, other)), max(first, one, other)
        coverage.note_proven(ChunkRange(start, end))
        seen |= set(range(start, end))
    assert marked == ["path"] * (seen >= set(range(first, 9)))


OVERLAPPING = [(0, 9), (6, 12), (8, 15)]


@pytest.mark.parametrize("wrong", [None, 6, 13], ids=["right", "in two", "in one"])
async def test_what_is_proven_in_another_entry_is_not_read_twice(
    site: Site, wrong: int | None
) -> None:
    """Each chunk counts where it was read, and its record for all entries that have the same."""
    for start, end in OVERLAPPING:
        await site.fill(start, end)
    paths = {parse_entry_name(path.name): path for path in site.entries()}
    if wrong is not None:
        with paths[ChunkRange(6, 12) if wrong == 6 else ChunkRange(8, 15)].open("r+b") as file:
            file.write(bytes([1]))
    coverages = {
        each: site.cache.coverages._coverages.peek(str(path))
        for path in paths.values()
        if (each := parse_entry_name(path.name))
    }
    for entry, read in (((0, 9), (0, 9)), ((6, 12), (9, 12)), ((8, 15), (12, 15))):
        coverage = coverages[ChunkRange(*entry)]
        assert coverage is not None
        coverage.note_proven(ChunkRange(*read))
    await site.cache.settle()
    marked = {
        parse_entry_name(path.name)
        for path in site.entries()
        if Standing.of(path.name) is Standing.PROVEN
    }
    expected = {None: OVERLAPPING, 6: [(0, 9)], 13: [(0, 9), (6, 12)]}[wrong]
    assert marked == {ChunkRange(*each) for each in expected}


@given(st.sets(st.integers(0, 9)))
def test_gaps(proven: set[int]) -> None:
    parts: list[Coverage] = []
    coverage = Coverage(XORB.xorb_hash, ChunkRange(5, 15), lambda _: None, "path", parts.append)
    for chunk in proven:
        coverage.note_proven(ChunkRange(5 + chunk, 6 + chunk))
    gaps = coverage.find_gaps()
    assert [chunk for gap in gaps for chunk in range(*gap)] == [
        chunk for chunk in range(5, 15) if chunk - 5 not in proven
    ]
    assert all(one.end < other.start for one, other in pairwise(gaps))
    assert parts == [coverage] * min(len(proven), 9)


async def test_an_entry_may_be_marked_while_it_is_read(site: Site) -> None:
    await site.fill(0, 40)
    (path,) = site.entries()
    buffer = memoryview(bytearray(1 << 20))
    async with site.cache.open_data(site.xorb.xorb_hash, site.info(0, 40)) as response:
        store = site.cache.disk_workers.store
        store.mark_proven(str(path))
        count = await response.receive_into(buffer, 1.0)
        assert site.expected(0, 40).startswith(buffer[:count])
    assert site.num_fetched == 0
    # Who knows it by its old name still removes it.
    assert store.remove(str(path)) == 1
    assert site.entries() == []
    store.mark_proven(str(path))  # and who comes too late to mark it does no harm


# Archives.


def tamper(folder: Path) -> None:
    """Overwrite bytes in all entries, as whoever makes an archive can: checks and all."""
    for xorb_hash, parent in list(iter_xorbs(folder)):
        for stored, chunks in list_entries(parent):
            xorb = next(x for x, _ in FILE.runs if x.xorb_hash == xorb_hash)
            byte_range = xorb.byte_range(chunks)
            data = bytearray(xorb.packed(byte_range))
            at = 0
            for record in xorb.records[chunks.start : chunks.end]:
                if parse_chunk_header(record).scheme is Scheme.NONE:
                    data[at + len(record) - 1] ^= 0xFF
                at += len(record)
            indexer = Indexer(EntryKey(xorb_hash, chunks, byte_range))
            indexer.feed(memoryview(data))
            Path(stored.path).write_bytes(data + indexer.make_index().pack())


async def make_archive(folder: Path, *, is_right: bool, has_ledger: bool) -> bytes:
    """An archive of the file, in several entries."""
    async with running(folder) as process:
        assert await process.read()
    if not is_right:
        tamper(folder)
    if not has_ledger:
        for path in ledgers(folder):
            path.unlink()
    stream = io.BytesIO()
    assert write_archive(make_store(folder), stream, version="1").num_unproven == 0
    return stream.getvalue()


def take_in(data: bytes, folder: Path) -> None:
    prepare_folder(folder)
    counted = Importer(make_store(folder)).run(io.BytesIO(data))
    assert counted.num_unproven == len(entries(folder))
    assert standings(folder) == {Standing.IMPORTED}


@pytest.mark.parametrize("has_ledger", [True, False], ids=["with a ledger", "without"])
async def test_no_range_has_what_the_maker_of_an_archive_wrote(
    tmp_path: Path, has_ledger: bool
) -> None:
    data = await make_archive(tmp_path / "there", is_right=False, has_ledger=has_ledger)
    take_in(data, tmp_path / "here")
    async with running(tmp_path / "here") as process:
        for start in range(0, SIZE, SIZE // 16):
            await process.read(start, min(SIZE, start + SIZE // 16))  # compares, too
    async with running(tmp_path / "here") as process:
        assert await process.read()


async def test_a_whole_read_finds_out_and_removes_it(tmp_path: Path) -> None:
    data = await make_archive(tmp_path / "there", is_right=False, has_ledger=False)
    take_in(data, tmp_path / "here")
    async with running(tmp_path / "here") as process:
        with pytest.raises(XetserveError):
            await read_all(open_reader(process.engine, FILE, 0, None))
    async with running(tmp_path / "here") as process:
        assert await process.read()


@pytest.mark.parametrize("has_ledger", [True, False], ids=["with a ledger", "without"])
async def test_what_is_right_serves_without_the_data_host(tmp_path: Path, has_ledger: bool) -> None:
    data = await make_archive(tmp_path / "there", is_right=True, has_ledger=has_ledger)
    here, cas = tmp_path / "here", FakeCas(FILE)
    take_in(data, here)
    async with running(here, cas) as process:
        if has_ledger:
            assert await process.read(100, 70_000)
        assert await process.read()
    assert cas.fetched == []
    assert standings(here) == {Standing.PROVEN}


async def test_a_range_does_not_join_a_fetch_of_imported_records(tmp_path: Path) -> None:
    """A whole read would find damage in the end; whoever has a part of its fetch would not."""
    data = await make_archive(tmp_path / "there", is_right=False, has_ledger=False)
    take_in(data, tmp_path / "here")
    async with running(tmp_path / "here") as process:
        whole = open_reader(process.engine, FILE, 0, None)
        await anext(whole)
        with suppress(IntegrityError):  # the two contradict each other
            await process.read(0, 30_000)  # compares
        await whole.aclose()


# Commands.


def check(folder: Path, *, removes: bool = True) -> Report:
    return Checker(make_store(folder), removes=removes).run()


async def test_verify_proves_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        assert await process.read()
    set_standing(tmp_path, Standing.UNPROVEN)
    num = len(entries(tmp_path))
    contents = count_contents(tmp_path)
    assert (contents.unproven.num, contents.imported.num) == (num, 0)
    # The xorb is here as a whole: its own hash speaks for it.
    report = check(tmp_path, removes=False)
    assert (report.unproven, report.num_proven) == ([], 1)
    assert standings(tmp_path) == {Standing.UNPROVEN}
    lone = entries(tmp_path)[0]
    content = lone.read_bytes()
    for path in entries(tmp_path):
        path.unlink()
    lone.write_bytes(content)
    report = check(tmp_path)
    assert report.unproven == [str(lone.relative_to(tmp_path))]
    assert (report.num_proven, report.damaged) == (0, {})
    # Another entry with the same chunks, which is proven, speaks for it.
    start, end, _ = lone.name.split("-")
    chunks = ChunkRange(int(start), int(end))
    (lone.parent / make_entry_name(chunks, b"8 bytes!", Standing.PROVEN)).write_bytes(content)
    assert check(tmp_path).unproven == []
    assert standings(tmp_path) == {Standing.PROVEN}


async def test_export_leaves_out_what_nothing_speaks_for(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        assert not await process.read(SIZE // 3, SIZE)
    num = len(entries(tmp_path))
    for with_unproven, expected in ((False, (0, num)), (True, (num, 0))):
        counted = write_archive(
            make_store(tmp_path), io.BytesIO(), version="1", with_unproven=with_unproven
        )
        assert (counted.num, counted.num_unproven) == expected
