"""Find the sizes of files that are requested by hash.

The CAS does not name a size. The reconstruction of a range shows whether the file reaches its end.
"""

from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import RangeUnsatisfiable
from xetserve.upstream.cas.source import Access, CasSource
from xetserve.xet.reconstruction import ByteRange

MAX_SIZES: Final = 10_000  # cached sizes; the content of a hash never changes
_FIRST_BYTE: Final = ByteRange(0, 1)
# Bytes of a file in one request. Even with the smallest chunks, the answer is not too long.
PROBE_SIZE: Final = 256 * 1024 * 1024
MAX_SIZE: Final = 2**53  # bytes


class FileSizes:
    """Looks sizes up with the client's own token, and caches them."""

    def __init__(self, cas: CasSource) -> None:
        self._cas = cas
        self._known: LruDict[bytes, int] = LruDict(max_num=MAX_SIZES)

    def find(self, file_hash: bytes) -> int | None:
        """Return the cached size of a file, or None. It does not show that a client may read it."""
        return self._known.peek(file_hash)

    def note(self, file_hash: bytes, size: int) -> None:
        """Cache the size of a file in bytes."""
        self._known.put(file_hash, size)

    async def check_exists(self, access: Access, file_hash: bytes) -> None:
        """Check that a file exists and that the client may read it.

        Raises:
            UpstreamError and its kinds: it does not exist, the client may not read it, or the CAS
                fails.
        """
        try:
            await self._cas.fetch_reconstruction(access, file_hash, _FIRST_BYTE)
        except RangeUnsatisfiable:
            return  # the file exists and is empty

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
        """Find the size of a file that has at least start bytes, and cache it.

        The reconstruction of a whole large file is too long for one answer. So the search takes
        steps that double until one lies behind the end, then bisects the last step: one request for
        a small file, about 18 for one of 100 GB.

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
