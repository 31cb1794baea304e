"""What was proven once leaves the cache as it is; whatever has happened to it since is found."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeCas
from tests.pipeline.cache.cache_site import be_patient, start_swept
from tests.pipeline.cache.cached_file import entries
from tests.pipeline.packed_reading import Side
from tests.pipeline.reading import FILE, SIZE, fragmented_file, open_reader, read_all
from tests.waiting import PATIENCE, until
from xetserve.errors import IntegrityError
from xetserve.metrics.catalogue import CACHE_PROVEN_BYTES
from xetserve.pipeline.cache.chunk_hashes import ChunkHashes
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.cache.entry import Standing
from xetserve.pipeline.cache.proven_records import StoredRecords
from xetserve.pipeline.fetch.fetch import Fetch
from xetserve.xet.grants import Grant
from xetserve.xet.hashes import HASH_SIZE
from xetserve.xet.reconstruction import ChunkRange


class Counted:
    """How much was decoded, and how much left without, since the last look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_decoded = 0
        self._before = CACHE_PROVEN_BYTES.total
        decode = Fetch.decode

        def count(fetch: Fetch, chunk: int) -> Any:
            self.num_decoded += 1
            return decode(fetch, chunk)

        monkeypatch.setattr(Fetch, "decode", count)

    def take(self) -> tuple[int, int]:
        """Return the chunks that were decoded, and the bytes that were not."""
        now = CACHE_PROVEN_BYTES.total
        found = (self.num_decoded, int(now - self._before))
        self.num_decoded, self._before = 0, now
        return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    be_patient(monkeypatch)
    return Counted(monkeypatch)


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[Side]:
    """A side whose cache has the file, proven by native reads of all of it."""
    async for each in make_side(tmp_path):
        for grant in await each.grant():
            await each.read(grant)
        await settle(each)
        assert {Standing.of(path.name) for path in entries(tmp_path)} == {Standing.PROVEN}
        yield each


async def make_side(folder: Path, file: Any = FILE) -> AsyncIterator[Side]:
    cas = FakeCas(file)
    cache = DiskCache(cas, folder, max_size=1 << 40, min_free=0)
    await start_swept(cache)
    side = Side(file, cache=cache)
    side.cas = cas
    try:
        yield side
        await cache.settle()
        assert side.budget.held == 0
    finally:
        await cache.aclose()


async def settle(side: Side) -> None:
    source = side.engine.source
    assert isinstance(source, DiskCache)
    await source.settle()


def flip(folder: Path, at: int) -> Path:
    """Invert a bit of the only entry."""
    (path,) = entries(folder)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return path


def size_of(grants: list[Grant]) -> int:
    return sum(grant.ranges[0].byte_range.size for grant in grants)


async def test_a_proven_file_is_not_decoded_again(counted: Counted, side: Side) -> None:
    counted.take()
    side.cas.fetched.clear()
    for cuts in ([0, SIZE], [0, SIZE // 3, SIZE]):
        for start, end in pairwise(cuts):
            grants = await side.grant(start, end)
            assert [(await side.read(grant)).is_verified for grant in grants] == [True]
            assert counted.take() == (0, size_of(grants))
    assert side.cas.fetched == []


async def test_a_file_in_parts_of_several_xorbs(counted: Counted, tmp_path: Path) -> None:
    async for side in make_side(tmp_path, fragmented_file()):
        for grant in await side.grant():
            await side.read(grant)
        await settle(side)
        counted.take()
        grants = await side.grant()
        for grant in grants:
            assert (await side.read(grant)).is_verified
        assert counted.take() == (0, size_of(grants))


async def test_a_plain_read_proves_for_native_ones(counted: Counted, tmp_path: Path) -> None:
    async for side in make_side(tmp_path):
        await read_all(open_reader(side.engine, FILE))
        await settle(side)
        counted.take()
        grants = await side.grant()
        for grant in grants:
            await side.read(grant)
        assert counted.take() == (0, size_of(grants))


async def test_what_is_not_proven_is_decoded(counted: Counted, tmp_path: Path) -> None:
    async for side in make_side(tmp_path):
        (grant,) = await side.grant(0, SIZE // 3)
        num_chunks = grant.ranges[0].chunks.end - grant.ranges[0].chunks.start
        for _ in range(2):
            assert not (await side.read(grant)).is_verified
            await settle(side)
            assert counted.take() == (num_chunks, 0)


@pytest.mark.parametrize("standing", [Standing.UNPROVEN, Standing.IMPORTED])
async def test_the_mark_is_needed(
    counted: Counted, side: Side, tmp_path: Path, standing: Standing
) -> None:
    (path,) = entries(tmp_path)
    path.rename(standing.rename(str(path)))
    counted.take()
    (grant,) = await side.grant()
    assert (await side.read(grant)).is_verified
    assert counted.take() == (len(FILE.runs[0][0].records), 0)


async def test_another_process_hashes_an_entry_once(
    counted: Counted, side: Side, tmp_path: Path
) -> None:
    """The mark of another process is not enough, nor is its ledger."""
    async for other in make_side(tmp_path):
        await read_all(open_reader(other.engine, FILE))
        other.engine.source.coverages.hashes = ChunkHashes()  # type: ignore[attr-defined]
        counted.take()
        (grant,) = await other.grant()
        assert (await other.read(grant)).is_verified
        assert counted.take() == (len(FILE.runs[0][0].records), 0)
        assert (await other.read(grant)).is_verified
        assert counted.take() == (0, size_of([grant]))


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99], ids=["first", "middle", "last"])
async def test_damage_on_disk_never_leaves(
    counted: Counted, side: Side, tmp_path: Path, part: float
) -> None:
    (grant,) = await side.grant()
    size = grant.ranges[0].byte_range.size
    path = flip(tmp_path, int(size * part) + 10)
    side.cas.fetched.clear()
    counted.take()
    assert (await side.read(grant)).is_verified  # and the bytes are compared
    num_decoded, num_proven = counted.take()
    assert num_decoded == len(FILE.runs[0][0].records)
    assert num_proven < size * max(part, 0.001)
    assert len(side.cas.fetched) == 1
    await settle(side)
    assert path not in entries(tmp_path)
    assert (await side.read(grant)).is_verified
    assert counted.take() == (0, size)  # of the entry that has taken its place


@pytest.mark.parametrize("change", ["removed", "truncated", "exchanged"])
async def test_an_entry_that_changes_in_the_middle(
    counted: Counted, side: Side, tmp_path: Path, change: str
) -> None:
    (grant,) = await side.grant()
    reader = side.open(grant)
    await reader.start()
    got = b"".join(map(bytes, await anext(reader)))
    (path,) = entries(tmp_path)
    if change == "removed":
        path.unlink()
    elif change == "truncated":
        os.truncate(path, len(got) + 3)
    else:
        new = path.with_name("new")
        new.write_bytes(bytes(path.stat().st_size))
        new.rename(path)
    got += await read_all(reader)
    assert got == side.expected(grant)


async def test_a_wrong_reconstruction_is_found(counted: Counted, side: Side) -> None:
    """Proven records of a proven file, but not those that belong there."""
    (grant,) = await side.grant()
    (granted,) = grant.ranges
    (use,) = granted.uses
    wrong = granted._replace(uses=(use._replace(position=use.position + 1),))
    counted.take()
    with pytest.raises(IntegrityError):
        await read_all(side.engine.read_packed(grant, wrong))
    assert counted.take()[1] == 0


async def test_another_digest_is_found(counted: Counted, side: Side) -> None:
    (grant,) = await side.grant()
    (granted,) = grant.ranges
    reader = side.engine.read_packed(grant, granted._replace(digest="0" * 32))
    reader._expected_digest = "0" * 32  # as of a file that was proven after can_prove
    with pytest.raises(IntegrityError, match="granted"):
        await read_all(reader)
    assert counted.take()[1] == 0


async def test_the_rest_is_packed_in_another_way(
    counted: Counted, side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has left and what comes then would not be a xorb together."""
    (grant,) = await side.grant()
    size = grant.ranges[0].byte_range.size
    reader = side.open(grant)
    await reader.start()
    await anext(reader)
    flip(tmp_path, size - 100)
    reader._sent = (0, 0)
    read_proven = reader._read_proven

    async def move(records: Any) -> Any:
        block = await read_proven(records)
        if block is None:
            reader._sent = (reader._sent[0], reader._sent[1] + 1)
        return block

    monkeypatch.setattr(reader, "_read_proven", move)
    with pytest.raises(IntegrityError, match="but was at"):
        await read_all(reader)


async def test_a_client_that_leaves_while_a_thread_reads(
    counted: Counted, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, goes_on = threading.Event(), threading.Event()
    load = StoredRecords._load

    def wait_and_load(*args: Any) -> None:
        reads.set()
        goes_on.wait(PATIENCE)
        load(*args)

    (grant,) = await side.grant()
    num_open = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(StoredRecords, "_load", wait_and_load)
    reader = side.open(grant)
    task = asyncio.create_task(reader.start())
    await until(reads.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await reader.aclose()
    assert side.budget.held == 0
    goes_on.set()
    await settle(side)
    # The thread closes the file after its last word to the loop.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= num_open)


class TestChunkHashes:
    CHUNKS = ChunkRange(2, 5)

    def filled(self) -> ChunkHashes:
        hashes = ChunkHashes()
        for chunk in range(*self.CHUNKS):
            assert hashes.find("a.xc", self.CHUNKS) is None
            hashes.note("a", self.CHUNKS, chunk, bytes([chunk]) * HASH_SIZE)
        return hashes

    def test_all_are_known(self) -> None:
        hashes = self.filled()
        for path in ("a.xc", "a.proven.xc"):
            assert hashes.has_all(path)
            assert hashes.find(path, ChunkRange(3, 5)) == b"\3" * HASH_SIZE + b"\4" * HASH_SIZE

    def test_a_chunk_of_another_hash_forgets_all(self) -> None:
        hashes = self.filled()
        hashes.note("a", self.CHUNKS, 3, bytes([9]) * HASH_SIZE)
        assert not hashes.has_all("a.xc")
        assert hashes.find("a.xc", self.CHUNKS) is None

    def test_an_entry_that_was_cut(self) -> None:
        hashes, key = ChunkHashes(), object()
        for chunk in (2, 4):
            hashes.note(key, self.CHUNKS, chunk, bytes([chunk]) * HASH_SIZE)
        cut = ChunkRange(2, 4)
        hashes.place(key, "a.xc", cut)
        assert not hashes.has_all("a.xc")
        hashes.note("a", cut, 4, b"\4" * HASH_SIZE)  # behind the cut
        assert not hashes.has_all("a.xc")
        hashes.note("a", cut, 3, b"\3" * HASH_SIZE)
        assert hashes.find("a.proven.xc", cut) == b"\2" * HASH_SIZE + b"\3" * HASH_SIZE
