"""What one response has of a fetch: the chunks that it still needs, until it gives them back."""

from collections.abc import Awaitable, Callable

from xetserve.pipeline.fetch.fetch import Fetch
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.xet.reconstruction import FetchInfo

Refresh = Callable[[FetchInfo], Awaitable[FetchInfo]]
GetPatience = Callable[[], float]
Resume = Callable[[int], Awaitable[FetchInfo | None]]


class Lease:
    """One response's part in a fetch."""

    def __init__(
        self,
        fetch: Fetch,
        step: Step,
        refresh: Refresh,
        tally: Tally,
        *,
        resume: Resume | None = None,
        get_patience: GetPatience | None = None,
        is_packed: bool = False,
        takes_imported: bool = False,
    ) -> None:
        self.fetch = fetch
        self.tally = tally
        self.is_packed = is_packed
        self._refresh = refresh
        self._resume = resume
        self._get_patience = get_patience
        self._uses = list(step.uses)
        self._is_open = True
        fetch.add_user(self, step.uses, takes_imported=takes_imported)

    async def refresh(self, stale: FetchInfo) -> FetchInfo:
        """Return fetch info with a URL that is good."""
        return await self._refresh(stale)

    async def resume(self, first: int) -> FetchInfo | None:
        """Return fetch info for the chunks from `first` on; None: this response knows none."""
        return None if self._resume is None else await self._resume(first)

    def get_patience(self) -> float:
        """Return for how many seconds this response would wait for the data."""
        return 0.0 if self._get_patience is None else self._get_patience()

    def release(self, chunk: int) -> None:
        """Tell that a chunk was used once."""
        self.release_run(chunk, chunk + 1)

    def release_run(self, start: int, end: int) -> None:
        """Tell that chunks that follow each other were used once."""
        first = self.fetch.chunks.start
        for at in range(start - first, end - first):
            self._uses[at] -= 1
        self.fetch.release(start, end)

    def close(self) -> None:
        """Give back what this response has not used; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self.fetch.remove_user(self, self._uses)
