"""Packing content into xorbs: chunking, deduplication, compression.

Used for imported folders and for LFS uploads. Nothing can be read before publish, and abort leaves
nothing behind. The work is done in a thread, a batch of chunks at a time.
"""

import asyncio
import os
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from xetserve.base.atomic_file import open_private
from xetserve.origin.store.files import FileRecord, FileStore, make_file_record
from xetserve.origin.store.xorbs import XorbIndex, XorbScanner, XorbStore, gather_blocks
from xetserve.xet.chunking import Chunker, pack_smallest
from xetserve.xet.hashes import MerkleTree, hash_chunk
from xetserve.xet.reconstruction import ChunkRange, Term
from xetserve.xet.xorb import MAX_XORB_SIZE

BATCH_SIZE: Final = 1024 * 1024  # bytes of content that are packed at a time
MAX_XORB_CHUNKS: Final = 8192  # where official producers stop (hub-docs xet/xorb.md)
MAX_KNOWN_CHUNKS: Final = 262_144  # chunks that are remembered for deduplication: about 50 MB


class _XorbBuild:
    """A xorb that is being filled; its hash is known once it is full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.xorb_hash = b""
        self.index: XorbIndex | None = None
        self.num_chunks = 0
        self.packed_size = 0
        self.decoded_size = 0
        self._file: BinaryIO | None = os.fdopen(
            open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb"
        )
        self._scanner = XorbScanner()

    def has_room(self, record_size: int, chunk_size: int) -> bool:
        return (
            self.num_chunks < MAX_XORB_CHUNKS
            and self.packed_size + record_size <= MAX_XORB_SIZE
            and self.decoded_size + chunk_size <= MAX_XORB_SIZE
        )

    def add(self, record: bytes, chunk_size: int) -> int:
        """Append a chunk; return its index."""
        assert self._file is not None
        # Scanning our own record costs a decoding, and proves that it can be read.
        self._file.write(self._scanner.receive_data(record))
        self.num_chunks += 1
        self.packed_size += len(record)
        self.decoded_size += chunk_size
        return self.num_chunks - 1

    def seal(self) -> None:
        self.close()
        self.xorb_hash, self.index = self._scanner.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _OpenTerm:
    """Consecutive chunks of one xorb in a file: a term whose xorb hash is not known yet."""

    def __init__(self, xorb: _XorbBuild, chunk: int) -> None:
        self.xorb = xorb
        self.start = chunk
        self.end = chunk
        self.decoded_size = 0


class _Place(NamedTuple):
    xorb: _XorbBuild
    chunk: int


@dataclass(slots=True)
class IngestedFile:
    """A file whose content has been read."""

    file_hash: bytes
    sha256: str
    size: int
    runs: list[_OpenTerm]


class Ingest:
    """Pack the content of any number of files; equal chunks are stored once."""

    def __init__(self, xorbs: XorbStore, files: FileStore) -> None:
        self._xorbs = xorbs
        self._files = files
        self._builds: list[_XorbBuild] = []
        self._known: dict[bytes, _Place] = {}
        self._ingested: list[IngestedFile] = []

    async def add_file(self, pieces: AsyncIterable[bytes]) -> IngestedFile:
        """Read the content of a file to its end."""
        chunker = Chunker()
        file = _OpenFile()
        async for block in gather_blocks(pieces, BATCH_SIZE):
            await asyncio.to_thread(self._add_chunks, file, chunker.receive_data(block), block)
        last = chunker.finish()
        if last:
            await asyncio.to_thread(self._add_chunks, file, [last])
        ingested = file.finish()
        self._ingested.append(ingested)
        return ingested

    async def publish(self) -> None:
        """Make all added files readable."""
        await asyncio.to_thread(self._publish)

    async def abort(self) -> None:
        """Remove everything that was written; it has no effect after publish."""
        await asyncio.to_thread(self._abort)

    def _add_chunks(self, file: "_OpenFile", chunks: Iterable[bytes], block: bytes = b"") -> None:
        file.digest.update(block)
        for chunk in chunks:
            chunk_hash = hash_chunk(chunk)
            place = self._known.get(chunk_hash)
            if place is None:
                place = self._store(chunk)
                if len(self._known) >= MAX_KNOWN_CHUNKS:
                    self._known.clear()
                self._known[chunk_hash] = place
            file.add(place, chunk_hash, len(chunk))

    def _store(self, chunk: bytes) -> _Place:
        record = pack_smallest(chunk)
        if not self._builds or not self._builds[-1].has_room(len(record), len(chunk)):
            if self._builds:
                self._builds[-1].seal()
            self._builds.append(_XorbBuild(self._xorbs.make_temporary_path()))
        build = self._builds[-1]
        return _Place(build, build.add(record, len(chunk)))

    def _publish(self) -> None:
        if self._builds and self._builds[-1].index is None:
            self._builds[-1].seal()
        for build in self._builds:
            assert build.index is not None
            self._xorbs.publish(build.path, build.xorb_hash, build.index)
        for ingested in self._ingested:
            self._files.put(_make_record(ingested))
        self._forget()

    def _abort(self) -> None:
        for build in self._builds:
            build.close()
            build.path.unlink(missing_ok=True)
        self._forget()

    def _forget(self) -> None:
        self._builds.clear()
        self._known.clear()
        self._ingested.clear()


class _OpenFile:
    """A file whose content is being read."""

    def __init__(self) -> None:
        self.digest = sha256()
        self._tree = MerkleTree()
        self._runs: list[_OpenTerm] = []

    def add(self, place: _Place, chunk_hash: bytes, size: int) -> None:
        self._tree.add(chunk_hash, size)
        run = self._runs[-1] if self._runs else None
        if run is None or run.xorb is not place.xorb or run.end != place.chunk:
            run = _OpenTerm(place.xorb, place.chunk)
            self._runs.append(run)
        run.end += 1
        run.decoded_size += size

    def finish(self) -> IngestedFile:
        return IngestedFile(
            self._tree.file_hash(), self.digest.hexdigest(), self._tree.size, self._runs
        )


def _make_record(ingested: IngestedFile) -> FileRecord:
    terms = (
        Term(run.xorb.xorb_hash, ChunkRange(run.start, run.end), run.decoded_size)
        for run in ingested.runs
    )
    return make_file_record(ingested.file_hash, terms, ingested.sha256)
