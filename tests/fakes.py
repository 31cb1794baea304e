"""Small stand-ins for what is outside, scripted by the test; no sockets, no clock."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from xetserve.errors import RangeUnsatisfiable, RequestError, UpstreamError
from xetserve.upstream.cas.source import Access
from xetserve.upstream.hub.client import CasToken
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import MerkleTree, hash_chunk
from xetserve.xet.reconstruction import (
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
)
from xetserve.xet.xorb import pack_chunk


class FakeAccess:
    """Read access that never runs out."""

    async def get_token(self) -> CasToken:
        return CasToken("http://cas.test", "token", 2e9)

    async def renew_token(self) -> CasToken:
        return await self.get_token()


@dataclass
class FakeXorb:
    """A xorb in memory: decoded chunks, and their packed records."""

    xorb_hash: bytes
    chunks: list[bytes]
    records: list[bytes]

    @classmethod
    def make(cls, chunks: Sequence[bytes], schemes: Sequence[Scheme] = ()) -> "FakeXorb":
        tree = MerkleTree()
        records = []
        for index, chunk in enumerate(chunks):
            tree.add(hash_chunk(chunk), len(chunk))
            scheme = schemes[index % len(schemes)] if schemes else Scheme.LZ4
            records.append(pack_chunk(chunk, scheme))
        return cls(tree.xorb_hash(), list(chunks), records)

    def byte_range(self, chunks: ChunkRange) -> ByteRange:
        start = sum(map(len, self.records[: chunks.start]))
        return ByteRange(start, start + sum(map(len, self.records[chunks.start : chunks.end])))

    def packed(self, byte_range: ByteRange) -> bytes:
        return b"".join(self.records)[byte_range.start : byte_range.end]


@dataclass
class FakeFile:
    """A file made of runs of chunks: (xorb, chunk range)."""

    runs: list[tuple[FakeXorb, ChunkRange]]

    @property
    def content(self) -> bytes:
        return b"".join(
            b"".join(xorb.chunks[chunks.start : chunks.end]) for xorb, chunks in self.runs
        )

    @property
    def file_hash(self) -> bytes:
        tree = MerkleTree()
        for xorb, chunks in self.runs:
            for chunk in xorb.chunks[chunks.start : chunks.end]:
                tree.add(hash_chunk(chunk), len(chunk))
        return tree.file_hash()


class FakeResponse:
    """A data answer that gives at most `piece` bytes at a time, and may break off."""

    is_stored = False
    origin = None
    has_imported = False

    def __init__(self, data: bytes, piece: int, cut_at: int | None = None) -> None:
        self._data = data
        self._at = 0
        self._piece = piece
        self._cut_at = cut_at

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        await asyncio.sleep(0)
        if self._cut_at is not None and self._at >= self._cut_at:
            raise UpstreamError("cut")
        end = self._at + min(self._piece, len(view))
        part = self._data[self._at : end if self._cut_at is None else min(end, self._cut_at)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


@dataclass
class FakeCas:
    """A CAS for one file. on_data may fail a fetch, or damage or cut what it gives.

    trims: leave out chunks before and after the asked range, as servers usually do.
    """

    max_stored_size: ClassVar[int | None] = None
    file: FakeFile
    piece: int = 1 << 20
    trims: bool = True
    on_data: Callable[[int, FetchInfo, bytes], tuple[bytes, int | None]] | None = None
    on_plan: Callable[[Reconstruction], Reconstruction] | None = None
    asked: list[ByteRange] = field(default_factory=list)
    fetched: list[FetchInfo] = field(default_factory=list)
    forgotten: list[tuple[bytes, ChunkRange]] = field(default_factory=list)
    num_open: int = 0
    max_open: int = 0

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        self.forgotten.append((xorb_hash, chunks))

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        self.asked.append(byte_range)
        await asyncio.sleep(0)
        answer = self._plan(byte_range)
        return self.on_plan(answer) if self.on_plan else answer

    def _plan(self, asked: ByteRange) -> Reconstruction:
        terms: list[Term] = []
        ranges: dict[bytes, list[ChunkRange]] = {}
        xorbs = {}
        position = 0
        offset: int | None = None
        for xorb, chunks in self.file.runs:
            first: int | None = None
            last = chunks.start
            size = 0
            run_start = position
            for index in range(chunks.start, chunks.end):
                length = len(xorb.chunks[index])
                if position < asked.end and position + length > asked.start:
                    if first is None:
                        first = index
                        if offset is None:
                            offset = asked.start - position
                    last = index + 1
                    size += length
                position += length
            if first is None:
                continue
            kept = ChunkRange(first, last)
            if not self.trims:
                if not terms:
                    offset = asked.start - run_start
                kept, size = chunks, position - run_start
            terms.append(Term(xorb.xorb_hash, kept, size))
            ranges.setdefault(xorb.xorb_hash, []).append(kept)
            xorbs[xorb.xorb_hash] = xorb
        if asked.start >= position:
            raise RangeUnsatisfiable("past the end")
        return Reconstruction(
            max(0, offset or 0),
            tuple(terms),
            {
                xorb_hash: tuple(
                    FetchInfo(
                        chunks,
                        xorbs[xorb_hash].byte_range(chunks),
                        f"http://data.test/{len(self.asked)}/{xorb_hash.hex()[:8]}/{chunks.start}",
                    )
                    for chunks in merge_ranges(wanted)
                )
                for xorb_hash, wanted in ranges.items()
            },
        )

    @asynccontextmanager
    async def open_data(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        *,
        is_proven: bool = False,
        takes_imported: bool = True,
    ) -> AsyncIterator[FakeResponse]:
        self.fetched.append(info)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            await asyncio.sleep(0)
            name = info.url.split("/")[4]
            xorb = next(x for x, _ in self.file.runs if x.xorb_hash.hex().startswith(name))
            data, cut_at = xorb.packed(info.byte_range), None
            if self.on_data is not None:
                data, cut_at = self.on_data(len(self.fetched), info, data)
            yield FakeResponse(data, self.piece, cut_at)
        finally:
            self.num_open -= 1


def merge_ranges(ranges: Sequence[ChunkRange]) -> list[ChunkRange]:
    """Merge ranges that touch or overlap, as servers do."""
    merged: list[ChunkRange] = []
    for chunks in sorted(ranges):
        if merged and chunks.start <= merged[-1].end:
            merged[-1] = ChunkRange(merged[-1].start, max(merged[-1].end, chunks.end))
        else:
            merged.append(chunks)
    return merged


class FakeBody:
    """The body of a request, here already."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data

    async def read(self, limit: int) -> bytes:
        if len(self._data) > limit:
            raise RequestError(413, "too large")
        return self._data

    def release(self) -> None:
        pass
