"""A planned window of a file, and the URLs of its data."""

import asyncio
from collections.abc import Awaitable, Callable

from xetserve.errors import UpstreamError
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.plan.window_plan import Step, WindowPlan
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction


class Window:
    """A planned window and its fetches. It gets new URLs for them.

    Args:
        ask: asks the CAS about a range of the file.

    position: of the next chunk that will be read, in decoded bytes of the file.
    """

    def __init__(
        self, plan: WindowPlan, ask: Callable[[ByteRange], Awaitable[Reconstruction]]
    ) -> None:
        self.plan = plan
        self.leases: list[Lease] = []
        self._ask = ask
        self.position = plan.file_range.start - plan.skip
        self._infos = [step.info for step in plan.steps]
        self._lock = asyncio.Lock()

    async def refresh(self, number: int, stale: FetchInfo) -> FetchInfo:
        """Return new fetch info for a step. One question to the CAS renews all steps of the
        window.
        """
        async with self._lock:
            if self._infos[number] == stale:
                answer = await self._ask(self.plan.asked)
                for at, step in enumerate(self.plan.steps):
                    self._infos[at] = _find_again(answer.fetch_info.get(step.xorb_hash, ()), step)
            return self._infos[number]

    async def resume(self, number: int, first: int) -> FetchInfo | None:
        """Return fetch info for the chunks of a step from `first` on; None: the CAS offers none.

        A URL is signed for one range, so a fetch that broke off cannot ask for the rest of it.
        The CAS is asked about the part of the file that has not been read, which gives a URL for
        the rest.
        """
        step = self.plan.steps[number]
        left = ChunkRange(first, step.info.chunks.end)
        answer = await self._ask(ByteRange(self.position, self.plan.asked.end))
        infos = [
            info
            for info in answer.fetch_info.get(step.xorb_hash, ())
            if info.chunks.contains(left) and info.chunks.start >= step.info.chunks.start
        ]
        return min(infos, key=lambda info: info.byte_range.size, default=None)


def _find_again(infos: tuple[FetchInfo, ...], step: Step) -> FetchInfo:
    """Return the fetch info for a step in a later answer: the same range, or one that contains it.

    Raises:
        UpstreamError: the answer has none.
    """
    for info in infos:
        if info.chunks == step.info.chunks:
            return info
    for info in infos:
        if info.chunks.contains(step.info.chunks):
            return info
    raise UpstreamError(f"the CAS has another plan for xorb {format_hash(step.xorb_hash)} now")
