"""Sizes out of questions that no file makes too large."""

from typing import Any

import pytest

from xetserve.app.download.sizes import MAX_SIZE, PROBE_SIZE, FileSizes
from xetserve.errors import RangeUnsatisfiable
from xetserve.upstream.cas.source import Access, CasSource
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction, Term

FILE = b"f" * 32
TERM = 64 * 1024 * 1024
GB = 10**9


class Cas:
    """Knows one file; its answers reach to the end of a term."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked: list[ByteRange] = []

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        self.asked.append(byte_range)
        if byte_range.start >= self.size:
            raise RangeUnsatisfiable("past the end")
        end = min(self.size, -(-byte_range.end // TERM) * TERM)
        left = end - byte_range.start
        chunks = ChunkRange(0, 1)
        terms = [Term(bytes(32), chunks, min(TERM, left - at)) for at in range(0, left, TERM)]
        return Reconstruction(0, tuple(terms), {})


@pytest.mark.parametrize(
    ("size", "most"),
    [
        (0, 1), (1, 1), (PROBE_SIZE - 1, 1), (PROBE_SIZE, 4), (PROBE_SIZE + 1, 4), (10 * GB, 14),
        (4 * PROBE_SIZE, 8), (100 * GB, 20), (2**50, 60), (MAX_SIZE, 80),
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", [0, 7, PROBE_SIZE])
async def test_the_end_is_found_in_few_questions(size: int, most: int, start: int) -> None:
    cas = Cas(size)
    source: CasSource = cas  # type: ignore[assignment]
    sizes = FileSizes(source)
    access: Any = None
    assert await sizes.measure(access, FILE, min(start, size)) == size
    assert max(asked.size for asked in cas.asked) == PROBE_SIZE if cas.asked else not size
    assert len(cas.asked) <= most
    cas.asked.clear()
    assert await sizes.get(access, FILE) == size
    assert cas.asked == [ByteRange(0, 1)]  # whether this client may know it
