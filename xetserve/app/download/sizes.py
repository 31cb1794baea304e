"""The sizes of files that are asked for by hash; the CAS shows them by how files are built."""

from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import RangeUnsatisfiable
from xetserve.upstream.cas.source import Access, CasSource
from xetserve.xet.reconstruction import ByteRange

MAX_SIZES: Final = 10_000  # files whose size is remembered; what a hash names never changes
_FIRST_BYTE: Final = ByteRange(0, 1)
PROBE_SIZE: Final = (
    256 * 1024 * 1024
)  # bytes that one question is about; even in the smallest chunks not too many
MAX_SIZE: Final = 2**53  # bytes


class FileSizes:
    """Looks sizes up, with the client's own right to read the file."""

    def __init__(self, cas: CasSource) -> None:
        self._cas = cas
        self._known: LruDict[bytes, int] = LruDict(max_num=MAX_SIZES)

    def find(self, file_hash: bytes) -> int | None:
        """Return the size of a file if it is remembered; that says nothing of who may read it."""
        return self._known.peek(file_hash)

    def note(self, file_hash: bytes, size: int) -> None:
        """Remember the size of a file."""
        self._known.put(file_hash, size)

    async def check_exists(self, access: Access, file_hash: bytes) -> None:
        """Make sure that there is such a file, and that it may be read.

        Raises:
            UpstreamError and its kinds: there is not, or it may not.
        """
        try:
            await self._cas.fetch_reconstruction(access, file_hash, _FIRST_BYTE)
        except RangeUnsatisfiable:
            return  # an empty file is one, too

    async def get(self, access: Access, file_hash: bytes) -> int:
        """Return the size of a file in bytes.

        Raises:
            UpstreamError and its kinds: as check_exists.
        """
        known = self._known.get(file_hash)
        if known is None:
            return await self.measure(access, file_hash, 0)
        await self.check_exists(access, file_hash)
        return known

    async def measure(self, access: Access, file_hash: bytes, start: int) -> int:
        """Find out the size of a file that reaches a position, and remember it.

        The whole of a large file is too much for one answer, so the end is looked for in ever
        longer steps, and then between the last two of them: one question for a small file, about
        18 for one of 100 GB.

        Raises:
            UpstreamError and its kinds: as check_exists.
        """
        low, high, step = start, MAX_SIZE, PROBE_SIZE  # the size is one of low..high
        position = start
        while low < high:
            asked = ByteRange(position, position + PROBE_SIZE)
            try:
                answer = await self._cas.fetch_reconstruction(access, file_hash, asked)
            except RangeUnsatisfiable:
                high = position
            else:
                end = position + answer.decoded_size
                if end < asked.end:
                    low = high = end
                else:
                    low = end
            middle = (high - low) // (2 * PROBE_SIZE) * PROBE_SIZE
            position = low + min(step, middle)
            step *= 2
        self.note(file_hash, low)
        return low
