"""Single flight: responses that want the same fetch range at the same time share one fetch.

A response joins a fetch only through a plan that the CAS gave to its own token, and only as long as
every chunk it needs is still there or to come. So that ranges are the same, responses for one file
also agree on windows: whoever plans at a position where somebody else's window starts takes its end
over.

Responses for one file do not run in step. What the one in front has used up is kept for those that
come close behind it, as long as the budget has room to spare.
"""

from collections.abc import Iterable
from functools import partial
from typing import Final

from xetserve.pipeline.fetch.fetch import Fetch
from xetserve.pipeline.fetch.leases import Lease, Refresh
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.pacing import HostSpeed
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.upstream.cas.source import CasSource
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.reconstruction import ChunkRange

# One in so many parts of the budget: what may be kept for followers, and from where on nothing more
# is.
SHELF_SHARE: Final = 2
MAX_SHELVED: Final = 256  # fetches so kept; every window that is done looks at all of them


class FetchTable:
    """The fetches that are under way in this process, and those kept for followers.

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
        self._shelf: dict[Fetch, tuple[FileTraffic, int]] = {}  # without users, oldest first
        self._traffic: dict[bytes, FileTraffic] = {}

    def __len__(self) -> int:
        return len(self._fetches)

    def get_traffic(self, file_hash: bytes) -> FileTraffic:
        """Return the traffic of a file; forget_traffic when its readers have ended."""
        return self._traffic.setdefault(file_hash, FileTraffic())

    def forget_traffic(self, file_hash: bytes) -> None:
        """Forget a file that nobody reads any more."""
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
        is_packed: bool = False,
        is_proven: bool = False,
        takes_imported: bool = False,
    ) -> Lease:
        """Join the fetch of a step's range, or make one; it is not started.

        Args:
            traffic, position: of the file, and where in it the window starts.
            tally: of the response.
            is_packed: it wants records as they are.
            is_proven: of the file; every chunk will be held against its list.
            takes_imported: the response ends well only if all of it is proven.
        """
        takes_imported = takes_imported or is_proven
        join = partial(
            Lease,
            step=step,
            refresh=refresh,
            tally=tally,
            is_packed=is_packed,
            takes_imported=takes_imported,
        )
        key = (step.xorb_hash, step.info.chunks)
        fetch = self._fetches.get(key)
        if fetch is not None and fetch.can_serve(
            step.uses, is_packed=is_packed, is_proven=is_proven, takes_imported=takes_imported
        ):
            self._shelf.pop(fetch, None)
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
        """Close leases of a window. Without other users their fetches are closed, too, or kept for
        followers.
        """
        for lease in leases:
            self._close_lease(lease, traffic, position)
        self._tidy()

    def _close_lease(self, lease: Lease, traffic: FileTraffic, position: int) -> None:
        lease.close()
        fetch = lease.fetch
        if fetch.is_used or fetch.is_closed or fetch in self._shelf:
            return
        if fetch.is_complete and self._is_awaited(traffic, position):
            self._shelf[fetch] = (traffic, position)
            if len(self._shelf) > MAX_SHELVED:
                self._drop(next(iter(self._shelf)))
        else:
            self._drop(fetch)

    def _is_awaited(self, traffic: FileTraffic, position: int) -> bool:
        budget = self.budget
        return budget.held <= budget.limit // SHELF_SHARE and traffic.is_followed(position)

    def _tidy(self) -> None:
        """Drop what no follower will come for, and the oldest of what is too much."""
        for fetch, (traffic, position) in list(self._shelf.items()):
            if not traffic.is_followed(position):
                self._drop(fetch)
        kept = sum(fetch.granted for fetch in self._shelf)
        if kept > self.budget.limit // SHELF_SHARE:
            self._reclaim(kept - self.budget.limit // SHELF_SHARE)

    def _reclaim(self, size: int) -> None:
        """Give back at least size bytes of what is kept, if there are so many."""
        for fetch in list(self._shelf):
            if size <= 0:
                return
            size -= fetch.granted
            self._drop(fetch)

    def _drop(self, fetch: Fetch) -> None:
        self._shelf.pop(fetch, None)
        key = (fetch.xorb_hash, fetch.chunks)
        if self._fetches.get(key) is fetch:
            del self._fetches[key]
        fetch.close()
