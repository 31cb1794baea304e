"""Chunking: cut a byte stream into chunks.

The producer of a file chooses the cuts, within the size limits of the format: the file hash depends
on the chunk list. The official producer cuts by content, so that an edited file shares chunks with
its earlier version. The embedded origin stores finished files and cuts every 64 KiB.

Source: hub-docs xet/chunking.md (limits).
"""

from collections.abc import Iterator
from typing import Final

from xetserve.base.buffers import Buffer
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import MAX_CHUNK_SIZE, pack_chunk

CHUNK_SIZE: Final = 65_536  # bytes; the mean of the official producer


class Chunker:
    """A cutter that makes chunks of one size from a stream; the last chunk may be shorter.

    Args:
        chunk_size: decoded bytes, 1 to MAX_CHUNK_SIZE.
    """

    __slots__ = ("_chunk_size", "_rest")

    def __init__(self, chunk_size: int = CHUNK_SIZE) -> None:
        if not 0 < chunk_size <= MAX_CHUNK_SIZE:
            raise ValueError(f"chunk size {chunk_size}, expected 1..{MAX_CHUNK_SIZE}")
        self._chunk_size = chunk_size
        self._rest = b""

    def receive_data(self, data: Buffer) -> Iterator[bytes]:
        """Yield the chunks that data completes.

        Exhaust the iterator: only its end stores the bytes that are left over.
        """
        view = memoryview(self._rest + bytes(data) if self._rest else data)
        size = self._chunk_size
        end = len(view) - len(view) % size
        for start in range(0, end, size):
            yield bytes(view[start : start + size])
        self._rest = bytes(view[end:])

    def finish(self) -> bytes:
        """Return the last chunk: the bytes left over, b"" when the stream ended on a cut."""
        rest, self._rest = self._rest, b""
        return rest


def pack_smallest(data: Buffer) -> bytes:
    """Make a chunk record with the scheme that packs data smallest: raw, LZ4 or BG4-LZ4."""
    return min(pack_chunk(data, Scheme.LZ4), pack_chunk(data, Scheme.BG4_LZ4), key=len)
