"""The sizes of files that are asked for by hash. The CAS tells them only by telling how the whole is built."""

from collections import OrderedDict
from typing import Final

from xetserve.errors import RangeUnsatisfiable
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
        self._known: OrderedDict[bytes, int] = OrderedDict()

    def find(self, file_hash: bytes) -> int | None:
        """Give the size of a file if it is remembered; that says nothing of who may read it."""
        return self._known.get(file_hash)

    def note(self, file_hash: bytes, size: int) -> None:
        """Remember the size of a file."""
        self._known[file_hash] = size
        self._known.move_to_end(file_hash)
        while len(self._known) > MAX_SIZES:
            self._known.popitem(last=False)

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
        if file_hash in self._known:
            await self.check_exists(access, file_hash)
            self._known.move_to_end(file_hash)
        else:
            try:
                answer = await self._cas.fetch_reconstruction(access, file_hash, _ALL)
                self.note(file_hash, answer.decoded_size)
            except RangeUnsatisfiable:
                self.note(file_hash, 0)
        return self._known[file_hash]
