"""Files in a CAS in memory, and readers of them."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from tests.fakes import FakeAccess, FakeCas, FakeFile, FakeXorb
from tests.waiting import PATIENCE
from xetserve.pipeline.blocks import BlockReader
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.proven_store import ProvenStore
from xetserve.pipeline.reader import FileReader
from xetserve.pipeline.verify.ledger_store import LedgerStore
from xetserve.pipeline.verify.worker_bus import WorkerBus
from xetserve.upstream.cas.source import CasSource
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.compression import Scheme
from xetserve.xet.reconstruction import ChunkRange, FetchInfo
from xetserve.xet.xorb import CHUNK_HEADER_SIZE

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.2)
LIMITS = ReadLimits(stall_timeout=PATIENCE, gap_timeout=PATIENCE)
ALL_SCHEMES = (Scheme.NONE, Scheme.LZ4, Scheme.BG4_LZ4)


def make_chunks(count: int, seed: int = 1, size: int = 65536) -> list[bytes]:
    source = random.Random(seed)
    return [
        source.randbytes(source.randrange(1, size))
        if index % 3 == 0
        else (source.randbytes(16) * (size // 8))[: source.randrange(1, size)]
        for index in range(count)
    ]


def simple_file(num_chunks: int = 60) -> FakeFile:
    xorb = FakeXorb.make(make_chunks(num_chunks), ALL_SCHEMES)
    return FakeFile([(xorb, ChunkRange(0, num_chunks))])


FILE: Final = simple_file()
CONTENT: Final = FILE.content
SIZE: Final = len(CONTENT)


def fragmented_file() -> FakeFile:
    """Terms that repeat, overlap and go back over two xorbs."""
    a, b = (
        FakeXorb.make(make_chunks(50), ALL_SCHEMES),
        FakeXorb.make(make_chunks(30, 2), ALL_SCHEMES),
    )
    runs = [(a, 0, 49), (a, 1, 25), (b, 3, 9), (a, 49, 50), (a, 1, 10), (b, 0, 30), (a, 0, 50)]
    return FakeFile([(xorb, ChunkRange(start, end)) for xorb, start, end in runs])


def make_reader(
    cas: FakeCas,
    budget: ByteBudget,
    *,
    start: int = 0,
    end: int | None = None,
    size: int | None = None,
    file_hash: bytes | None = None,
) -> FileReader:
    return make_engine(cas, budget).read(
        FakeAccess(), file_hash or cas.file.file_hash, start=start, end=end, size=size
    )


def make_engine(
    cas: CasSource,
    budget: ByteBudget,
    *,
    ledger_store: LedgerStore | None = None,
    worker_bus: WorkerBus | None = None,
    proven_store: ProvenStore | None = None,
) -> Engine:
    return Engine(
        cas,
        budget,
        policy=POLICY,
        limits=LIMITS,
        ledger_store=ledger_store,
        worker_bus=worker_bus,
        proven_store=proven_store,
    )


async def read_all(reader: BlockReader, into: bytearray | None = None) -> bytes:
    """Read to the end and return the bytes; `into` has those that came before a failure."""
    into = bytearray() if into is None else into
    async with aclosing(reader):
        async for block in reader:
            into += b"".join(block)  # at once: the buffers are good until the next block only
    return bytes(into)


def assert_released(cas: FakeCas, budget: ByteBudget) -> None:
    assert (budget.held, budget.num_readers, cas.num_open) == (0, 0, 0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


def open_reader(
    engine: Engine, file: FakeFile, start: int = 0, end: int | None = None
) -> FileReader:
    """Open a reader that knows the size of its file."""
    size, access = len(file.content), FakeAccess()
    return engine.read(access, file.file_hash, start=start, end=end, size=size)


def damaged(times: int = 1_000_000) -> FakeCas:
    """A CAS whose data has a wrong byte in its first chunk, which is raw, so many times."""
    left = times

    def damage(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        nonlocal left
        if info.chunks.start or not left:
            return data, None
        left -= 1
        at = CHUNK_HEADER_SIZE + 3
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], None

    return FakeCas(FILE, on_data=damage)


def damage_twice(file: FakeFile) -> Callable[[int, FetchInfo, bytes], tuple[bytes, None]]:
    """Return what damages the eighth chunk of a file, an LZ4 frame, in the first two fetches."""
    at = file.runs[0][0].byte_range(ChunkRange(0, 7)).end + 30

    def damage(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, None]:
        start = at - info.byte_range.start
        if number <= 2 and 0 <= start < len(data):
            return data[:start] + bytes(10) + data[start + 10 :], None
        return data, None

    return damage
