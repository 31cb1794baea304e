"""From (file hash, byte range) to verified bytes in order.

One rope, pulled from the client's end: asking for a block decodes a few chunks, which frees packed
bytes, which lets fetches go on and windows be planned. Nobody asks, nothing moves.

Verified means: every chunk's record is well-formed and decodes to its promised size; every term has
its promised size; and on a whole-file read the hashes of all chunks fold to the file hash before
the last block is given out. A part of a file proves nothing by itself; the file's ledger
(pipeline/verify/ledger.py) does, once it is complete.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from xetserve.base.buffers import Buffer
from xetserve.base.waiters import wake
from xetserve.errors import (
    FormatError,
    IntegrityError,
    UpstreamOffline,
)
from xetserve.metrics.catalogue import INTEGRITY_FAILURES, WINDOWS
from xetserve.pipeline.blocks import Block
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.fetch.table import FetchTable
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.pacing import Pacer
from xetserve.pipeline.flow.stall_deadline import StallDeadline
from xetserve.pipeline.plan.kept_chunks import KeptChunk, KeptChunks
from xetserve.pipeline.plan.planner import Planner
from xetserve.pipeline.plan.window_plan import MAX_PIECES, WindowPlan
from xetserve.pipeline.tally import Tally
from xetserve.pipeline.verify.verifier import Verifier
from xetserve.pipeline.windows import Window
from xetserve.upstream.cas.source import Access
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction
from xetserve.xet.xorb import make_raw_record

logger = logging.getLogger(__name__)

WINDOWS_AHEAD = 2
MAX_REJECTS = 3  # times that a chunk which does not decode is fetched again


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Times in seconds.

    stall_timeout: without a byte on one upstream connection, before another is tried.
    gap_timeout: without a block for the client, retries included, before the read fails.
    """

    stall_timeout: float = 3.0
    gap_timeout: float = 8.0


class FileReader:
    """Reads one range of one file, once.

    Args:
        byte_range: decoded positions; its end None: up to the end of the file, wherever that is.
        size: of the file in bytes, where known.

    tally: where its bytes have come from so far.
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
    ) -> None:
        self._table = table
        self._access = access
        self._file_hash = file_hash
        self._start = start
        self._end = size if end is None else end
        self._is_whole = verifier.is_whole
        self._pacer = Pacer()
        self._stall_deadline = StallDeadline(gap_timeout, self._pacer)
        self._windows: deque[Window] = deque()  # planned and not finished
        self._planner: Planner  # while blocks() runs
        self._planning: asyncio.Task[None]
        self._prepared = asyncio.Event()  # set once it is known whether the file is proven
        self._plan_error: Exception | None = None
        self._change: asyncio.Future[None] | None = None
        self._traffic: FileTraffic  # of the file, while blocks() runs
        self._position = start - 1  # where the current window starts, see _move_to
        self._size = size
        self.tally = Tally()
        self._kept = KeptChunks(table.budget)
        self._verifier = verifier
        self.packed_ratio: float | None = None  # of the first window, once it is planned

    async def blocks(self) -> AsyncGenerator[list[Buffer], None]:
        """Yield the bytes, in blocks; a block's buffers are good until the next one is asked for.

        Raises:
            UpstreamError: the CAS or the data host fails for good.
            IntegrityError: the data is not what was promised.
        """
        budget = self._table.budget
        budget.open_reader()
        self._traffic = self._table.get_traffic(self._file_hash)
        self._traffic.add_reader(self._position)
        last = time.monotonic()
        self._stall_deadline.renew(last)
        self._planner = Planner(
            self._ask,
            self._pacer,
            self._traffic,
            self._kept,
            start=self._start,
            end=self._end,
            wants_more=self._wants_more,
            add_window=self._add_window,
        )
        planning = self._planning = asyncio.get_running_loop().create_task(
            self._plan_windows(self._planner)
        )
        try:
            await self._verifier.prepare()  # while the first window is planned
            self._prepared.set()
            while (window := await self._next_window()) is not None:
                async with aclosing(self._read_window(window)) as blocks:
                    async for block in blocks:
                        block.settle()
                        if not block.size:
                            block.release()
                            continue
                        await self._verifier.pass_on(self._size)
                        self._pump()
                        before = time.monotonic()
                        budget.take(block.decoded_size)  # slabs count already
                        try:
                            yield block.buffers
                        finally:
                            budget.give(block.decoded_size)
                        block.release()
                        now = time.monotonic()
                        self._pacer.note_block(block.size, now - before, now - last)
                        self._stall_deadline.renew(now)
                        last = now
                is_stored = self._table.source.keeps_data and self.tally.upstream_bytes > 0
                self._pacer.note_window(
                    window.plan.file_range.size,
                    budget.share,
                    self._table.host_speed,
                    may_be_large=self._traffic.is_alone and not is_stored,
                )
                self._windows.popleft()
                self._move_to(window.plan.file_range.end)
                self._kept.reuse.forget(window.plan.file_range.end)
                self._close_window(window)
                self._pump()
            if self._is_whole and not self.is_verified:
                await self._verifier.finish(self._size)
        except (IntegrityError, FormatError):
            INTEGRITY_FAILURES.add()
            if self._verifier.is_in_doubt:
                self._verifier.note_cut()
            suspects = self._verifier.fail()
            for xorb_hash, chunks in suspects.items():
                self._table.source.forget(xorb_hash, chunks)
            raise
        finally:
            self._verifier.settle()
            # All is given back here and now; what is awaited afterwards is only that tasks have
            # ended.
            budget.close_reader()
            self._traffic.remove_reader(self._position)
            planning.cancel()
            self._kept.close()
            fetches = {lease.fetch for window in self._windows for lease in window.leases}
            while self._windows:
                self._close_window(self._windows.popleft())
            self._table.forget_traffic(self._file_hash)
            await asyncio.wait((planning,))
            for fetch in fetches:
                if fetch.is_closed:
                    await fetch.wait_closed()

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

    # Reading.

    @property
    def is_verified(self) -> bool:
        """Whether all that was read is the file's; known once the last block is given out."""
        return self._verifier.is_verified

    async def _next_window(self) -> Window | None:
        """Wait for the next window; None: there is none."""
        await self._wait_for_windows(1)
        return self._windows[0] if self._windows else None

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

    async def _read_window(self, window: Window) -> AsyncGenerator[Block, None]:
        """Yield the window's bytes; whoever takes a block settles and releases it."""
        plan = window.plan
        skip, left = plan.skip, plan.file_range.size
        position = plan.file_range.start - skip
        block = Block()
        for piece in plan.pieces:
            lease = None if piece.step is None else window.leases[piece.step]
            total, last = 0, piece.chunks.end - 1
            self._verifier.note_chunks(piece.xorb_hash, piece.chunks)
            for chunk in range(piece.chunks.start, piece.chunks.end):
                if lease is not None and not lease.fetch.has(chunk):
                    if block.size:
                        yield block
                        block = Block()
                    await self._wait_for_chunk(lease, chunk)
                if lease is None:
                    data, chunk_hash = self._take_kept(piece.xorb_hash, chunk, position)
                    length = len(data)
                elif skip or not left:
                    data, chunk_hash, length = await self._look_at(lease, chunk, position, skip)
                else:
                    data, chunk_hash = await self._take(lease, chunk, position)
                    length = len(data)
                start = position
                position += length
                total += length
                if total > piece.decoded_size or (chunk == last and total < piece.decoded_size):
                    raise IntegrityError(
                        f"a term of {total} decoded bytes, expected {piece.decoded_size}"
                    )
                if not left or (skip and skip >= length):
                    skip -= min(skip, length)
                    if lease is not None:
                        lease.release(chunk)
                    continue
                if self._is_whole and skip:
                    raise IntegrityError(f"a window starts {skip} bytes into a chunk")
                self._note(piece.xorb_hash, chunk, start, data, chunk_hash, lease)
                is_lent = isinstance(data, memoryview)
                if skip or length > left:
                    data = memoryview(data)[skip : skip + left]
                    skip, length = 0, len(data)
                left -= length
                block.add(data, length, lease, chunk, is_lent=is_lent)
                if block.size >= self._pacer.block_size and left:
                    yield block
                    block = Block()
        if left:
            raise IntegrityError(f"a window is {left} bytes short")
        if await self._is_last(window):
            # Before the last bytes leave: a damaged file must not look complete.
            await self._verifier.finish(self._size)
        yield block

    async def _look_at(
        self, lease: Lease, chunk: int, position: int, skip: int
    ) -> tuple[Buffer, bytes, int]:
        """Return a chunk before or behind what is wanted, and its decoded size; its bytes only if
        some are wanted.

        Args:
            skip: decoded bytes before those that are wanted; 0: they are all behind us.
        """
        if (
            not lease.fetch.is_proven
        ):  # so it was looked over, and its header is good without the payload
            length = lease.fetch.get_header(chunk).decoded_size
            if not skip or skip >= length:
                return b"", b"", length
        data, chunk_hash = await self._take(lease, chunk, position)
        return data, chunk_hash, len(data)

    def _take_kept(self, xorb_hash: bytes, chunk: int, position: int) -> tuple[Buffer, bytes]:
        """Decode a chunk that was kept; it was hashed when it came first.

        Raises:
            IntegrityError: it does not belong here.
        """
        record, chunk_hash = self._kept.get((xorb_hash, chunk))
        if self._verifier.contradicts(position, record.header.decoded_size, chunk_hash):
            raise IntegrityError(f"chunk {chunk} is not the file's at byte {position}")
        return record.decode(), chunk_hash

    def _decode(self, lease: Lease, chunk: int, position: int) -> tuple[Buffer, bytes]:
        """Decode and hash a chunk that is here.

        Raises:
            FormatError, IntegrityError: it is damaged.
        """
        fetch = lease.fetch
        data = fetch.decode(chunk)
        chunk_hash = fetch.get_hash(chunk, data)
        if self._verifier.contradicts(position, len(data), chunk_hash):
            raise IntegrityError(f"chunk {chunk} is not the file's")
        return data, chunk_hash

    async def _take(self, lease: Lease, chunk: int, position: int) -> tuple[Buffer, bytes]:
        """Decode and hash a chunk that is here; one that is damaged is fetched again a few
        times.
        """
        num_rejects = 0
        while True:
            try:
                return self._decode(lease, chunk, position)
            except (FormatError, IntegrityError) as exc:
                if num_rejects == MAX_REJECTS:
                    raise
                num_rejects += 1
                self._table.source.forget(lease.fetch.xorb_hash, ChunkRange(chunk, chunk + 1))
                lease.fetch.reject(chunk, exc)
            await self._stall_deadline.wait(lease.fetch.wait(chunk))

    def _note(
        self,
        xorb_hash: bytes,
        chunk: int,
        position: int,
        data: Buffer,
        chunk_hash: bytes,
        lease: Lease | None,
    ) -> None:
        """Take in a chunk that is the file's; keep it if the file comes back to it.

        Args:
            lease: of the fetch that it came from; None: it was kept before.
        """
        size = len(data)
        self._verifier.add(position, size, chunk_hash)
        if lease is not None:
            self._verifier.add_origin(lease.fetch.get_origin(chunk), chunk)
        self._kept.cursor = (position + size, chunk + 1)
        reuse = self._kept.reuse
        if reuse.is_empty:
            return
        key = (xorb_hash, chunk)
        reuse.record_size(key, size)
        if not reuse.stays(key, position):
            self._kept.drop(key)
        elif lease is not None and not self._kept.has(key):
            kept = lease.fetch.copy_record(chunk) or make_raw_record(data)
            self._kept.put(key, KeptChunk(kept, chunk_hash))

    async def _wait_for_chunk(self, lease: Lease, chunk: int) -> None:
        if not lease.fetch.is_started:
            lease.fetch.start(self._pacer.hold_limit, streams=True, must=True)
        self._pump()
        await self._stall_deadline.wait(lease.fetch.wait(chunk))

    # Looking ahead.

    def _pump(self) -> None:
        """Start, in file order, the fetches ahead that the pace asks for and the budget allows.

        Called before every wait, for the client or for the upstream: what the last block has freed
        is used then, so nobody needs to be called back when it is freed.
        """
        self._planner.wake()
        pacer = self._pacer
        room = min(max(pacer.hold_limit, pacer.ahead_limit), self._table.budget.share)
        to_come = 0  # bytes, of those that are started
        for window in self._windows:
            for lease in window.leases:
                fetch = lease.fetch
                if fetch.is_started:
                    fetch.fit(room)
                elif not fetch.start(room, streams=to_come < pacer.early_limit):
                    return
                room = max(0, room - fetch.granted)
                to_come += fetch.num_left

    def _wants_more(self, asking: int) -> bool:
        """Return whether to plan further, when so many decoded bytes are being asked for."""
        if len(self._windows) + bool(asking) < WINDOWS_AHEAD:
            return True
        if sum(len(window.plan.pieces) for window in self._windows) >= MAX_PIECES:
            return False
        planned = sum(window.plan.file_range.size for window in self._windows)
        return planned + asking < 2 * max(self._pacer.hold_limit, self._pacer.ahead_limit)

    async def _plan_windows(self, planner: Planner) -> None:
        try:
            await planner.run()
        except Exception as exc:  # noqa: BLE001 - it is the reader's to see, once it gets there
            self._plan_error = exc
        wake(self._change)

    async def _ask(self, asked: ByteRange) -> Reconstruction:
        source = self._table.source
        answer = await source.fetch_reconstruction(self._access, self._file_hash, asked)
        await self._prepared.wait()  # what may be taken from the cache depends on it
        if answer.is_imported and not (self._is_whole or self._verifier.is_proven):
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
                    is_proven=self._verifier.is_proven,
                    takes_imported=self._is_whole,
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
