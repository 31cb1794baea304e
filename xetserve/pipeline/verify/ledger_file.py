"""The file format of a proven ledger: the chunks of one Xet file.

    MAGIC           8 bytes
    file hash       32 bytes
    n, chunks       u32
    decoded sizes   u32 each
    chunk hashes    32 bytes each
    check           16 bytes, BLAKE3 of all before

Numbers are little-endian. A file that was read from disk is not trusted: parse_ledger computes the
root of the chunks again and compares it with the file hash. Pure: bytes in, values out.
"""

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from typing import Final, NamedTuple

from blake3 import blake3

from xetserve.base.format_version import check_version
from xetserve.errors import FormatError
from xetserve.xet.hashes import HASH_SIZE, MerkleTree
from xetserve.xet.xorb import MAX_CHUNK_SIZE

MAGIC: Final = b"xsledgr1"
CHECK_SIZE: Final = 16  # bytes
_HEAD: Final = struct.Struct(f"<{len(MAGIC)}s{HASH_SIZE}sI")
FOLDED_AT_ONCE: Final = 256  # chunks between two calls of on_turn


class ChunkList(NamedTuple):
    """All chunks of a file.

    starts: decoded position of each chunk in the file.
    end: end of the last chunk, which is the size of the file.
    hashes: of all chunks, concatenated.
    """

    starts: "array[int]"
    end: int
    hashes: bytes | bytearray

    def find_hashes(self, position: int, size: int) -> bytes | None:
        """Return the hashes of the chunks that make up a part of the file; None if no chunks do."""
        first = bisect_left(self.starts, position)
        last = bisect_left(self.starts, position + size)
        ends = (*self.starts[first : first + 1], *self.starts[last : last + 1])
        if last == len(self.starts):
            ends = (*ends, self.end)
        if ends != (position, position + size):
            return None
        return bytes(self.hashes[first * HASH_SIZE : last * HASH_SIZE])


def ledger_file_size(num_chunks: int) -> int:
    """Return the bytes of a ledger file with num_chunks chunks."""
    return _HEAD.size + num_chunks * (4 + HASH_SIZE) + CHECK_SIZE


def pack_ledger(file_hash: bytes, chunks: ChunkList) -> bytes:
    """Return the ledger file of a proven file."""
    ends = [*chunks.starts[1:], chunks.end]
    sizes = array("I", (end - start for start, end in zip(chunks.starts, ends, strict=True)))
    if sys.byteorder == "big":
        sizes.byteswap()
    head = _HEAD.pack(MAGIC, file_hash, len(sizes))
    body = b"".join((head, sizes.tobytes(), chunks.hashes))
    return body + blake3(body).digest(CHECK_SIZE)


def read_file_hash(data: bytes | memoryview) -> bytes:
    """Return the file hash in a ledger file."""
    return bytes(data[len(MAGIC) : len(MAGIC) + HASH_SIZE])


def parse_ledger(
    data: bytes, file_hash: bytes, on_turn: Callable[[], object] = lambda: None
) -> ChunkList:
    """Parse a ledger file, and prove it again.

    Args:
        on_turn: called every FOLDED_AT_ONCE chunks, to yield to other threads.

    Raises:
        OtherVersion: another version wrote the ledger.
        FormatError: the ledger is damaged, or belongs to another file.
    """
    chunks = unpack_ledger(data, file_hash)
    tree = MerkleTree()
    ends = [*chunks.starts[1:], chunks.end]
    for at, (start, end) in enumerate(zip(chunks.starts, ends, strict=True)):
        tree.add(bytes(chunks.hashes[at * HASH_SIZE : (at + 1) * HASH_SIZE]), end - start)
        if at % FOLDED_AT_ONCE == 0:
            on_turn()
    if tree.file_hash() != file_hash:
        raise FormatError("the ledger's chunks do not make the file")
    return chunks


def unpack_ledger(data: bytes, file_hash: bytes) -> ChunkList:
    """Parse a ledger file from a trusted source, without proving it again.

    Raises:
        OtherVersion: another version wrote the ledger.
        FormatError: the ledger is damaged, or belongs to another file.
    """
    check_version(data[: len(MAGIC)], MAGIC)
    if len(data) < ledger_file_size(0):
        raise FormatError(f"a ledger of {len(data)} bytes, expected at least {ledger_file_size(0)}")
    magic, found_hash, count = _HEAD.unpack_from(data)
    if magic != MAGIC or found_hash != file_hash or len(data) != ledger_file_size(count):
        raise FormatError("the ledger belongs to another file, or is truncated")
    if blake3(data[:-CHECK_SIZE]).digest(CHECK_SIZE) != data[-CHECK_SIZE:]:
        raise FormatError("the ledger is damaged")
    middle = _HEAD.size + 4 * count
    sizes: array[int] = array("I")
    sizes.frombytes(data[_HEAD.size : middle])
    if sys.byteorder == "big":
        sizes.byteswap()
    hashes = data[middle:-CHECK_SIZE]
    for extreme in (min(sizes, default=1), max(sizes, default=1)):
        if not 0 < extreme <= MAX_CHUNK_SIZE:
            raise FormatError(f"a chunk of {extreme} bytes, expected 1..{MAX_CHUNK_SIZE}")
    starts = array("Q", accumulate(sizes, initial=0))
    return ChunkList(starts, starts.pop(), hashes)
