"""The part of a fetch that one response uses: the chunks that it still needs."""

from collections.abc import Awaitable, Callable

from xetserve.pipeline.fetch.fetch import Fetch
from xetserve.pipeline.flow.outage import Outage
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.xet.reconstruction import FetchInfo

Refresh = Callable[[FetchInfo], Awaitable[FetchInfo]]
Resume = Callable[[int], Awaitable[FetchInfo | None]]


class Lease:
    """One response's use of a fetch.

    Args:
        outage: of the response; None: the response does not wait for a failed upstream.
    """

    def __init__(
        self,
        fetch: Fetch,
        step: Step,
        refresh: Refresh,
        tally: Tally,
        *,
        resume: Resume | None = None,
        outage: Outage | None = None,
        is_packed: bool = False,
        takes_imported: bool = False,
    ) -> None:
        self.fetch = fetch
        self.tally = tally
        self.is_packed = is_packed
        self._refresh = refresh
        self._resume = resume
        self._outage = outage
        self._uses = list(step.uses)
        self._is_open = True
        fetch.add_user(self, step.uses, takes_imported=takes_imported)

    async def refresh(self, stale: FetchInfo) -> FetchInfo:
        """Return fetch info with a new URL, see User."""
        return await self._refresh(stale)

    async def resume(self, first: int) -> FetchInfo | None:
        """Return fetch info for the chunks from `first` on; None: this response knows none."""
        return None if self._resume is None else await self._resume(first)

    def get_patience(self) -> float:
        """Return for how many seconds this response would wait for the data."""
        return 0.0 if self._outage is None else self._outage.get_patience()

    def note_failure(self, error: Exception) -> None:
        """Record that a try of the fetch failed, and another one follows."""
        if self._outage is not None:
            self._outage.note_failure(self, error)

    def note_success(self) -> None:
        """Record that the fetch has got bytes."""
        if self._outage is not None:
            self._outage.note_success(self)

    def release(self, chunk: int) -> None:
        """Record that a chunk was used once more."""
        self.release_run(chunk, chunk + 1)

    def release_run(self, start: int, end: int) -> None:
        """Record that the chunks [start, end) were used once more."""
        first = self.fetch.chunks.start
        for at in range(start - first, end - first):
            self._uses[at] -= 1
        self.fetch.release(start, end)

    def close(self) -> None:
        """Release the chunks that this response has not used. A second call does nothing."""
        if self._is_open:
            self._is_open = False
            self.note_success()  # it is not waited for any more
            self.fetch.remove_user(self, self._uses)
