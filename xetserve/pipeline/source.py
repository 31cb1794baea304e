"""What the pipeline needs of a CAS; upstream.cas has it, and tests have their own."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from xetserve.upstream.cas import Access
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction


class DataResponse(Protocol):
    """The packed bytes of one fetch range, as they arrive."""

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end."""
        ...


class CasSource(Protocol):
    """Gives reconstructions and data. Failures are UpstreamErrors."""

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Ask how a range of a file is built."""
        ...

    def open_data(
        self, xorb_hash: bytes, info: FetchInfo
    ) -> AbstractAsyncContextManager[DataResponse]:
        """Open the packed bytes of a fetch range of a xorb."""
        ...

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Keep no copies of these chunks: they are not what was promised. The next open_data asks anew."""
        ...
