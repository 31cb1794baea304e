"""Xorbs on disk.

    xorbs/{xorb hash}        chunk records and nothing else, so that any web server can serve them
    xorb-index/{xorb hash}   for each chunk: hash 32, end of its record u32, decoded size u32

The index is made while the xorb arrives. If it is missing or does not fit, it is made again.
"""

import asyncio
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, AsyncIterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiofiles

from xetserve.base.atomic_file import open_private
from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError, IntegrityError
from xetserve.origin.store.blobs import (
    TemporaryFiles,
    make_private_folder,
    publish,
)
from xetserve.xet.hashes import HASH_SIZE, MerkleTree, format_hash, hash_chunk
from xetserve.xet.reconstruction import ByteRange, ChunkRange
from xetserve.xet.xorb import (
    CHUNK_HEADER_SIZE,
    FOOTER_IDENT,
    MAX_XORB_SIZE,
    ChunkRecord,
    RecordReader,
)

BLOCK_SIZE: Final = 512 * 1024  # bytes of one read, and of one served block
SCAN_SIZE: Final = 256 * 1024  # bytes of an upload that are checked at a time
MAX_CHUNKS: Final = 65_536  # of one xorb; official producers stop at 8192 (hub-docs xet/xorb.md)
MAX_UPLOAD_SIZE: Final = 2 * MAX_XORB_SIZE  # bytes, with record headers and a footer
MAX_DECODED_SIZE: Final = 2**32 - 1  # a term counts the bytes of its chunks in 32 bits
MAX_CACHED_INDEXES: Final = 64  # about 50 KB each, 400 KB for the finest chunks

_INDEX_ENTRY: Final = struct.Struct("<32sII")


@dataclass(frozen=True, slots=True)
class XorbIndex:
    """The places of the chunks in a xorb.

    hashes: the chunk hashes, concatenated.
    record_ends: where each chunk's record ends, in packed bytes.
    decoded_ends: where each chunk ends, in decoded bytes.
    """

    hashes: bytes
    record_ends: "array[int]"
    decoded_ends: "array[int]"

    @property
    def num_chunks(self) -> int:
        """The number of chunks."""
        return len(self.record_ends)

    @property
    def packed_size(self) -> int:
        """Bytes of the xorb on disk."""
        return self.record_ends[-1]

    def byte_range(self, chunks: ChunkRange) -> ByteRange:
        """Return the byte range of the records of a chunk range."""
        start = self.record_ends[chunks.start - 1] if chunks.start else 0
        return ByteRange(start, self.record_ends[chunks.end - 1])

    def decoded_start(self, chunk: int) -> int:
        """Return the decoded bytes before a chunk."""
        return self.decoded_ends[chunk - 1] if chunk else 0

    def decoded_size(self, chunks: ChunkRange) -> int:
        """Return the decoded bytes of a chunk range."""
        return self.decoded_ends[chunks.end - 1] - self.decoded_start(chunks.start)

    def chunk_hash(self, chunk: int) -> bytes:
        """Return a chunk's hash."""
        return self.hashes[chunk * HASH_SIZE : (chunk + 1) * HASH_SIZE]

    def leaves(self, chunks: ChunkRange) -> Iterator[tuple[bytes, int]]:
        """Yield (chunk hash, decoded size) of each chunk."""
        start = self.decoded_start(chunks.start)
        for chunk in range(chunks.start, chunks.end):
            end = self.decoded_ends[chunk]
            yield self.chunk_hash(chunk), end - start
            start = end

    def trim(self, chunks: ChunkRange, skip: int, stop: int) -> tuple[ChunkRange, int]:
        """Drop the chunks of a range that lie outside its decoded bytes [skip, stop).

        Returns:
            the chunks that are left, and the decoded bytes that were dropped before them.
        """
        base = self.decoded_start(chunks.start)
        first = bisect_right(self.decoded_ends, base + skip, chunks.start, chunks.end - 1)
        end = bisect_left(self.decoded_ends, base + stop, first, chunks.end - 1) + 1
        return ChunkRange(first, end), self.decoded_start(first) - base

    def to_bytes(self) -> bytes:
        """Return the content of the index file."""
        parts = []
        start = 0
        for chunk, decoded_end in enumerate(self.decoded_ends):
            parts.append(
                _INDEX_ENTRY.pack(
                    self.chunk_hash(chunk), self.record_ends[chunk], decoded_end - start
                )
            )
            start = decoded_end
        return b"".join(parts)


def parse_index(data: bytes) -> XorbIndex:
    """Parse an index file.

    Raises:
        FormatError: incomplete entries, no entries, or records that are not consecutive.
    """
    if not data or len(data) % _INDEX_ENTRY.size:
        raise FormatError(f"xorb index of {len(data)} bytes")
    hashes = bytearray()
    record_ends, decoded_ends = array("I"), array("Q")
    decoded_end = record_end = 0
    for chunk_hash, end, decoded_size in _INDEX_ENTRY.iter_unpack(data):
        if end <= record_end:
            raise FormatError(f"xorb index: a record ends at {end}, the one before at {record_end}")
        record_end = end
        decoded_end += decoded_size
        hashes += chunk_hash
        record_ends.append(end)
        decoded_ends.append(decoded_end)
    return XorbIndex(bytes(hashes), record_ends, decoded_ends)


class XorbScanner:
    """Check a xorb while it arrives: every record is decoded and hashed.

    Memory: one incomplete record and 48 bytes for each chunk.
    """

    def __init__(self) -> None:
        self._reader = RecordReader()
        self._tree = MerkleTree()
        self._hashes = bytearray()
        self._record_ends, self._decoded_ends = array("I"), array("Q")
        self._size = 0
        self._rest = b""
        self._received = 0
        self._in_footer = False

    def receive_data(self, data: bytes) -> bytes:
        """Take the next bytes; return the records that they complete, to be stored as they are.

        A footer, which old producers append, is left out.

        Raises:
            FormatError: a bad record, an empty chunk, or more chunks or bytes than a xorb may have.
        """
        self._received += len(data)
        if self._received > MAX_UPLOAD_SIZE:
            raise FormatError(f"xorb of more than {MAX_UPLOAD_SIZE} bytes")
        if self._in_footer:
            return b""
        data = self._rest + data
        view = memoryview(data)
        self._reader.move_to(0)
        records = self._reader.scan(view, len(view))
        while not self._in_footer:
            try:
                record = next(records, None)
            except FormatError:  # it is not the header of a record
                if not data.startswith(FOOTER_IDENT, self._reader.position):
                    raise
                self._in_footer = True
            else:
                if record is None:
                    break
                self._add(record)
        payload_size = self._size - CHUNK_HEADER_SIZE * len(self._record_ends)
        if payload_size > MAX_XORB_SIZE or self._tree.size > MAX_DECODED_SIZE:
            raise FormatError(f"xorb of more than {MAX_XORB_SIZE} payload bytes")
        self._rest = b"" if self._in_footer else data[self._reader.position :]
        return data[: self._reader.position]

    def _add(self, record: ChunkRecord) -> None:
        decoded = record.decode()
        if not decoded:
            raise FormatError("xorb with an empty chunk")
        if len(self._record_ends) == MAX_CHUNKS:
            raise FormatError(f"xorb of more than {MAX_CHUNKS} chunks")
        chunk_hash = hash_chunk(decoded)
        self._tree.add(chunk_hash, len(decoded))
        self._hashes += chunk_hash
        self._size += record.header.record_size
        self._record_ends.append(self._size)
        self._decoded_ends.append(self._tree.size)

    def finish(self) -> tuple[bytes, XorbIndex]:
        """Return the xorb hash and the index.

        Raises:
            FormatError: the last record is cut, or there is none.
        """
        if self._rest:
            raise FormatError(f"xorb cut: {len(self._rest)} bytes of an incomplete chunk record")
        if not self._record_ends:
            raise FormatError("xorb without chunks")
        index = XorbIndex(bytes(self._hashes), self._record_ends, self._decoded_ends)
        return self._tree.xorb_hash(), index


class XorbStore:
    """The xorbs of a folder, by xorb hash."""

    def __init__(self, root: Path, temporary: TemporaryFiles) -> None:
        self._folder = make_private_folder(root / "xorbs")
        self._index_folder = make_private_folder(root / "xorb-index")
        self._temporary = temporary
        self._indexes: LruDict[bytes, XorbIndex] = LruDict(max_num=MAX_CACHED_INDEXES)

    def get_path(self, xorb_hash: bytes) -> Path:
        """Return the path of a xorb, whether it exists or not."""
        return self._folder / format_hash(xorb_hash)

    def make_temporary_path(self) -> Path:
        """Return a path for a xorb in progress; publish moves it from there."""
        return self._temporary.make_path()

    async def put(self, xorb_hash: bytes, body: AsyncIterable[bytes]) -> bool:
        """Store an upload, checked as it arrives; False: the xorb was there already.

        Raises:
            FormatError: it is not a xorb, or does not have the hash in its name. Nothing is left
                behind.
        """
        path = self.make_temporary_path()
        scanner = XorbScanner()
        try:
            async with aiofiles.open(path, "xb", opener=open_private) as file:
                async for block in gather_blocks(body, SCAN_SIZE):
                    await file.write(await asyncio.to_thread(scanner.receive_data, block))
            actual, index = scanner.finish()
            if actual != xorb_hash:
                raise FormatError(
                    f"the body's xorb hash is {format_hash(actual)}, not {format_hash(xorb_hash)}"
                )
            return await asyncio.to_thread(self.publish, path, xorb_hash, index)
        finally:
            path.unlink(missing_ok=True)

    def publish(self, path: Path, xorb_hash: bytes, index: XorbIndex) -> bool:
        """Move a finished xorb into place; False: there is one already, and path is removed."""
        target = self.get_path(xorb_hash)
        if target.exists():
            path.unlink(missing_ok=True)
            return False
        # The index first: every visible xorb has one.
        self._temporary.write(self._index_folder / target.name, index.to_bytes())
        publish(path, target)
        return True

    async def get_index(self, xorb_hash: bytes) -> XorbIndex | None:
        """Return a xorb's index; None: there is no such xorb.

        Raises:
            IntegrityError: the xorb on disk is damaged.
        """
        index = self._indexes.get(xorb_hash)
        if index is None:
            index = await asyncio.to_thread(self._load_index, xorb_hash)
            if index is not None:
                self._indexes.put(xorb_hash, index)
        return index

    async def require_index(self, xorb_hash: bytes) -> XorbIndex:
        """Return the index of a xorb that a stored file names.

        Raises:
            IntegrityError: the xorb is damaged or missing.
        """
        index = await self.get_index(xorb_hash)
        if index is None:
            raise IntegrityError(f"xorb {format_hash(xorb_hash)} is missing on disk")
        return index

    def _load_index(self, xorb_hash: bytes) -> XorbIndex | None:
        path = self.get_path(xorb_hash)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError, FormatError):
            index = parse_index((self._index_folder / path.name).read_bytes())
            if index.packed_size == size:
                return index
        index = _scan_file(path, xorb_hash)
        self._temporary.write(self._index_folder / path.name, index.to_bytes())
        return index

    async def read(
        self, xorb_hash: bytes, byte_range: ByteRange, block_size: int = BLOCK_SIZE
    ) -> AsyncGenerator[bytes, None]:
        """Yield packed bytes of a xorb.

        Raises:
            IntegrityError: the file is missing, or ends before the range does.
        """
        try:
            async with aiofiles.open(self.get_path(xorb_hash), "rb", buffering=0) as file:
                await file.seek(byte_range.start)
                left = byte_range.size
                while left:
                    block = await file.read(min(left, block_size))
                    if not block:
                        raise IntegrityError(f"xorb {format_hash(xorb_hash)} is cut on disk")
                    left -= len(block)
                    yield block
        except FileNotFoundError:
            raise IntegrityError(f"xorb {format_hash(xorb_hash)} is missing on disk") from None


def _scan_file(path: Path, xorb_hash: bytes) -> XorbIndex:
    scanner = XorbScanner()
    try:
        with path.open("rb") as file:
            while data := file.read(SCAN_SIZE):
                scanner.receive_data(data)
        actual, index = scanner.finish()
    except FormatError as exc:
        raise IntegrityError(f"xorb {path.name} is damaged on disk: {exc}") from exc
    if actual != xorb_hash:
        raise IntegrityError(
            f"xorb {path.name} is damaged on disk: it hashes to {format_hash(actual)}"
        )
    return index


async def gather_blocks(pieces: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """Join small pieces into blocks of at least size bytes; the last may be smaller."""
    gathered = bytearray()
    async for piece in pieces:
        gathered += piece
        if len(gathered) >= size:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)
