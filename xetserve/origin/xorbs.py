"""The xorbs of the origin: taken in while they are checked, found again by chunk.

Beside each xorb lies an index, which says where its records end and what they hold:

    magic 8, number of chunks n u32
    n times     record end in the xorb u32
    n times     decoded bytes up to the end of the chunk u32
    n times     chunk hash 32

Little-endian. It is made from the xorb alone, so it may be deleted at any time.
"""

import struct
import sys
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiofiles
import aiofiles.os

from xetserve.errors import FormatError, IntegrityError
from xetserve.origin.storage import RecentlyUsed, Storage
from xetserve.xet.hashes import HASH_SIZE, MerkleTree, format_hash, hash_chunk
from xetserve.xet.reconstruction import MAX_TERM_SIZE, ByteRange, ChunkRange
from xetserve.xet.xorb import (
    CHUNK_HEADER_SIZE,
    FOOTER_IDENT,
    MAX_XORB_SIZE,
    ChunkRecord,
    parse_chunk_header,
)

MAX_INDEXES: Final = 128  # kept in memory, 8 bytes for each chunk

_MAGIC: Final = b"XORBIDX1"
_HEAD: Final = struct.Struct("<8sI")
_READ_SIZE: Final = 1024 * 1024


class XorbIndex:
    """Where the chunks of one xorb lie.

    record_ends: bytes of the xorb up to the end of each record.
    decoded_ends: decoded bytes up to the end of each chunk.
    """

    __slots__ = ("decoded_ends", "record_ends")

    def __init__(self, record_ends: "array[int]", decoded_ends: "array[int]") -> None:
        self.record_ends = record_ends
        self.decoded_ends = decoded_ends

    @property
    def num_chunks(self) -> int:
        """Chunks in the xorb."""
        return len(self.record_ends)

    @property
    def packed_size(self) -> int:
        """Bytes of the xorb."""
        return self.record_ends[-1]

    def get_byte_range(self, chunks: ChunkRange) -> ByteRange:
        """Give the byte range of the xorb that holds these records."""
        start = self.record_ends[chunks.start - 1] if chunks.start else 0
        return ByteRange(start, self.record_ends[chunks.end - 1])

    def get_decoded_start(self, chunk: int) -> int:
        """Give the decoded bytes that lie before a chunk."""
        return self.decoded_ends[chunk - 1] if chunk else 0

    def get_decoded_size(self, chunks: ChunkRange) -> int:
        """Give the decoded bytes of a chunk range."""
        return self.decoded_ends[chunks.end - 1] - self.get_decoded_start(chunks.start)


class XorbIntake:
    """Checks a xorb while it arrives. Holds one incomplete record at most."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._tree = MerkleTree()
        self._record_ends = array("I")
        self._decoded_ends = array("I")
        self._hashes = bytearray()
        self._size = 0
        self._at_footer = False

    @property
    def size(self) -> int:
        """Bytes of complete records so far."""
        return self._size

    @property
    def num_chunks(self) -> int:
        """Complete records so far."""
        return len(self._record_ends)

    def receive_data(self, data: bytes) -> bytes:
        """Take the next bytes; gives those that are to be stored: whole records.

        A footer, which older producers may send, ends the records and is dropped.

        Raises:
            FormatError: not chunk records, or more than a xorb may have.
        """
        if self._at_footer:
            return b""
        pending = self._pending
        pending += data
        end = 0
        with memoryview(pending) as view:
            while len(view) - end >= CHUNK_HEADER_SIZE:
                if pending.startswith(FOOTER_IDENT, end):
                    self._at_footer = True
                    break
                header = parse_chunk_header(view, end)
                start, stop = end + CHUNK_HEADER_SIZE, end + header.record_size
                if stop > len(view):
                    break
                self._add(ChunkRecord(header, view[start:stop]))
                end = stop
        whole = bytes(pending[:end])
        del pending[:end]
        return whole

    def _add(self, record: ChunkRecord) -> None:
        size = record.header.decoded_size
        chunk_hash = hash_chunk(record.decode())
        record.payload.release()
        self._tree.add(chunk_hash, size)
        self._size += record.header.record_size
        if self._size > MAX_XORB_SIZE or self._tree.size > MAX_TERM_SIZE:
            raise FormatError(
                f"xorb of {self._size} bytes, {self._tree.size} decoded, expected at most "
                f"{MAX_XORB_SIZE} and {MAX_TERM_SIZE}"
            )
        self._record_ends.append(self._size)
        self._decoded_ends.append(self._tree.size)
        self._hashes += chunk_hash

    def finish(self) -> bytes:
        """Give the xorb hash of all that was received.

        Raises:
            FormatError: no chunk at all, or a record that is not complete.
        """
        if self._pending and not self._at_footer:
            raise FormatError(f"xorb ends in the middle of a record, {len(self._pending)} bytes in")
        if not self._record_ends:
            raise FormatError("xorb without chunks")
        return self._tree.xorb_hash()

    def make_index(self) -> bytes:
        """Give the index file."""
        return b"".join(
            (
                _HEAD.pack(_MAGIC, len(self._record_ends)),
                _to_little_endian(self._record_ends),
                _to_little_endian(self._decoded_ends),
                self._hashes,
            )
        )


class XorbStore:
    """All xorbs, by xorb hash."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._indexes: RecentlyUsed[XorbIndex] = RecentlyUsed(MAX_INDEXES)

    def get_path(self, xorb_hash: bytes) -> Path:
        """Give where the records lie, whether they are there or not."""
        return self._storage.root / "xorbs" / format_hash(xorb_hash)

    def _get_index_path(self, xorb_hash: bytes) -> Path:
        return self._storage.root / "index" / format_hash(xorb_hash)

    def get_index(self, xorb_hash: bytes) -> XorbIndex | None:
        """Give the index of a xorb; None: there is no such xorb. Reads files.

        Raises:
            IntegrityError: the xorb on disk is damaged. Found only when its index is made anew.
        """
        try:
            return self._indexes.get(xorb_hash, lambda: self._load_index(xorb_hash))
        except FileNotFoundError:
            return None

    def _load_index(self, xorb_hash: bytes) -> XorbIndex:
        size = self.get_path(xorb_hash).stat().st_size
        for data in (self._read_index(xorb_hash), None):
            if data is None:
                data = self._rebuild_index(xorb_hash)
            count = (len(data) - _HEAD.size) // (8 + HASH_SIZE)
            if data[: _HEAD.size] == _HEAD.pack(_MAGIC, max(count, 0)) and count > 0:
                middle = _HEAD.size + 4 * count
                index = XorbIndex(
                    _from_little_endian(data[_HEAD.size : middle]),
                    _from_little_endian(data[middle : middle + 4 * count]),
                )
                if index.packed_size == size:
                    return index
        raise IntegrityError(f"xorb {format_hash(xorb_hash)} changed while it was read")

    def _read_index(self, xorb_hash: bytes) -> bytes | None:
        try:
            return self._get_index_path(xorb_hash).read_bytes()
        except FileNotFoundError:
            return None

    def _rebuild_index(self, xorb_hash: bytes) -> bytes:
        intake = XorbIntake()
        try:
            with self.get_path(xorb_hash).open("rb") as file:
                while data := file.read(_READ_SIZE):
                    intake.receive_data(data)
            actual = intake.finish()
        except FormatError as exc:
            raise IntegrityError(f"xorb {format_hash(xorb_hash)} is damaged: {exc}") from exc
        _check_hash(actual, xorb_hash)
        data = intake.make_index()
        self._storage.write(self._get_index_path(xorb_hash), data)
        return data

    def get_chunk_hashes(self, xorb_hash: bytes, chunks: ChunkRange) -> list[bytes]:
        """Give the chunk hashes of a range that lies within the xorb. Reads files."""
        index = self.get_index(xorb_hash)
        if index is None:
            raise FileNotFoundError(format_hash(xorb_hash))
        with self._get_index_path(xorb_hash).open("rb") as file:
            file.seek(_HEAD.size + 8 * index.num_chunks + HASH_SIZE * chunks.start)
            data = file.read(HASH_SIZE * (chunks.end - chunks.start))
        return [data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)]

    async def store(self, xorb_hash: bytes, pieces: AsyncIterator[bytes]) -> bool:
        """Take a xorb in, under the hash that its sender claims; False: it was there already.

        Nothing is left behind by a failure or a cancellation.

        Raises:
            FormatError: not a xorb.
            IntegrityError: a xorb with another hash.
        """
        intake = XorbIntake()
        temporary = self._storage.make_temporary()
        try:
            async with aiofiles.open(temporary, "wb", buffering=0) as file:
                async for piece in pieces:
                    await file.write(intake.receive_data(piece))
            _check_hash(intake.finish(), xorb_hash)
            return self.adopt(temporary, xorb_hash, intake)
        finally:
            temporary.unlink(missing_ok=True)

    def adopt(self, temporary: Path, xorb_hash: bytes, intake: XorbIntake) -> bool:
        """Put a checked file of records in its place; False: it was there already."""
        path = self.get_path(xorb_hash)
        if path.exists():
            return False
        # The index first: it is of no use without the xorb, and is never missed beside one.
        self._storage.write(self._get_index_path(xorb_hash), intake.make_index())
        temporary.replace(path)
        return True


def _check_hash(actual: bytes, expected: bytes) -> None:
    if actual != expected:
        raise IntegrityError(f"xorb hash {format_hash(actual)}, expected {format_hash(expected)}")


def _to_little_endian(values: "array[int]") -> bytes:
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _from_little_endian(data: bytes) -> "array[int]":
    values = array("I", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values
