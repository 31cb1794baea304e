"""A blob from the disk cache, continued from the Hub where the stored copy is unreadable."""

import logging
from types import TracebackType
from typing import Self

from xetserve.app.download.hub_source import HubSource
from xetserve.http.messages import Record
from xetserve.pipeline.cache.blobs import LostError, StoredBlob
from xetserve.pipeline.cache.disk_cache import DISK_TIMEOUT
from xetserve.upstream.hub.client import FileEntry, HubClient

logger = logging.getLogger(__name__)


class BlobReader:
    """Reads bytes up to end of a stored file. A context manager: leaving it closes what is open.

    Args:
        record: of the request; all bytes are already counted there as from the cache.

    patience: see HubSource.
    """

    def __init__(
        self,
        hub: HubClient,
        entry: FileEntry,
        token: str | None,
        stored: StoredBlob,
        end: int,
        record: Record,
    ) -> None:
        self._hub = hub
        self._entry = entry
        self._token = token
        self._stored = stored
        self._end = end
        self._record = record
        self._rest: HubSource | None = None
        self.patience = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._stored.__aexit__(kind, value, traceback)
        finally:
            if self._rest is not None:
                await self._rest.__aexit__(kind, value, traceback)

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end.

        Raises:
            UpstreamError: the stored copy is unreadable, and the Hub does not send the rest.
        """
        if self._rest is None:
            try:
                return await self._stored.receive_into(view, DISK_TIMEOUT)
            except LostError as exc:
                logger.info("%s: the Hub sends the rest, from byte %d", exc, self._stored.position)
                self._rest = self._make_rest(self._stored.position)
        self._rest.patience = self.patience
        return await self._rest.receive_into(view, timeout)

    def _make_rest(self, position: int) -> HubSource:
        if self._record.cache_bytes is not None:
            self._record.cache_bytes -= self._end - position
        return HubSource(self._hub, self._entry, self._token, position, self._end)
