"""A disk cache around a CAS in memory, for the tests of what it is made of."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.waiting import PATIENCE
from xetserve.pipeline.cache import layout
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.verify import ledger_store
from xetserve.upstream.answers import store
from xetserve.xet.compression import Scheme
from xetserve.xet.reconstruction import ChunkRange, FetchInfo

SCHEMES = (Scheme.NONE, Scheme.LZ4, Scheme.BG4_LZ4)
HUGE = 1 << 40


def make_xorb(count: int = 40, seed: int = 1, size: int = 20_000) -> FakeXorb:
    source = random.Random(seed)
    return FakeXorb.make(
        [source.randbytes(source.randrange(1, size)) for _ in range(count)], SCHEMES
    )


XORB = make_xorb()
LARGE = make_xorb(60, 2, 130_000)  # several blocks
SMALL = make_xorb(12, 3, 400)


@dataclass
class Site:
    """A cache in a folder and the CAS behind it."""

    cache: DiskCache
    cas: FakeCas
    folder: Path
    xorb: FakeXorb

    def info(self, start: int, end: int) -> FetchInfo:
        chunks = ChunkRange(start, end)
        name = self.xorb.xorb_hash.hex()[:8]
        return FetchInfo(chunks, self.xorb.byte_range(chunks), f"http://data.test/1/{name}/{start}")

    def expected(self, start: int, end: int) -> bytes:
        return b"".join(self.xorb.records[start:end])

    async def read(self, start: int, end: int, *, piece: int = 1 << 20, upto: int = HUGE) -> bytes:
        """Read a range as a fetch does; leave after upto bytes."""
        got = bytearray()
        buffer = memoryview(bytearray(piece))
        async with self.cache.open_data(self.xorb.xorb_hash, self.info(start, end)) as response:
            while len(got) < upto and (count := await response.receive_into(buffer, 1.0)):
                got += buffer[:count]
        return bytes(got)

    async def fill(self, start: int, end: int) -> None:
        """Have a range stored."""
        assert await self.read(start, end) == self.expected(start, end)
        await self.cache.settle()
        self.cas.fetched.clear()

    @property
    def num_fetched(self) -> int:
        return len(self.cas.fetched)

    def entries(self) -> list[Path]:
        return sorted(self.folder.glob("??/*/*.xc"))

    def temporaries(self) -> list[Path]:
        return list((self.folder / "tmp").iterdir())


async def start_swept(cache: DiskCache) -> None:
    """Start a cache; what it counts does not change by itself afterwards."""
    await cache.start()
    await asyncio.sleep(0)  # its first sweep begins, which may count twice what comes meanwhile
    await cache.disk_workers.sweep()  # after that one


@asynccontextmanager
async def make_site(
    folder: Path, xorb: FakeXorb = XORB, *, max_size: int = HUGE, min_free: int = 0
) -> AsyncIterator[Site]:
    cas = FakeCas(FakeFile([(xorb, ChunkRange(0, len(xorb.records)))]), piece=100_000)
    cache = DiskCache(cas, folder, max_size=max_size, min_free=min_free)
    await start_swept(cache)
    try:
        yield Site(cache, cas, folder, xorb)
    finally:
        await cache.aclose()
        assert (
            cache.disk_workers.num_blocks
            == cache.disk_workers.num_held
            == len(cache.disk_workers.writers)
            == 0
        )
        assert cas.num_open == 0


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a busy disk: none of its timeouts passes, but those that a test sets itself."""
    for name in ("disk_cache.DISK_TIMEOUT", "disk_cache.CLOSE_TIMEOUT", "blobs.DISK_TIMEOUT"):
        monkeypatch.setattr(f"xetserve.pipeline.cache.{name}", PATIENCE)
    monkeypatch.setattr(ledger_store, "LOAD_TIMEOUT", PATIENCE)
    monkeypatch.setattr(store, "READ_TIMEOUT", PATIENCE)
    monkeypatch.setattr(store, "CLOSE_TIMEOUT", PATIENCE)


class Counts(NamedTuple):
    """What the counters have counted since the test began."""

    hits: float
    misses: float
    damaged: float
    evictions: float


def count_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files cost what they have, not whole blocks: sizes in tests are small."""
    monkeypatch.setattr(layout, "BLOCK", 1)
