"""A file in a CAS in memory, read packed as a native client reads it."""

import time

from tests.fakes import FakeAccess, FakeCas, FakeFile
from tests.pipeline.reading import FILE, assert_released, make_engine, read_all
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.packed_reader import PackedReader
from xetserve.xet.data_urls import Granter
from xetserve.xet.grants import Grant, open_grant
from xetserve.xet.reconstruction import ByteRange, FetchInfo
from xetserve.xet.signing import Sealer
from xetserve.xet.xorb import CHUNK_HEADER_SIZE

SEALER = Sealer(b"k" * 32)


class Side:
    """A CAS, the engine in front of it, and what clients were granted."""

    def __init__(
        self, file: FakeFile = FILE, limit: int = 1 << 27, cache: DiskCache | None = None
    ) -> None:
        self.file = file
        self.cas = FakeCas(file)
        self.budget = ByteBudget(limit)
        source = self.cas if cache is None else cache
        self.engine = make_engine(source, self.budget, proven_store=cache)

    async def grant(self, start: int = 0, end: int | None = None) -> list[Grant]:
        """Return grants of one range each, for a part of the file."""
        size = len(self.file.content)
        asked = ByteRange(start, size if end is None else end)
        answer = await self.cas.fetch_reconstruction(FakeAccess(), self.file.file_hash, asked)
        granter = Granter(
            SEALER,
            "",
            issued=time.monotonic(),
            expires=0.0,
            instance="a",
            find_hashes=self.engine.ledgers.find_hashes,
        )
        given = granter.rewrite(answer, start, self.file.file_hash, size, has_single_ranges=True)
        texts = [info.url.rpartition("=")[2] for xs in given.fetch_info.values() for info in xs]
        grants = [open_grant(SEALER, text) for text in texts]
        return [grant for grant in grants if grant is not None]

    def open(self, grant: Grant) -> PackedReader:
        (granted,) = grant.ranges
        return self.engine.read_packed(grant, granted)

    async def read(self, grant: Grant) -> PackedReader:
        """Read a grant, check its data, and return the reader."""
        reader = self.open(grant)
        assert await read_all(reader) == self.expected(grant)
        return reader

    def expected(self, grant: Grant) -> bytes:
        xorb = next(x for x, _ in self.file.runs if x.xorb_hash == grant.xorb_hash)
        return xorb.packed(grant.ranges[0].byte_range)

    def assert_released(self) -> None:
        assert_released(self.cas, self.budget)


class Damage:
    """Invert a bit of a raw chunk, so many times."""

    def __init__(self, chunk: int, times: int = 1_000_000) -> None:
        self.chunk = chunk
        self.left = times

    def __call__(self, number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        if not info.chunks.start <= self.chunk < info.chunks.end or not self.left:
            return data, None
        self.left -= 1
        records = FILE.runs[0][0].records
        at = sum(map(len, records[info.chunks.start : self.chunk])) + CHUNK_HEADER_SIZE + 1
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], None
