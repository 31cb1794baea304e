"""From (file hash, byte range) to verified bytes in order.

The client sets the pace. Each block that it takes has the next one made: chunks are decoded, which
frees packed bytes, and that room is used to fetch and to plan further ahead. While the client takes
nothing, nothing is started.

Verified means: every chunk's record is well-formed and decodes to its promised size; every term has
its promised size; and on a whole-file read the hashes of all chunks fold to the file hash before
the last block is given out. A part of a file proves nothing by itself; the file's ledger
(pipeline/verify/ledger.py) does, once it is complete.
"""

import asyncio
import logging
import time
from collections import deque
from functools import partial

from xetserve.base.waiters import wake
from xetserve.errors import UpstreamError, UpstreamOffline
from xetserve.metrics.catalogue import WINDOWS
from xetserve.pipeline.blocks import Block, BlockReader, OnClose
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.fetch.table import FetchTable
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.plan.kept_chunks import KeptChunks
from xetserve.pipeline.plan.planner import Planner
from xetserve.pipeline.plan.window_plan import MAX_PIECES, WindowPlan
from xetserve.pipeline.verify.verifier import Verifier
from xetserve.pipeline.window_reader import WindowReader
from xetserve.pipeline.windows import Window
from xetserve.upstream.cas.source import Access
from xetserve.upstream.retry import RetryPolicy, RetryState
from xetserve.xet.reconstruction import ByteRange, Reconstruction

logger = logging.getLogger(__name__)

WINDOWS_AHEAD = 2


class FileReader(BlockReader):
    """Reads one range of one file, once.

    Args:
        start, end: decoded positions, half-open; end None: the end of the file, wherever that is.
        size: of the file in bytes, where known.

    packed_ratio: packed bytes for one decoded byte of the first window; None: not planned yet.
    """

    def __init__(
        self,
        table: FetchTable,
        verifier: Verifier,
        access: Access,
        file_hash: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        size: int | None = None,
        gap_timeout: float,
        outage_patience: float = 0.0,
        on_close: OnClose | None = None,
        max_hold: int | None = None,
    ) -> None:
        super().__init__(table.budget, gap_timeout, outage_patience, on_close, max_hold)
        self._table = table
        self._access = access
        self._file_hash = file_hash
        self._start = start
        self._end = size if end is None else end
        self._windows: deque[Window] = deque()  # planned and not finished
        self._current: WindowReader | None = None  # of the first of them
        self._planner: Planner  # while it is open
        self._planning: asyncio.Task[None]
        self._prepared = asyncio.Event()  # set once it is known whether the file is proven
        self._plan_error: Exception | None = None
        self._change: asyncio.Future[None] | None = None
        self._traffic: FileTraffic  # of the file, while it is open
        self._position = start - 1  # where the current window starts, see _move_to
        self._size = size
        self._kept = KeptChunks(table.budget)
        self._verifier = verifier
        self.packed_ratio: float | None = None

    @property
    def is_verified(self) -> bool:
        """Whether all that was read is the file's; known once the last block is given out."""
        return self._verifier.is_verified

    # The life of a body.

    async def _open(self) -> None:
        self._traffic = self._table.get_traffic(self._file_hash)
        self._traffic.add_reader(self._position)
        self._planner = Planner(
            self._ask_patiently,
            self._pacer,
            self._traffic,
            self._kept,
            start=self._start,
            end=self._end,
            wants_more=self._wants_more,
            add_window=self._add_window,
        )
        self._planning = asyncio.get_running_loop().create_task(self._plan_windows(self._planner))
        await self._verifier.prepare()  # while the first window is planned
        self._prepared.set()

    async def _make_block(self) -> Block | None:
        while True:
            if self._current is not None and self._current.is_done:
                self._finish_window()
            if self._current is None:
                await self._wait_for_windows(1)
                if not self._windows:
                    break
                self._current = self._make_window_reader()
            block = await self._fill_block(self._current)
            block.settle()
            if block.size:
                await self._verifier.pass_on(self._size)
                self._pump()
                return block
            block.release()
        if self._verifier.is_whole and not self.is_verified:
            await self._verifier.finish(self._size)
        return None

    def _fail(self) -> None:
        if self._verifier.is_in_doubt:
            self._verifier.note_cut()
        for xorb_hash, chunks in self._verifier.fail().items():
            self._table.source.forget(xorb_hash, chunks)

    async def _close(self) -> None:
        self._verifier.settle()
        self._traffic.remove_reader(self._position)
        self._planning.cancel()
        self._kept.close()
        self._current = None
        fetches = {lease.fetch for window in self._windows for lease in window.leases}
        while self._windows:
            self._close_window(self._windows.popleft())
        self._table.forget_traffic(self._file_hash)
        await asyncio.wait((self._planning,))
        for fetch in fetches:
            if fetch.is_closed:
                await fetch.wait_closed()

    # Windows.

    def _make_window_reader(self) -> WindowReader:
        return WindowReader(self._windows[0], self._verifier, self._kept, self._table.source)

    def _finish_window(self) -> None:
        """Close the current window, all of which has left."""
        window = self._windows.popleft()
        self._current = None
        file_range = window.plan.file_range
        self._pacer.note_window(
            file_range.size,
            self._budget.share,
            self._table.host_speed,
            is_shared=not self._traffic.is_alone,
            max_stored=self._table.source.max_stored_size,
        )
        self._move_to(file_range.end)
        self._kept.reuse.forget(file_range.end)
        self._close_window(window)
        self._pump()

    def _move_to(self, position: int) -> None:
        """Tell the others where we are; just before a window, as long as it is not planned."""
        position -= not self._windows
        self._traffic.move_reader(self._position, position)
        self._position = position

    def _close_window(self, window: Window) -> None:
        asked = window.plan.asked
        self._table.close_leases(window.leases, self._traffic, asked.start)
        WINDOWS.add(amount=-1)
        # they know the window: the cycle would keep buffers until it is collected
        window.leases.clear()
        self._traffic.remove_window(asked.start, asked.end)

    async def _wait_for_windows(self, count: int) -> None:
        """Wait until so many windows are planned, or all are."""
        while len(self._windows) < count:
            if self._plan_error is not None:
                raise self._plan_error
            if self._planning.done():
                return
            self._change = asyncio.get_running_loop().create_future()
            await self._stall_deadline.wait(self._change)

    async def _is_last(self, window: Window) -> bool:
        """Return whether the file ends with this window."""
        if self._end is not None:
            return window.plan.file_range.end == self._end
        await self._wait_for_windows(2)
        return len(self._windows) < 2

    # Blocks.

    async def _fill_block(self, current: WindowReader) -> Block:
        """Return the next block of the current window; without bytes, it is the window's end."""
        block = Block()
        while (lease := current.fill(block, self._pacer.block_size)) is not None:
            if block.size and current.left:
                return block  # what is here leaves first
            await self._wait_for_chunk(lease, current.chunk)
        if current.is_done and await self._is_last(self._windows[0]):
            # Before the last bytes leave: a damaged file must not look complete.
            await self._verifier.finish(self._size)
        return block

    async def _wait_for_chunk(self, lease: Lease, chunk: int) -> None:
        if not lease.fetch.is_started:
            lease.fetch.start(self._pacer.hold_limit, streams=True, must=True)
        self._pump()
        await lease.fetch.wait(chunk, self._stall_deadline)

    # Looking ahead.

    def _pump(self) -> None:
        """Start, in file order, the fetches ahead that the pace asks for and the budget allows.

        Called before every wait, for the client or for the upstream: what the last block has freed
        is used then, so nobody needs to be called back when it is freed.
        """
        self._planner.wake()
        pacer = self._pacer
        room = min(max(pacer.hold_limit, pacer.ahead_limit), self._table.budget.share)
        is_ahead = pacer.hold_limit >= pacer.ahead_limit  # or the one being read does not count
        to_come = 0  # bytes, of those that are started
        for window in self._windows:
            for lease in window.leases:
                fetch = lease.fetch
                if fetch.is_started:
                    fetch.fit(room)
                elif not fetch.start(room, streams=to_come < pacer.early_limit):
                    return
                if is_ahead:
                    room = max(0, room - fetch.granted)
                is_ahead |= fetch.granted > 0
                to_come += fetch.num_left

    def _wants_more(self, asking: int) -> bool:
        """Return whether to plan further, when so many decoded bytes are being asked for."""
        if len(self._windows) + bool(asking) < WINDOWS_AHEAD:
            return True
        if sum(len(window.plan.pieces) for window in self._windows) >= MAX_PIECES:
            return False
        planned = sum(window.plan.file_range.size for window in self._windows)
        return planned + asking < max(self._pacer.hold_limit, self._pacer.ahead_limit) * 5 // 4

    async def _plan_windows(self, planner: Planner) -> None:
        try:
            await planner.run()
        except Exception as exc:  # noqa: BLE001 - it is the reader's to see, once it gets there
            self._plan_error = exc
        wake(self._change)

    async def _ask_patiently(self, asked: ByteRange) -> Reconstruction:
        """Ask the CAS, and again while an outage lasts once the body has begun."""
        state = RetryState(RetryPolicy(time_limit=0.0), time.monotonic())
        while True:
            try:
                answer = await self._ask(asked)
            except UpstreamError as exc:
                delay = state.next_delay(exc, time.monotonic(), self.outage.get_patience())
                if delay is None:
                    raise
                logger.debug("planning from byte %d again: %s", asked.start, exc)
                self.outage.note_failure(self, exc, num_tries=2)  # the source has tried often
                await asyncio.sleep(delay)
            else:
                self.outage.note_success(self)
                return answer

    async def _ask(self, asked: ByteRange) -> Reconstruction:
        source = self._table.source
        answer = await source.fetch_reconstruction(self._access, self._file_hash, asked)
        await self._prepared.wait()  # what may be taken from the cache depends on it
        if answer.is_imported and not (self._verifier.is_whole or self._verifier.is_proven):
            raise UpstreamOffline(
                "this server is offline, and only an archive says how the file is built: "
                "a download of the whole file would prove it"
            )
        return answer

    def _add_window(self, plan: WindowPlan) -> None:
        if self.packed_ratio is None:
            self.packed_ratio = plan.packed_ratio
        window = Window(plan, self._ask)
        for number, step in enumerate(plan.steps):
            refresh = partial(window.refresh, number)
            window.leases.append(
                self._table.open_lease(
                    step,
                    self._traffic,
                    plan.asked.start,
                    refresh,
                    self.tally,
                    resume=partial(window.resume, number),
                    outage=self.outage,
                    is_proven=self._verifier.is_proven,
                    takes_imported=self._verifier.is_whole,
                )
            )
        WINDOWS.add()
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "window %d..%d: %d pieces from %d fetches of %d bytes",
                *plan.file_range,
                len(plan.pieces),
                len(plan.steps),
                sum(step.info.byte_range.size for step in plan.steps),
            )
        self._windows.append(window)
        if len(self._windows) == 1:
            self._move_to(plan.file_range.start)
        self._traffic.add_window(plan.asked.start, plan.asked.end)
        self._pump()
        wake(self._change)
