"""zstd on the wire, for data that shrinks and clients that ask for it.

Whether data shrinks is read off the data: a Xet file's chunks are stored packed where that helps,
and their sizes are known when the first window is planned; of a plain file the first block is
tried.

Level 1 codes 250 MB/s of text and 750 MB/s of floats on one core, as measured; levels 2 and 3 gain
a few per cent, and the negative ones leave floats as they are.
"""

from typing import Final

import zstandard

from xetserve.http.messages import Block, Body

LEVEL: Final = 1
MIN_SIZE: Final = 1024  # bytes; less fits into a packet anyway
MAX_RATIO: Final = 0.9  # bytes that may be left of one, for coding to be worth its time
MAX_COMPRESSORS: Final = 32  # at a time, each with about 0.6 MiB of tables


def measure_ratio(block: Block) -> float:
    """Try how far a block shrinks: coded bytes for one byte."""
    data = b"".join(block)
    return len(zstandard.ZstdCompressor(level=LEVEL).compress(data)) / max(1, len(data))


class Compressors:
    """Counts those at work: each has memory of its own, outside of the budget."""

    def __init__(self, limit: int = MAX_COMPRESSORS) -> None:
        self._limit = limit
        self.num_active = 0

    @property
    def is_full(self) -> bool:
        """Whether another one would be too many."""
        return self.num_active >= self._limit

    def compress(self, body: Body, size: int | None) -> "ZstdBody":
        """Code a body.

        Args:
            size: of the body in bytes, where known; the frame then tells it.
        """
        return ZstdBody(self, body, size)


class ZstdBody(Body):
    """A body with zstd as its content coding: one frame, flushed with every block.

    The frame's end comes after the end of the body only: a body that fails leaves a frame without
    an end.
    """

    def __init__(self, compressors: Compressors, body: Body, size: int | None) -> None:
        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        self._frame = compressor.compressobj(size=-1 if size is None else size)
        self._body = body
        self._compressors: Compressors | None = compressors
        self._has_ended = False
        compressors.num_active += 1

    async def __anext__(self) -> Block:
        coded: list[bytes] = []
        while not coded:
            if self._has_ended:
                raise StopAsyncIteration
            block = await anext(self._body, None)
            if block is None:
                self._has_ended = True
                coded = [self._frame.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)]
            else:
                coded = [self._frame.compress(buffer) for buffer in block]
                coded.append(self._frame.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            coded = [piece for piece in coded if piece]
        return coded

    async def aclose(self) -> None:
        if self._compressors is not None:
            self._compressors.num_active -= 1
            self._compressors = None
        await self._body.aclose()
