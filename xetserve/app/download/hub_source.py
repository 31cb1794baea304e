"""The Hub's bytes of a file that is not Xet, requested again where an answer breaks off."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Self, TypeVar

from xetserve.app.download.hub_answer import HubAnswer
from xetserve.errors import BrokenStream, UpstreamError, UpstreamRefused, UpstreamTimeout
from xetserve.http.ranges import parse_content_range
from xetserve.metrics.catalogue import UPSTREAM_RETRIES
from xetserve.pipeline.flow.outage import Outage
from xetserve.upstream.hub.client import FileEntry, HubClient
from xetserve.upstream.retry import RetryPolicy, RetryState

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SCRATCH_SIZE: Final = 256 * 1024  # bytes
_POLICY: Final = RetryPolicy(time_limit=0.0)  # patience alone decides


class HubSource:
    """Reads bytes [start, end) of a file. A context manager: leaving it closes what is open.

    Args:
        end: None: the end of the file, wherever that is.

    patience: seconds without a byte for which failures are retried; 0 until somebody sets it,
        because the client waits for the head at first.
    """

    def __init__(
        self, hub: HubClient, entry: FileEntry, token: str | None, start: int, end: int | None
    ) -> None:
        self.patience = 0.0
        self._hub = hub
        self._entry = entry
        self._token = token
        self._position = start
        self._end = end
        self._answer: HubAnswer | None = None
        self._tag: str | None = None  # of the first answer
        self._opened = AsyncExitStack()
        self._began = 0.0  # of the wait for the next bytes, seconds of the monotonic clock
        self._outage = Outage(self._get_patience)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._outage.close()
        await self._opened.aclose()

    def _get_patience(self) -> float:
        return self._began + self.patience - time.monotonic() if self.patience else 0.0

    async def open(self, byte_range: str | None) -> HubAnswer:
        """Send the first request, and return its answer, whatever it is.

        Args:
            byte_range: the value of a Range header. If the answer is the whole file all the same,
                its bytes from the first one on are received.

        Raises:
            UpstreamError and its kinds: see HubClient.open_plain.
        """

        async def attempt() -> HubAnswer:
            return await self._ask(byte_range)

        answer = await self._retry(attempt)
        if answer.status == 200:
            self._position, self._end = 0, self._entry.size
        return answer

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive into view; 0 at the end.

        Raises:
            UpstreamError, BrokenStream, TimeoutError: the Hub does not send the bytes, and nobody
                waits for it any longer.
        """

        async def attempt() -> int:
            answer = self._answer or await self._continue(timeout)
            return await answer.receive_into(view, timeout)

        count = await self._retry(attempt)
        self._position += count
        return count

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call attempt, and again after failures while patience lasts."""
        self._began = time.monotonic()
        state: RetryState | None = None  # most reads need none
        while True:
            try:
                result = await attempt()
            except (UpstreamError, BrokenStream, TimeoutError) as exc:
                state = state or RetryState(_POLICY, self._began)
                delay = state.next_delay(_name(exc), time.monotonic(), self._get_patience())
                if delay is None:
                    raise
                UPSTREAM_RETRIES.add("hub", type(exc).__name__)
                logger.debug("the Hub's file from byte %d again: %s", self._position, exc)
                self._outage.note_failure(self, exc)
                self._answer = None
                await self._opened.aclose()
                await asyncio.sleep(delay)
            else:
                self._outage.note_success(self)
                return result

    async def _ask(self, byte_range: str | None) -> HubAnswer:
        opening = self._hub.open_plain(
            self._entry, self._token, byte_range, patient=not self.patience
        )
        self._answer = answer = await self._opened.enter_async_context(opening)
        tag = answer.headers.get("etag")
        if self._tag is not None and tag not in (None, self._tag):
            raise UpstreamRefused("the file has changed at the Hub while it was read")
        self._tag = self._tag or tag
        return answer

    async def _continue(self, timeout: float | None) -> HubAnswer:
        """Request the bytes from the position on; skip those before if the Hub sends all."""
        last = "" if self._end is None else self._end - 1
        answer = await self._ask(f"bytes={self._position}-{last}")
        coding = answer.headers.get("content-encoding", "identity")
        given = parse_content_range(answer.headers.get("content-range") or "")
        is_part = (
            answer.status == 206
            and given is not None
            and given[0].start == self._position
            and self._end in (None, given[0].end)
        )
        if coding != "identity" or not (is_part or answer.status == 200):
            raise UpstreamRefused("the Hub did not send the rest of a file that it was asked for")
        left = 0 if is_part else self._position
        scratch = memoryview(bytearray(min(left, _SCRATCH_SIZE)))
        while left:
            count = await answer.receive_into(scratch[:left], timeout)
            if not count:
                raise UpstreamError(f"the Hub's file ends {left} bytes too early")
            left -= count
        return answer


def _name(error: UpstreamError | BrokenStream | TimeoutError) -> UpstreamError:
    """Return an error of the connection as one of the upstream."""
    if isinstance(error, UpstreamError):
        return error
    return UpstreamTimeout("stalled") if isinstance(error, TimeoutError) else UpstreamError("broke")
