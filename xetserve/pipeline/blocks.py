"""Blocks, the bytes of one write to a client, and the base class of the readers that make them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError, IntegrityError
from xetserve.metrics.catalogue import INTEGRITY_FAILURES
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.outage import Outage
from xetserve.pipeline.flow.pacing import Pacer
from xetserve.pipeline.flow.stall_deadline import StallDeadline
from xetserve.pipeline.tally import Tally

# Called when a reader is closed: where its bytes came from, and whether all of them were verified.
OnClose = Callable[[Tally, bool], None]


class Block:
    """The bytes of one write, and the chunks that are released after it.

    size: bytes in all.
    decoded_size: bytes in buffers of their own, not in slabs.
    """

    __slots__ = ("_lent", "_used", "buffers", "decoded_size", "size")

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.size = 0
        self.decoded_size = 0
        self._used: list[_LeaseRun] = []
        self._lent: list[_LeaseRun] = []  # in the slabs until the block has left

    def add(
        self, data: Buffer, size: int, lease: Lease | None, chunk: int, *, is_lent: bool
    ) -> None:
        """Add a chunk, or a part of one; is_lent: data points into the fetch's slab."""
        self.buffers.append(data)
        self.size += size
        if not is_lent:
            self.decoded_size += size
        if lease is not None:
            runs = self._lent if is_lent else self._used
            if runs and runs[-1].lease is lease and runs[-1].end == chunk:
                runs[-1].end += 1
            else:
                runs.append(_LeaseRun(lease, chunk))

    def add_records(self, data: memoryview, lease: Lease, start: int, end: int) -> None:
        """Add the records of the chunks [start, end), which lie in the fetch's slab."""
        self.buffers.append(data)
        self.size += len(data)
        run = _LeaseRun(lease, start)
        run.end = end
        self._lent.append(run)

    def settle(self) -> None:
        """Release the packed chunks that the block holds decoded."""
        _release(self._used)

    def release(self) -> None:
        """Release the other chunks, after the block was sent."""
        _release(self._lent)


class _LeaseRun:
    """Chunks of one fetch that follow each other."""

    __slots__ = ("end", "lease", "start")

    def __init__(self, lease: Lease, chunk: int) -> None:
        self.lease = lease
        self.start = chunk
        self.end = chunk + 1


def _release(runs: list[_LeaseRun]) -> None:
    for run in runs:
        run.lease.release_run(run.start, run.end)
    runs.clear()


class BlockReader(ABC):
    """A body: an iterator that makes the next block when the previous one was sent.

    A block's buffers are valid until the next block is requested. The reader releases what it holds
    at the end, on a failure, or in aclose, whichever comes first.

        start()      opens the reader and makes the first block
        anext()      returns the first block
        anext()      releases the first block, makes and returns the second one
        ...
        aclose()

    Args:
        gap_timeout: seconds without the first block, retries included, before the read fails.
        outage_patience: seconds without a later block, if that is more.
        max_hold: see Pacer.

    tally: counts the bytes by where they came from.
    outage: the failures of the upstreams of this reader.
    """

    def __init__(
        self,
        budget: ByteBudget,
        gap_timeout: float,
        outage_patience: float,
        on_close: OnClose | None,
        max_hold: int | None = None,
    ) -> None:
        self.tally = Tally()
        self._budget = budget
        self._pacer = Pacer(max_hold)
        self._stall_deadline = StallDeadline(gap_timeout, outage_patience, self._pacer)
        self.outage = Outage(self._get_patience)
        self._on_close = on_close
        self._is_started = False
        self._is_open = False  # whether it holds anything
        self._block: Block | None = None  # the one that waits, or that the client has
        self._is_waiting = False  # whether the client does not have it yet
        self._has_begun = False  # whether the client has the head, or is about to get it
        self._made = 0.0  # when it was made, seconds of the monotonic clock
        self._taken = 0.0  # when the one before it had been taken

    @property
    @abstractmethod
    def is_verified(self) -> bool:
        """Whether all that was read is the file's; known once the last block is given out."""

    def _get_patience(self) -> float:
        """Return for how many seconds a failure of the upstream may still be retried; 0 until the
        body has begun, because the client waits for the head.
        """
        if not self._has_begun:
            return 0.0
        now = time.monotonic()
        if self._block is not None:
            self._stall_deadline.renew(now)  # nobody waits for the upstream
        return max(0.0, self._stall_deadline.get_left(now))

    def __aiter__(self) -> Self:
        return self

    async def start(self, *, has_begun: bool = False) -> None:
        """Make the first block, which is returned by the first anext.

        Args:
            has_begun: the client has the head, and other parts of the body.

        Raises:
            UpstreamError, IntegrityError: as anext.
        """
        self._is_started = self._is_open = True
        self._taken = time.monotonic()
        if has_begun:
            self._begin_body()
        self._stall_deadline.renew(self._taken)
        self._budget.open_reader()
        await self._advance(opens=True)

    async def __anext__(self) -> list[Buffer]:
        """Return the next block; start the reader first if that was not done.

        Raises:
            UpstreamError: the CAS or the data host failed, and no retry is left.
            IntegrityError, FormatError: the data is damaged, or not the file's.
        """
        if not self._is_started:
            await self.start()
        elif not self._is_waiting and self._block is not None:
            self._take_back(self._block)
            await self._advance()
        if self._block is None:
            raise StopAsyncIteration
        self._is_waiting = False
        return self._block.buffers

    async def aclose(self) -> None:
        """Release all that the reader holds. A second call does nothing."""
        self._is_started = True
        await self._give_back()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self.tally, self.is_verified)

    async def _advance(self, *, opens: bool = False) -> None:
        """Make the next block; after the last one, release all that the reader holds."""
        try:
            if opens:
                await self._open()
            block = await self._make_block()
        except BaseException as exc:
            if isinstance(exc, IntegrityError | FormatError):
                INTEGRITY_FAILURES.add()
                self._fail()
            await self._give_back()
            raise
        if block is None:
            await self._give_back()
            return
        self._budget.take(block.decoded_size)  # slabs count already
        self._block, self._is_waiting = block, True
        self._made = time.monotonic()
        self._begin_body()

    def _begin_body(self) -> None:
        self._has_begun = True
        self._stall_deadline.begin_body()

    def _take_back(self, block: Block) -> None:
        """Release a block that was sent, and record how fast the client took it."""
        self._block = None
        self._budget.give(block.decoded_size)
        block.release()
        now = time.monotonic()
        self._pacer.note_block(block.size, now - self._made, now - self._taken)
        self._stall_deadline.renew(now)
        self._taken = now

    async def _give_back(self) -> None:
        """Release all that the reader holds at once, then wait until its tasks have ended."""
        if not self._is_open:
            return
        self._is_open = False
        self._stall_deadline.close()
        self.outage.close()
        if self._block is not None:
            # Not released: the client may still have parts of it in its socket.
            self._budget.give(self._block.decoded_size)
            self._block = None
        self._budget.close_reader()
        await self._close()

    # What a reader is.

    @abstractmethod
    async def _open(self) -> None:
        """Acquire what the reader holds until its end."""

    @abstractmethod
    async def _make_block(self) -> Block | None:
        """Make and return the next block; None after the last one."""

    @abstractmethod
    def _fail(self) -> None:
        """Drop stored data that may be wrong, because the block being made was damaged."""

    @abstractmethod
    async def _close(self) -> None:
        """Release what _open and _make_block have acquired, before the first await; also after an
        _open that failed.
        """
