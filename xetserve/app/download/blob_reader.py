"""A blob from the disk cache, continued from the Hub where the stored copy is unreadable."""

import logging
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Final, Self

from xetserve.app.download.hub_answer import HubAnswer
from xetserve.errors import UpstreamError, UpstreamRefused
from xetserve.http.messages import Record
from xetserve.http.ranges import Span, parse_content_range
from xetserve.pipeline.cache.blobs import LostError, StoredBlob
from xetserve.pipeline.cache.disk_cache import DISK_TIMEOUT
from xetserve.upstream.hub.client import FileEntry, HubClient
from xetserve.xet.reconstruction import ByteRange

logger = logging.getLogger(__name__)

_SCRATCH_SIZE: Final = 256 * 1024  # bytes


class BlobReader:
    """Reads bytes up to end of a stored file. A context manager: leaving it closes what is open.

    Args:
        record: of the request; all bytes are already counted there as from the cache.
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
        self._rest: HubAnswer | None = None
        self._opened = AsyncExitStack()

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
            await self._opened.aclose()

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
                self._rest = await self._open_rest(self._stored.position, timeout)
        return await self._rest.receive_into(view, timeout)

    async def _open_rest(self, position: int, timeout: float | None) -> HubAnswer:
        """Request the rest from the Hub; if it sends the whole file, skip the bytes before."""
        wanted = Span(position, self._end)
        if self._record.cache_bytes is not None:
            self._record.cache_bytes -= wanted.size
        header = ByteRange(*wanted).to_header()
        opening: AbstractAsyncContextManager[HubAnswer] = self._hub.open_plain(
            self._entry, self._token, header
        )
        answer = await self._opened.enter_async_context(opening)
        coding = answer.headers.get("content-encoding", "identity")
        given = parse_content_range(answer.headers.get("content-range") or "")
        is_part = answer.status == 206 and given is not None and given[0] == wanted
        if coding != "identity" or not (is_part or answer.status == 200):
            raise UpstreamRefused("the Hub did not send the rest of a file that it was asked for")
        left = 0 if is_part else position
        scratch = memoryview(bytearray(min(left, _SCRATCH_SIZE)))
        while left:
            count = await answer.receive_into(scratch[:left], timeout)
            if not count:
                raise UpstreamError(f"the Hub's file ends {left} bytes too early")
            left -= count
        return answer
