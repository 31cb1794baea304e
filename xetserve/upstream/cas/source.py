"""The interface of sources of reconstructions and data: the CAS itself, and caches before it."""

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from xetserve.upstream.hub.read_tokens import CasToken
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction


class Access(Protocol):
    """The right of a client to read a file: it yields read tokens for the CAS."""

    async def get_token(self) -> CasToken:
        """Return a token that stays valid for a while."""
        ...

    async def renew_token(self) -> CasToken:
        """Return a new token, after the CAS has refused the last one."""
        ...


class Provenance(Protocol):
    """A stored copy of some chunks of a xorb, for example an entry of the disk cache."""

    def note_hash(self, chunk: int, size: int, chunk_hash: bytes) -> None:
        """Record the hash and decoded size of a chunk that was read from the copy."""
        ...

    def note_proven(self, chunks: ChunkRange) -> None:
        """Record that chunks which were read from the copy are right."""
        ...


class DataResponse(Protocol):
    """The packed bytes of one fetch range, as they arrive."""

    @property
    def is_stored(self) -> bool:
        """Whether the last bytes came from a store of ours, not from the data host."""
        ...

    @property
    def origin(self) -> Provenance | None:
        """The stored copy that the last bytes came from, or that is being made of them.

        None: there is none, or all of it is proven.
        """
        ...

    @property
    def has_imported(self) -> bool:
        """Whether some of the bytes were imported from an archive and are not proven yet."""
        ...

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive bytes into view and return their number; 0 at the end."""
        ...


class CasSource(Protocol):
    """A source of reconstructions and data. Failures are UpstreamErrors."""

    @property
    def max_stored_size(self) -> int | None:
        """Bytes of the largest fetch range that it stores; None: it stores nothing."""
        ...

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Return the reconstruction of a range of a file."""
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
            is_proven: the caller compares every chunk with the ledger of a proven file, so a store
                need not check for damage.
            takes_imported: imported data will do, because the caller's response fails unless the
                data is proven.
        """
        ...

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Drop copies of these chunks, because they are wrong; the next open_data fetches them."""
        ...
