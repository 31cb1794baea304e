"""What the pipeline needs of a CAS; upstream.cas has it, and tests have their own."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from xetserve.pipeline.provenance import Provenance
from xetserve.upstream.cas.client import Access
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction


@dataclass(slots=True)
class Tally:
    """Where the packed bytes came from that were fetched for one response; those it shared are
    another's.

    cache_hits: fetch ranges that were stored, at least their beginning.
    """

    upstream_bytes: int = 0
    cache_bytes: int = 0
    cache_hits: int = 0


class DataResponse(Protocol):
    """The packed bytes of one fetch range, as they arrive."""

    @property
    def is_stored(self) -> bool:
        """Whether the bytes received last came from a store of ours, not from the data host."""
        ...

    @property
    def origin(self) -> Provenance | None:
        """The store's copy that the bytes received last are from, or will be; None: there is none,
        or it is proven.
        """
        ...

    @property
    def has_imported(self) -> bool:
        """Whether some of the bytes come from an archive, and nothing speaks for them yet."""
        ...

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end."""
        ...


class CasSource(Protocol):
    """Gives reconstructions and data. Failures are UpstreamErrors."""

    @property
    def keeps_data(self) -> bool:
        """Whether it keeps what passes by: then ranges are to be small enough to be held until they
        are written.
        """
        ...

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Ask how a range of a file is built."""
        ...

    def open_data(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        *,
        is_proven: bool = False,
        takes_imported: bool = True,
    ) -> AbstractAsyncContextManager[DataResponse]:
        """Open the packed bytes of a fetch range of a xorb.

        Args:
            takes_imported: what has come in an archive is good enough, since nothing ends well
                before it is proven.
            is_proven: every chunk will be held against the list of a proven file; a store need not
                look for damage.
        """
        ...

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Keep no copies of these chunks: they are not what was promised. The next open_data asks
        anew.
        """
        ...
