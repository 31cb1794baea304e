"""Single flight: responses that need the same fetch range at the same time share one fetch.

A response joins a fetch only through a plan that the CAS gave to its own token, and only while
every chunk that it needs is held or still to be received. Responses for one file also share
windows, so that their ranges are equal: a response that plans at the start of another one's window
takes over the end of that window.

Responses for one file do not run in step. A fetch that the first response no longer uses is kept
for the responses that follow closely, as long as the budget has room.
"""

from collections.abc import Iterable
from functools import partial
from typing import Final

from xetserve.pipeline.fetch.fetch import Fetch
from xetserve.pipeline.fetch.leases import Lease, Refresh, Resume
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.outage import Outage
from xetserve.pipeline.flow.pacing import HostSpeed
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.upstream.cas.source import CasSource
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.reconstruction import ChunkRange

# Fetches kept for followers hold at most 1/UNUSED_SHARE of the budget. While the process holds more
# than that in all, it keeps no further fetch.
UNUSED_SHARE: Final = 2
MAX_UNUSED: Final = 256  # fetches kept for followers; each window that ends walks over them


class FetchTable:
    """The running fetches of this process, and those kept for followers.

    Args:
        stall_timeout: seconds without a byte after which a connection is given up.
    """

    def __init__(
        self,
        source: CasSource,
        budget: ByteBudget,
        *,
        policy: RetryPolicy,
        stall_timeout: float,
    ) -> None:
        self.source = source
        self.budget = budget
        budget.reclaim = self._reclaim
        self.host_speed = HostSpeed()
        self._policy = policy
        self._stall_timeout = stall_timeout
        self._fetches: dict[tuple[bytes, ChunkRange], Fetch] = {}
        self._unused: dict[Fetch, tuple[FileTraffic, int]] = {}  # without users, oldest first
        self._traffic: dict[bytes, FileTraffic] = {}

    def __len__(self) -> int:
        return len(self._fetches)

    def get_traffic(self, file_hash: bytes) -> FileTraffic:
        """Return the traffic of a file; forget_traffic when its readers have ended."""
        return self._traffic.setdefault(file_hash, FileTraffic())

    def forget_traffic(self, file_hash: bytes) -> None:
        """Remove the traffic of a file that no response reads any more."""
        if self._traffic[file_hash].is_idle:
            del self._traffic[file_hash]

    def open_lease(
        self,
        step: Step,
        traffic: FileTraffic,
        position: int,
        refresh: Refresh,
        tally: Tally,
        *,
        resume: Resume | None = None,
        outage: Outage | None = None,
        is_packed: bool = False,
        is_proven: bool = False,
        takes_imported: bool = False,
    ) -> Lease:
        """Join the fetch of a step's range, or make one; it is not started.

        Args:
            traffic: of the file.
            position: the start of the window in the file, in bytes.
            refresh: requests fetch info with a new URL, after the old one has expired.
            outage: of the response: tells for how long a failure may still be retried.
            tally: counts the bytes of the response.
            is_packed: the response needs packed records, not decoded chunks.
            is_proven: the file is proven, so each chunk is compared with its list of hashes.
            takes_imported: imported entries may be used, since the response completes only if all
                of its data is proven.
        """
        takes_imported = takes_imported or is_proven
        join = partial(
            Lease,
            step=step,
            refresh=refresh,
            tally=tally,
            resume=resume,
            outage=outage,
            is_packed=is_packed,
            takes_imported=takes_imported,
        )
        key = (step.xorb_hash, step.info.chunks)
        fetch = self._fetches.get(key)
        if fetch is not None and fetch.can_serve(
            step.uses, is_packed=is_packed, is_proven=is_proven, takes_imported=takes_imported
        ):
            self._unused.pop(fetch, None)
            return join(fetch)
        if fetch is not None and not fetch.is_used:
            self._drop(fetch)
        fetch = Fetch(
            step,
            self.source,
            self.budget,
            policy=self._policy,
            stall_timeout=self._stall_timeout,
            is_awaited=lambda: self._is_awaited(traffic, position),
            host_speed=self.host_speed,
            is_proven=is_proven,
            takes_imported=takes_imported,
        )
        self._fetches[key] = fetch
        return join(fetch)

    def close_leases(self, leases: Iterable[Lease], traffic: FileTraffic, position: int) -> None:
        """Close the leases of a window, and close or keep the fetches that have no other users."""
        for lease in leases:
            self._close_lease(lease, traffic, position)
        self._tidy()

    def _close_lease(self, lease: Lease, traffic: FileTraffic, position: int) -> None:
        lease.close()
        fetch = lease.fetch
        if fetch.is_used or fetch.is_closed or fetch in self._unused:
            return
        if fetch.is_complete and self._is_awaited(traffic, position):
            self._unused[fetch] = (traffic, position)
            if len(self._unused) > MAX_UNUSED:
                self._drop(next(iter(self._unused)))
        else:
            self._drop(fetch)

    def _is_awaited(self, traffic: FileTraffic, position: int) -> bool:
        budget = self.budget
        return budget.held <= budget.limit // UNUSED_SHARE and traffic.is_followed(position)

    def _tidy(self) -> None:
        """Drop unused fetches that have no follower, then the oldest ones beyond the limit."""
        for fetch, (traffic, position) in list(self._unused.items()):
            if not traffic.is_followed(position):
                self._drop(fetch)
        kept = sum(fetch.granted for fetch in self._unused)
        if kept > self.budget.limit // UNUSED_SHARE:
            self._reclaim(kept - self.budget.limit // UNUSED_SHARE)

    def _reclaim(self, size: int) -> None:
        """Drop the oldest unused fetches until at least size bytes are returned to the budget."""
        for fetch in list(self._unused):
            if size <= 0:
                return
            size -= fetch.granted
            self._drop(fetch)

    def _drop(self, fetch: Fetch) -> None:
        self._unused.pop(fetch, None)
        key = (fetch.xorb_hash, fetch.chunks)
        if self._fetches.get(key) is fetch:
            del self._fetches[key]
        fetch.close()
