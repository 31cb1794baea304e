"""Processes that read one file through a disk cache, and what they leave in its folder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes import FakeCas
from tests.pipeline.cache.cache_site import start_swept
from tests.pipeline.reading import CONTENT, FILE, SIZE, make_engine, open_reader, read_all
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.engine import Engine
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.verify.ledger_store import LedgerStore


class Process:
    """What one process has in memory, over the folder that all share."""

    def __init__(self, cache: DiskCache, engine: Engine) -> None:
        self.cache = cache
        self.engine = engine

    async def read(self, start: int = 0, end: int | None = None) -> bool:
        """Read a part; return whether it was verified."""
        reader = open_reader(self.engine, FILE, start, end)
        assert await read_all(reader) == CONTENT[start : SIZE if end is None else end]
        return reader.is_verified


@asynccontextmanager
async def running(folder: Path, cas: FakeCas | None = None) -> AsyncIterator[Process]:
    """Yield a process with a cache in that folder, and settle what it has begun to write."""
    cache = DiskCache(cas or FakeCas(FILE), folder, max_size=1 << 40, min_free=0)
    await start_swept(cache)
    engine = make_engine(
        cache, ByteBudget(1 << 27), ledger_store=LedgerStore(cache), proven_store=cache
    )
    try:
        yield Process(cache, engine)
        await cache.settle()
    finally:
        await cache.aclose()


def ledgers(folder: Path) -> list[Path]:
    return list(folder.glob("ledgers/*/*"))


def entries(folder: Path) -> list[Path]:
    return list(folder.glob("??/*/*.xc"))
