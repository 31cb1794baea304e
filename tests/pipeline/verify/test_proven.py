"""A proven file out of the disk cache: its own hashes find what a disk has done, whatever it
was.
"""

from pathlib import Path

import pytest

from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.pipeline.reading import ALL_SCHEMES, make_chunks, make_engine, open_reader, read_all
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.cache.entry import EntryIndex
from xetserve.pipeline.fetch.fetch import Fetch
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.pacing import HostSpeed, Pacer
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.xet.reconstruction import ChunkRange, FetchInfo

XORB = FakeXorb.make(make_chunks(60), ALL_SCHEMES)
FILE = FakeFile([(XORB, ChunkRange(0, 60))])


def offset_of(chunk: int) -> int:
    """Where in the entry of the whole xorb a chunk's record starts."""
    return sum(len(record) for record in XORB.records[:chunk])


def damage(folder: Path, position: int) -> None:
    """Change a byte of the only entry."""
    (entry,) = folder.glob("??/*/*.xc")
    data = bytearray(entry.read_bytes())
    data[position] ^= 1
    entry.write_bytes(data)


@pytest.mark.parametrize("chunk", [0, 1, 2, 30, 59])
@pytest.mark.parametrize("at", [0, 1, 4, 6, 8, 20], ids=lambda at: f"byte {at}")
async def test_damage_on_disk_is_put_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, at: int
) -> None:
    cas = FakeCas(FILE)
    cache = DiskCache(cas, tmp_path, max_size=1 << 40, min_free=0)
    await cache.start()
    try:
        chunks = ChunkRange(0, 60)
        whole = FetchInfo(
            chunks, XORB.byte_range(chunks), f"http://data.test/1/{XORB.xorb_hash.hex()[:8]}/0"
        )
        async with cache.open_data(XORB.xorb_hash, whole) as response:
            buffer = memoryview(bytearray(1 << 20))
            while await response.receive_into(buffer, 1.0):
                pass
        await cache.settle()
        engine = make_engine(cache, ByteBudget(1 << 27))
        assert await read_all(open_reader(engine, FILE)) == FILE.content
        await cache.settle()  # the entry has its new name, if it has been proven
        damage(tmp_path, offset_of(chunk) + at)
        cas.fetched.clear()
        with monkeypatch.context() as patched:  # it is not the checks on disk that find it
            patched.setattr(EntryIndex, "is_intact", lambda *_: pytest.fail("looked over"))
            reader = open_reader(engine, FILE)
            assert await read_all(reader) == FILE.content
        assert reader.is_verified
        assert cas.fetched
        await cache.settle()
        assert await read_all(open_reader(engine, FILE)) == FILE.content
    finally:
        await cache.aclose()


def test_who_holds_nothing_against_a_list_shares_only_what_was_looked_over() -> None:
    fetches = make_engine(FakeCas(FILE), ByteBudget(1 << 27)).fetches
    chunks = ChunkRange(0, 60)
    step = Step(
        XORB.xorb_hash, FetchInfo(chunks, XORB.byte_range(chunks), "http://data.test/"), (1,) * 60
    )

    async def refresh(stale: FetchInfo) -> FetchInfo:
        return stale

    def open_fetch(*, is_proven: bool) -> Fetch:
        traffic = FileTraffic()
        return fetches.open_lease(step, traffic, 0, refresh, Tally(), is_proven=is_proven).fetch

    proven = open_fetch(is_proven=True)
    assert open_fetch(is_proven=True) is proven
    checked = open_fetch(is_proven=False)
    assert checked is not proven
    assert open_fetch(is_proven=True) is checked


async def test_windows_are_small_enough_to_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int | None] = []

    def note_window(
        pacer: Pacer,
        size: int,
        share: int,
        far: HostSpeed,
        *,
        is_shared: bool,
        max_stored: int | None,
    ) -> None:
        assert not is_shared
        sizes.append(max_stored)

    monkeypatch.setattr(Pacer, "note_window", note_window)
    cas = FakeCas(FILE)
    cache = DiskCache(cas, tmp_path, max_size=1 << 30, min_free=0)
    await cache.start()
    try:
        for source, expected in ((cache, 1 << 29), (cas, None)):
            engine = make_engine(source, ByteBudget(1 << 27))
            assert await read_all(open_reader(engine, FILE)) == FILE.content
            assert set(sizes) == {expected}
            sizes.clear()
    finally:
        await cache.aclose()
