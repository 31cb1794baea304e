"""Fetching one range of a xorb: packed chunk records, as they arrive, until the last piece has used them.

Records are kept packed and decoded only when it is their turn: they are smaller so, and their size is known
before they are fetched. They lie in slabs; a slab is given back once no record in it is needed.

A fetch that has reserved all it will hold receives at full speed. One that has not (the budget is short, or the
range is huge) streams: it holds a couple of small slabs and waits for the consumer to use them up.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from xetserve.errors import FormatError, IntegrityError, UpstreamError, UrlExpired
from xetserve.metrics import EXPIRED_URLS, UPSTREAM_BYTES, UPSTREAM_RETRIES
from xetserve.pipeline.budget import SLAB_SIZE, SMALL_SLAB_SIZE, Account
from xetserve.pipeline.plan import Step
from xetserve.pipeline.source import CasSource
from xetserve.upstream.retry import RetryPolicy, RetryState
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import FetchInfo
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, ChunkRecord, RecordReader, parse_chunk_header

logger = logging.getLogger(__name__)

STREAM_GRANT: Final = 2 * SMALL_SLAB_SIZE  # bytes that a streaming fetch holds
MAX_REFRESHES: Final = 4  # fresh URLs in a row that may be refused


class _Slab:
    """A receive buffer and the number of records in it that are still needed."""

    __slots__ = ("buffer", "is_open", "num_needed", "view")

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.num_needed = 0
        self.is_open = True  # still being received into


class Fetch:
    """One step of a window while it is fetched and used.

    Args:
        refresh: gives new fetch info for the step once its URL has run out.
        stall_timeout: seconds without a byte after which a connection is given up.
        on_change: called when bytes were given back or the fetch is complete.
    """

    def __init__(
        self,
        step: Step,
        cas: CasSource,
        account: Account,
        *,
        refresh: Callable[[FetchInfo], Awaitable[FetchInfo]],
        policy: RetryPolicy,
        stall_timeout: float,
        on_change: Callable[[], None],
    ) -> None:
        self.step = step
        self._cas = cas
        self._account = account
        self._refresh = refresh
        self._policy = policy
        self._stall_timeout = stall_timeout
        self._on_change = on_change
        self._info = step.info
        self._uses = list(step.uses)
        self._records: dict[int, tuple[ChunkRecord, _Slab]] = {}
        self._next_chunk = step.info.chunks.start  # the first chunk that has not arrived
        self._left = step.info.byte_range.size  # bytes that have not arrived
        self._open_space = 0  # bytes that the slab being received into can still take
        self._held = 0
        self._granted = 0
        self._is_full = False  # room for all of it has been granted: never wait for any
        self._is_urgent = False  # the consumer waits for the next record
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return (
            f"<Fetch {format_hash(self.step.xorb_hash)[:8]} chunk {self._next_chunk} "
            f"of {self.step.info.chunks}, held {self._held} of {self._granted}>"
        )

    @property
    def size(self) -> int:
        """Packed bytes of the range."""
        return self.step.info.byte_range.size

    @property
    def is_started(self) -> bool:
        """Whether it has been started."""
        return self._task is not None

    @property
    def granted(self) -> int:
        """Bytes of the account that it has now."""
        return self._granted

    def start(self, room: int, *, must: bool) -> bool:
        """Start if all of the range fits into room bytes and into the account.

        Args:
            must: start in any case; without room the range is streamed.
        """
        if self.size <= room and self._account.try_take(self.size):
            self._granted = self.size
            self._is_full = True
        elif must:
            self._granted = min(self.size, STREAM_GRANT)
            self._account.take(self._granted)
        else:
            return False
        self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    def fit(self, room: int) -> None:
        """Let a running fetch receive at full speed if it fits into room bytes by now, or else stream."""
        if not self._left or self._is_full == (self.size <= room):
            return
        if self._is_full:
            self._is_full = False
            self._give_excess()
        elif self._account.try_take(max(0, self._wanted - self._granted)):
            self._granted = max(self._granted, self._wanted)
            self._is_full = True
            _wake(self._room)

    @property
    def _wanted(self) -> int:
        """Bytes held once all of the range has arrived and none of it was used."""
        return self._held + max(0, self._left - self._open_space)

    def has(self, chunk: int) -> bool:
        """Tell whether a chunk's record is here."""
        return chunk in self._records

    def get(self, chunk: int) -> ChunkRecord:
        """Give a chunk's record; it stays valid until it is released as often as it is needed."""
        return self._records[chunk][0]

    async def wait(self, chunk: int) -> None:
        """Wait for a chunk's record.

        Raises:
            UpstreamError: it cannot be had.
            IntegrityError: the fetch range does not hold it.
        """
        self._is_urgent = True
        try:
            while chunk not in self._records:
                if self._error is not None:
                    raise self._error
                if self._task is None or self._task.done():
                    raise IntegrityError(f"chunk {chunk} is missing from its fetch range")
                _wake(self._room)
                self._arrival = asyncio.get_running_loop().create_future()
                await self._arrival
        finally:
            self._arrival = None
            self._is_urgent = False

    def release(self, chunk: int) -> None:
        """Tell that one of the pieces that need a chunk has used it."""
        at = chunk - self.step.info.chunks.start
        self._uses[at] -= 1
        if not self._uses[at]:
            _, slab = self._records.pop(chunk)
            slab.num_needed -= 1
            if not slab.num_needed and not slab.is_open:
                self._free_slab(slab)

    def reject(self, chunk: int, error: FormatError) -> None:
        """Fetch a chunk again, whose record does not decode, and what follows it."""
        if self._task is not None:
            self._task.cancel()
        for late in [known for known in self._records if known >= chunk]:
            _, slab = self._records.pop(late)
            slab.num_needed -= 1
            if not slab.num_needed and not slab.is_open:
                self._free_slab(slab)
        self._next_chunk = chunk
        self._left = self.size
        self._task = asyncio.get_running_loop().create_task(self._run(error))

    async def aclose(self) -> None:
        """Stop, and give everything back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._records.clear()
        self._account.give(self._granted)
        self._granted = self._held = 0

    async def _run(self, error: UpstreamError | FormatError | None = None) -> None:
        """Fetch, again where it may help; error: what went wrong before this task."""
        try:
            await self._fetch_until_complete(error)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the consumer's to see
            self._error = exc
        _wake(self._arrival)
        self._on_change()

    async def _fetch_until_complete(self, error: UpstreamError | FormatError | None) -> None:
        state = RetryState(self._policy, time.monotonic())
        num_refreshes = 0
        while True:
            reached = self._next_chunk
            if error is None:
                try:
                    return await self._attempt()
                except (UpstreamError, FormatError) as exc:
                    error = exc
            if self._next_chunk > reached:
                state.note_progress(time.monotonic())
                num_refreshes = 0
            if isinstance(error, UrlExpired) and num_refreshes < MAX_REFRESHES:
                num_refreshes += 1
                EXPIRED_URLS.add()
                self._info = await self._refresh(self._info)
            else:
                cause = error
                if isinstance(cause, FormatError):
                    cause = UpstreamError(f"the data host sent damaged data: {cause}")
                delay = state.next_delay(cause, time.monotonic())
                if delay is None:
                    raise cause
                UPSTREAM_RETRIES.add("data", type(error).__name__)
                logger.info("fetching chunk %d.. again: %s", self._next_chunk, error)
                await asyncio.sleep(delay)
            error = None

    async def _attempt(self) -> None:
        """Read the range once from its start, keeping the records that have not arrived before."""
        slab: _Slab | None = None
        try:
            async with self._cas.open_data(self.step.xorb_hash, self._info) as response:
                self._left = self._info.byte_range.size
                chunk = self._info.chunks.start
                slab = await self._open_slab(0)
                reader = RecordReader()
                filled = 0
                while self._left:
                    needed = _size_of_record(slab.view, reader.position, filled)
                    if reader.position + needed > len(slab.view) or filled == len(slab.view):
                        old, start = slab, reader.position
                        slab = await self._open_slab(max(needed, filled - start))
                        rest = filled - start
                        slab.view[:rest] = old.view[start:filled]
                        reader.move_to(0)
                        filled = rest
                        self._close_slab(old)
                    count = await response.receive_into(
                        slab.view[filled : filled + self._left], self._stall_timeout
                    )
                    if not count:
                        raise UpstreamError(f"the data host sent {self._left} bytes too few")
                    UPSTREAM_BYTES.add(amount=count)
                    filled += count
                    self._left -= count
                    self._open_space = len(slab.view) - filled
                    for record in reader.scan(slab.view, filled):
                        self._take_record(chunk, record, slab)
                        chunk += 1
                if reader.position != filled or chunk != self._info.chunks.end:
                    raise FormatError(
                        f"{chunk - self._info.chunks.start} chunks in a range, expected "
                        f"{self._info.chunks.end - self._info.chunks.start}"
                    )
                # An answer of unknown length must end here, too.
                if await response.receive_into(memoryview(bytearray(1)), self._stall_timeout):
                    raise UpstreamError("the data host sent more than was asked for")
        finally:
            if slab is not None:
                self._close_slab(slab)

    def _take_record(self, chunk: int, record: ChunkRecord, slab: _Slab) -> None:
        if chunk != self._next_chunk:
            return  # before: it is here already. It cannot be after, chunks come in order.
        if chunk >= self.step.info.chunks.end:
            return
        self._next_chunk += 1
        if self._uses[chunk - self.step.info.chunks.start]:
            slab.num_needed += 1
            self._records[chunk] = (record, slab)
            if self._is_urgent:
                _wake(self._arrival)

    async def _open_slab(self, at_least: int) -> _Slab:
        """Get a buffer for what is still to come, once there is room for it."""
        size = SLAB_SIZE if self._is_full else SMALL_SLAB_SIZE
        size = max(at_least, min(size, at_least + self._left))
        while not (self._is_urgent or self._is_full or self._held + size <= self._granted):
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        self._held += size
        if self._held > self._granted:
            self._account.take(self._held - self._granted)
            self._granted = self._held
        return _Slab(self._account.budget.make_slab(size))

    def _close_slab(self, slab: _Slab) -> None:
        """Receive no more into a slab."""
        slab.is_open = False
        if not slab.num_needed:
            self._free_slab(slab)

    def _free_slab(self, slab: _Slab) -> None:
        """Give back a slab. Its records were released, so not even the client's socket holds them."""
        self._held -= len(slab.buffer)
        self._account.budget.recycle(slab.buffer)
        self._give_excess()
        _wake(self._room)
        self._on_change()

    def _give_excess(self) -> None:
        """Give back what this fetch will not need again."""
        wanted = self._wanted
        if not self._is_full:
            wanted = min(wanted, max(self._held, STREAM_GRANT))
        if self._granted > wanted:
            self._account.give(self._granted - wanted)
            self._granted = wanted


def _size_of_record(view: memoryview, position: int, filled: int) -> int:
    """Give the size of the record at position, or of its header as long as that is incomplete."""
    if filled - position < CHUNK_HEADER_SIZE:
        return CHUNK_HEADER_SIZE
    return parse_chunk_header(view, position).record_size


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
