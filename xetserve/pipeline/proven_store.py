"""The interface of a store whose records were proven, and may leave without being decoded again."""

from typing import Protocol

from xetserve.xet.reconstruction import FetchInfo


class ProvenRecords(Protocol):
    """The packed records of a chunk range, in order.

    hashes: of their chunks, concatenated; somebody has hashed these very records here.
    """

    hashes: bytes

    async def read(self, size: int, timeout: float) -> tuple[memoryview, int]:
        """Return the next whole records, of at most size bytes or only one, and their number;
        they are good until the next call.

        Args:
            timeout: seconds.

        Raises:
            FormatError: a record is not the one that was hashed.
            TimeoutError: the disk hangs.
            OSError: the records are gone, or the disk fails.
        """
        ...

    def close(self) -> None:
        """Close what is open, now or once no thread uses it any more."""
        ...


class ProvenStore(Protocol):
    """Has records that were proven."""

    async def find_proven(self, xorb_hash: bytes, info: FetchInfo) -> ProvenRecords | None:
        """Return the records of a fetch range, if all of them are in entries that are proven, and
        this process has hashed all chunks of these entries.
        """
        ...
