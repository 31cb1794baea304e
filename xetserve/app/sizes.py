"""The sizes of files that are asked for by hash. The CAS tells them only by telling how the whole is built."""

from typing import Final

from xetserve.errors import RangeUnsatisfiable
from xetserve.lru import LruDict
from xetserve.pipeline.source import CasSource
from xetserve.upstream.cas import Access
from xetserve.xet.reconstruction import ByteRange

MAX_SIZES: Final = 10_000  # files whose size is remembered; what a hash names never changes
_FIRST_BYTE: Final = ByteRange(0, 1)
_ALL: Final = ByteRange(0, 2**53)  # bytes; the CAS gives what there is of it


class FileSizes:
    """Looks sizes up, with the client's own right to read the file."""

    def __init__(self, cas: CasSource) -> None:
        self._cas = cas
        self._known: LruDict[bytes, int] = LruDict(max_num=MAX_SIZES)

    def find(self, file_hash: bytes) -> int | None:
        """Give the size of a file if it is remembered; that says nothing of who may read it."""
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
        """Give the size of a file in bytes. For one of 100 GB the CAS sends some megabytes, once.

        Raises:
            UpstreamError and its kinds: as check_exists.
        """
        known = self._known.get(file_hash)
        if known is not None:
            await self.check_exists(access, file_hash)
            return known
        try:
            size = (await self._cas.fetch_reconstruction(access, file_hash, _ALL)).decoded_size
        except RangeUnsatisfiable:
            size = 0
        self.note(file_hash, size)
        return size
