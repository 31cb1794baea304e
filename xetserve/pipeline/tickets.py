"""Single flight: responses that want the same fetch range at the same time share one fetch.

A response joins a fetch only through a plan that the CAS gave to its own token, and only as long as every chunk it needs is
still there or to come. So that ranges are the same, responses for one file also agree on windows: whoever plans at a
position where somebody else's window starts takes its end over.
"""

from collections.abc import Awaitable, Callable

from xetserve.pipeline.budget import ByteBudget
from xetserve.pipeline.fetch import Fetch
from xetserve.pipeline.plan import Step
from xetserve.pipeline.source import CasSource
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.compression import Buffer
from xetserve.xet.reconstruction import ChunkRange, FetchInfo
from xetserve.xet.xorb import ChunkHeader

Refresh = Callable[[FetchInfo], Awaitable[FetchInfo]]


class Ticket:
    """One response's part in a fetch; close it when the window is done. See Fetch for the methods."""

    def __init__(
        self, fetch: Fetch, step: Step, refresh: Refresh, on_change: Callable[[], None]
    ) -> None:
        self.fetch = fetch
        self.on_change = on_change
        self._refresh = refresh
        self._uses = list(step.uses)
        self._is_open = True
        fetch.add_user(self, step.uses)

    async def refresh(self, stale: FetchInfo) -> FetchInfo:
        """Give fetch info with a URL that is good."""
        return await self._refresh(stale)

    def release(self, chunk: int) -> None:
        """Tell that a chunk was used once."""
        self._uses[chunk - self.fetch.chunks.start] -= 1
        self.fetch.release(chunk)

    def get_header(self, chunk: int) -> ChunkHeader:
        """Give the header of a chunk that is here."""
        return self.fetch.get_header(chunk)

    def decode(self, chunk: int) -> Buffer:
        """Give the decoded bytes of a chunk that is here."""
        return self.fetch.decode(chunk)

    def close(self) -> None:
        """Give back what this response has not used; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self.fetch.remove_user(self, self._uses)


class FetchTable:
    """The fetches and windows that are under way in this process.

    Args:
        stall_timeout: seconds without a byte after which a connection is given up.
    """

    def __init__(
        self, source: CasSource, budget: ByteBudget, *, policy: RetryPolicy, stall_timeout: float
    ) -> None:
        self.source = source
        self.budget = budget
        self._policy = policy
        self._stall_timeout = stall_timeout
        self._fetches: dict[tuple[bytes, ChunkRange], Fetch] = {}
        self._windows: dict[tuple[bytes, int], list[int]] = {}

    def open_ticket(self, step: Step, refresh: Refresh, on_change: Callable[[], None]) -> Ticket:
        """Join the fetch of a step's range, or make one; it is not started."""
        key = (step.xorb_hash, step.info.chunks)
        fetch = self._fetches.get(key)
        if fetch is None or not fetch.can_serve(step.uses):
            fetch = Fetch(
                step,
                self.source,
                self.budget,
                policy=self._policy,
                stall_timeout=self._stall_timeout,
            )
            self._fetches[key] = fetch
        return Ticket(fetch, step, refresh, on_change)

    def close_ticket(self, ticket: Ticket) -> None:
        """Close a ticket, and forget its fetch if nobody else uses it."""
        ticket.close()
        fetch = ticket.fetch
        key = (fetch.xorb_hash, fetch.chunks)
        if fetch.is_closed and self._fetches.get(key) is fetch:
            del self._fetches[key]

    def add_window(self, file_hash: bytes, start: int, asked_end: int) -> None:
        """Tell that a window of a file is planned; positions in decoded bytes."""
        self._windows.setdefault((file_hash, start), []).append(asked_end)

    def remove_window(self, file_hash: bytes, start: int, asked_end: int) -> None:
        """Tell that it is done."""
        ends = self._windows[file_hash, start]
        ends.remove(asked_end)
        if not ends:
            del self._windows[file_hash, start]

    def find_window(self, file_hash: bytes, start: int) -> int | None:
        """Give the asked end of somebody's window that starts here."""
        ends = self._windows.get((file_hash, start))
        return ends[-1] if ends else None
