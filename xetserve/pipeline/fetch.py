"""Fetching one range of a xorb: packed chunk records, as they arrive, until everybody has used them.

Records are kept packed and decoded only when it is their turn: they are smaller so, and their size is known
before they are fetched. They lie in slabs; a slab is given back once no record in it is needed.

A fetch that has reserved all it will hold receives at full speed. One that has not (the budget is short, the client
slow, or the range huge) streams: it holds a couple of small slabs and waits for them to be used up.

Several responses can use one fetch; each does through a Ticket (see tickets.py). What one of them has decoded and hashed the
others take as it is. One that lags behind holds records back but never stops the others: whoever waits for the next
record is given room for it.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from xetserve.errors import FormatError, IntegrityError, UpstreamError, UrlExpired
from xetserve.metrics import EXPIRED_URLS, FETCH_WAITS, UPSTREAM_RETRIES
from xetserve.pipeline.budget import SLAB_SIZE, SMALL_SLAB_SIZE, ByteBudget
from xetserve.pipeline.pacing import FarSide
from xetserve.pipeline.plan import Step
from xetserve.pipeline.slabs import ArrivedChunk, ReceiveSlab
from xetserve.pipeline.source import CasSource, Tally
from xetserve.upstream.retry import RetryPolicy, RetryState
from xetserve.xet.compression import Buffer
from xetserve.xet.hashes import format_hash, hash_chunk
from xetserve.xet.reconstruction import FetchInfo
from xetserve.xet.xorb import (
    CHUNK_HEADER_SIZE,
    ChunkHeader,
    ChunkRecord,
    RecordReader,
    parse_chunk_header,
)

logger = logging.getLogger(__name__)

STREAM_GRANT: Final = 2 * SLAB_SIZE  # bytes that a streaming fetch holds
TIGHT_GRANT: Final = SMALL_SLAB_SIZE // 4  # and where there are hundreds: one record, mostly
MAX_REFRESHES: Final = 4  # fresh URLs in a row that may be refused
MAX_SHARED_DECODED: Final = 2 * 1024 * 1024  # decoded bytes that one fetch keeps for those behind


class User(Protocol):
    """Who uses a fetch."""

    tally: Tally
    is_packed: bool  # wants records as they are, decoded or not

    async def refresh(self, stale: FetchInfo) -> FetchInfo:
        """Give fetch info with a URL that is good, in place of one that has run out.

        Raises:
            UrlExpired: this user has none.
        """
        ...

    def on_change(self) -> None:
        """Hear that bytes were given back or that the fetch is complete."""
        ...


class _Stopwatch:
    """Times one fetch for the far side's record. Times are of one steady clock, in seconds."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first_byte = 0.0
        self._size = 0  # bytes after the first read

    def note_bytes(self, count: int) -> None:
        """Count bytes that came now."""
        if self._first_byte:
            self._size += count
        else:
            self._first_byte = time.monotonic()

    def tell(self, far_side: FarSide) -> None:
        """Report a fetch that is complete."""
        now = time.monotonic()
        latency = self._first_byte - self._started
        far_side.note_fetch(latency, self._size, now - self._first_byte)


class Fetch:
    """One fetch range while it is fetched and used.

    Args:
        step: which; its uses are not looked at, users bring their own.
        stall_timeout: seconds without a byte after which a connection is given up.
        is_awaited: tells whether others will come for what its users have used up.
        far_side: is told how long things took.
        is_proven: its users hold every chunk against the list of a proven file.
    """

    def __init__(
        self,
        step: Step,
        source: CasSource,
        budget: ByteBudget,
        *,
        policy: RetryPolicy,
        stall_timeout: float,
        is_awaited: Callable[[], bool],
        far_side: FarSide,
        is_proven: bool = False,
    ) -> None:
        self.xorb_hash = step.xorb_hash
        self.chunks = step.info.chunks
        self.size = step.info.byte_range.size  # packed bytes
        self.granted = 0  # bytes of the budget that it has now
        self._info = step.info
        self._source = source
        self._budget = budget
        self._policy = policy
        self._stall_timeout = stall_timeout
        self._is_awaited = is_awaited
        self._far_side = far_side
        self.is_proven = is_proven
        self._users: list[User] = []
        self._needed = [0] * (self.chunks.end - self.chunks.start)  # uses to come, by chunk
        self._entries: dict[int, ArrivedChunk] = {}
        self._next_chunk = self.chunks.start  # the first chunk that has never arrived
        self._rejected: set[int] = set()  # chunks that arrived damaged
        self._left = self.size  # bytes that have not arrived
        self._open_space = 0  # bytes that the slab being received into can still take
        self._held = 0  # bytes in slabs
        self._decoded_held = 0  # bytes decoded and kept
        self._was_stored = False  # whether what came last came from a store
        self._was_paused = False  # whether the attempt under way has had to wait for room
        self._is_full = False  # room for all of it has been granted: never wait for any
        self._reach = 0  # bytes that its fastest user would hold
        self._waiters: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self.is_closed = False

    def __repr__(self) -> str:
        return (
            f"<Fetch {format_hash(self.xorb_hash)[:8]} at chunk {self._next_chunk} of "
            f"{self.chunks.start}..{self.chunks.end}, {len(self._users)} users, "
            f"held {self._held} of {self.granted}>"
        )

    # Users come and go.

    def can_serve(
        self, uses: tuple[int, ...], *, is_packed: bool = False, is_proven: bool = False
    ) -> bool:
        """Tell whether every chunk with uses is still here or to come.

        Args:
            is_packed: and is as it was packed.
            is_proven: as for Fetch; whoever cannot say so needs what was looked over.
        """
        if self.is_closed or self._error is not None or (self.is_proven and not is_proven):
            return False
        return all(
            not count or chunk >= self._next_chunk or self._has_kept(chunk, is_packed=is_packed)
            for chunk, count in enumerate(uses, self.chunks.start)
        )

    def _has_kept(self, chunk: int, *, is_packed: bool) -> bool:
        entry = self._entries.get(chunk)
        return entry is not None and not (is_packed and entry.slab is None)

    def add_user(self, user: User, uses: tuple[int, ...]) -> None:
        """Keep chunks for one more user, as often as it needs each of them."""
        self._users.append(user)
        for at, count in enumerate(uses):
            self._needed[at] += count

    @property
    def is_used(self) -> bool:
        """Whether it has users."""
        return bool(self._users)

    @property
    def is_complete(self) -> bool:
        """Whether all of it has arrived."""
        return self._task is not None and self._task.done() and self._error is None

    def remove_user(self, user: User, uses: list[int]) -> None:
        """Let a user go, with the uses that it will not make. Without users it should be closed."""
        self._users.remove(user)
        for chunk, count in enumerate(uses, self.chunks.start):
            if count:
                entry = self._entries.get(chunk)
                if entry is not None and entry.slab is not None:
                    entry.slab.is_lent = True
                self._needed[chunk - self.chunks.start] -= count
                if not (self._needed[chunk - self.chunks.start] or self._is_awaited()):
                    self._drop(chunk)

    def close(self) -> None:
        """Stop, and give everything back at once."""
        self.is_closed = True
        if self._task is not None:
            self._task.cancel()
        self._entries.clear()
        self._budget.give(self.granted)
        self.granted = self._held = self._decoded_held = 0

    async def wait_closed(self) -> None:
        """Wait until its task has ended."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    # Starting.

    @property
    def is_started(self) -> bool:
        """Whether it has been started."""
        return self._task is not None

    @property
    def num_left(self) -> int:
        """Bytes that have not arrived."""
        return self._left

    def start(self, room: int, *, streams: bool = False, must: bool = False) -> bool:
        """Start if all of the range fits into room bytes and into the budget.

        Args:
            streams: without room, start streaming, which takes less of the budget.
            must: even if the budget has nothing left.
        """
        if self._task is not None:
            return True
        self._reach = room
        if self.size <= room and self._budget.try_take(self.size):
            self.granted = self.size
            self._is_full = True
        else:
            grant = min(self.size, self._stream_grant)
            if must:
                self._budget.take(grant)
            elif not (streams and self._budget.try_take(grant)):
                return False
            self.granted = grant
        self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    def fit(self, room: int) -> None:
        """Let a running fetch receive at full speed if it fits into room bytes by now, or else stream."""
        self._reach = room if len(self._users) == 1 else max(room, self._reach)
        if not self._left or self._is_full == (self.size <= room):
            return
        if self._is_full:
            if len(self._users) == 1:  # others may have more room
                self._is_full = False
                self._give_excess()
            return
        more = max(0, self._wanted - self.granted)
        if self._budget.try_take(more):
            self.granted += more
            self._is_full = True
            _wake(self._room)

    # Using.

    def has(self, chunk: int) -> bool:
        """Tell whether a chunk is here."""
        return chunk in self._entries

    async def wait(self, chunk: int) -> None:
        """Wait for a chunk.

        Raises:
            UpstreamError: it cannot be had.
            IntegrityError: the fetch range does not hold it.
        """
        while chunk not in self._entries:
            if self._error is not None:
                raise self._error
            if self._task is None or self._task.done():
                raise IntegrityError(f"chunk {chunk} is missing from its fetch range")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            _wake(self._room)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def get_header(self, chunk: int) -> ChunkHeader:
        """Give the header of a chunk that is here."""
        return self._entries[chunk].record.header

    def decode(self, chunk: int) -> Buffer:
        """Give the decoded bytes of a chunk that is here.

        A memoryview lies in a slab: it is good until the chunk is released. Other results stay.

        Raises:
            FormatError: the payload is damaged.
        """
        entry = self._entries[chunk]
        if entry.decoded is not None:
            return entry.decoded
        data = entry.record.decode()
        is_wanted_again = self._needed[chunk - self.chunks.start] > 1
        if is_wanted_again and not isinstance(data, memoryview):
            self._keep_decoded(entry, data)
        return data

    def _keep_decoded(self, entry: ArrivedChunk, data: Buffer) -> None:
        if self._decoded_held + len(data) > MAX_SHARED_DECODED or entry.slab is None:
            return
        if any(user.is_packed for user in self._users):
            return
        self._decoded_held += len(data)
        self._budget.take(len(data))
        self.granted += len(data)
        entry.decoded = data
        slab, entry.slab = entry.slab, None
        self._leave_slab(slab)

    def copy_record(self, chunk: int) -> ChunkRecord | None:
        """Give a copy of a chunk's record; None if it was decoded for several users, and the record is gone."""
        entry = self._entries[chunk]
        if entry.slab is None:
            return None
        return ChunkRecord(entry.record.header, memoryview(bytes(entry.record.payload)))

    def get_record(self, chunk: int) -> ChunkRecord:
        """Give a chunk's record, for a packed user; it lies in a slab, and is good until the chunk is released."""
        return self._entries[chunk].record

    def get_known_hash(self, chunk: int) -> bytes | None:
        """Give the chunk hash if somebody has decoded and hashed the chunk already."""
        return self._entries[chunk].chunk_hash

    def get_hash(self, chunk: int, data: Buffer) -> bytes:
        """Give the chunk hash of decoded bytes that decode gave."""
        entry = self._entries[chunk]
        if entry.chunk_hash is None:
            entry.chunk_hash = hash_chunk(data)
        return entry.chunk_hash

    def release(self, start: int, end: int) -> None:
        """Tell that chunks that follow each other were used once."""
        needed, first = self._needed, self.chunks.start
        unneeded = []
        for chunk in range(start, end):
            needed[chunk - first] -= 1
            if not needed[chunk - first]:
                unneeded.append(chunk)
        if unneeded and not self._is_awaited():
            for chunk in unneeded:
                self._drop(chunk)

    def _drop(self, chunk: int) -> None:
        """Let a chunk go that nobody needs any more."""
        entry = self._entries.pop(chunk, None)
        if entry is None:
            return  # it has not come yet, and will not be kept
        if entry.decoded is not None:
            self._decoded_held -= len(entry.decoded)
            self._give_excess()
        if entry.slab is not None:
            self._leave_slab(entry.slab)

    def reject(self, chunk: int, error: FormatError | IntegrityError) -> None:
        """Fetch a chunk again, whose payload does not decode, or to something else."""
        if self._task is not None:
            self._task.cancel()
        entry = self._entries.pop(chunk)
        if entry.decoded is not None:
            self._decoded_held -= len(entry.decoded)
        if entry.slab is not None:
            self._leave_slab(entry.slab)
        self._rejected.add(chunk)
        self._left = self.size
        self._task = asyncio.get_running_loop().create_task(self._run(error))

    # Fetching.

    async def _run(self, error: UpstreamError | FormatError | IntegrityError | None = None) -> None:
        """Fetch, again where it may help; error: what went wrong before this task."""
        try:
            await self._fetch_until_complete(error)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the users' to see
            self._error = exc
        self._wake_waiters()
        self._tell_users()

    async def _fetch_until_complete(
        self, error: UpstreamError | FormatError | IntegrityError | None
    ) -> None:
        state = RetryState(self._policy, time.monotonic())
        num_refreshes = 0
        while True:
            reached = self._next_chunk
            if error is None:
                try:
                    return await self._attempt()
                except (UpstreamError, FormatError) as exc:
                    error = exc
                    if self._was_stored and isinstance(exc, FormatError):
                        self._source.forget(self.xorb_hash, self.chunks)
            if self._next_chunk > reached:
                state.note_progress(time.monotonic())
                num_refreshes = 0
            if isinstance(error, UrlExpired) and num_refreshes < MAX_REFRESHES:
                num_refreshes += 1
                EXPIRED_URLS.add()
                self._info = await self._refresh(error)
            else:
                cause = error
                if not isinstance(cause, UpstreamError):
                    cause = UpstreamError(f"the data host sent damaged data: {cause}")
                delay = state.next_delay(cause, time.monotonic())
                if delay is None:
                    raise cause
                UPSTREAM_RETRIES.add("data", type(error).__name__)
                logger.info("fetching chunk %d.. again: %s", self._next_chunk, error)
                await asyncio.sleep(delay)
            error = None

    async def _refresh(self, error: UrlExpired) -> FetchInfo:
        """Get a good URL from whichever user has one."""
        for user in list(self._users):
            try:
                return await user.refresh(self._info)
            except UrlExpired:
                continue
        raise error

    async def _attempt(self) -> None:
        """Read the range once from its start, keeping the chunks that have not arrived before."""
        slab: ReceiveSlab | None = None
        watch = _Stopwatch(time.monotonic())
        self._was_paused = False
        try:
            async with self._source.open_data(
                self.xorb_hash, self._info, is_proven=self.is_proven
            ) as response:
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
                        # The one copy of packed bytes: a record must not be cut by the end of a slab.
                        rest = filled - start
                        slab.view[:rest] = old.view[start:filled]
                        reader.move_to(0)
                        filled = rest
                        self._close_slab(old)
                        del old  # this frame may wait for long
                    count = await response.receive_into(
                        slab.view[filled : filled + self._left], self._stall_timeout
                    )
                    if not count:
                        raise UpstreamError(f"the data host sent {self._left} bytes too few")
                    watch.note_bytes(count)
                    self._count_bytes(count, response.is_stored, is_first=self._left == self.size)
                    filled += count
                    self._left -= count
                    self._open_space = len(slab.view) - filled
                    records = list(reader.scan(slab.view, filled))
                    for number, record in enumerate(records, chunk):
                        self._take_record(number, record, slab)
                    if records:
                        chunk += len(records)
                        self._wake_waiters()
                        del records, record  # this frame may wait for long, and slabs are reused
                if not self._was_paused:
                    watch.tell(self._far_side)
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

    def _count_bytes(self, count: int, is_stored: bool, *, is_first: bool) -> None:
        """Count bytes that came, for the response that has wanted them longest."""
        self._was_stored = is_stored
        tally = self._users[0].tally if self._users else Tally()
        if is_stored:
            tally.cache_bytes += count
            tally.cache_hits += is_first
        else:
            tally.upstream_bytes += count

    def _take_record(self, chunk: int, record: ChunkRecord, slab: ReceiveSlab) -> None:
        """Keep a chunk, if it is needed and was not here before."""
        if chunk == self._next_chunk and chunk < self.chunks.end:
            self._next_chunk += 1
        elif chunk not in self._rejected:
            return
        self._rejected.discard(chunk)
        if self._needed[chunk - self.chunks.start]:
            slab.num_needed += 1
            self._entries[chunk] = ArrivedChunk(record, slab)

    async def _open_slab(self, at_least: int) -> ReceiveSlab:
        """Get a buffer for what is still to come, once there is room for it."""
        grant = self._stream_grant
        # Of few sizes: slabs are recycled.
        size = SLAB_SIZE if self._is_full or grant >= STREAM_GRANT else min(SMALL_SLAB_SIZE, grant)
        size = max(at_least, min(size, at_least + self._left))
        while not (self._waiters or self._is_full or self._held + size <= self.granted):
            self._was_paused = True
            FETCH_WAITS.add()
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
        self._held += size
        more = self._held + self._decoded_held - self.granted
        if more > 0:
            self._budget.take(more)
            self.granted += more
        return ReceiveSlab(self._budget.make_slab(size))

    def _close_slab(self, slab: ReceiveSlab) -> None:
        """Receive no more into a slab."""
        slab.is_open = False
        if not slab.num_needed and not self.is_closed:
            self._free_slab(slab)

    def _leave_slab(self, slab: ReceiveSlab) -> None:
        """Need one record of a slab no more."""
        slab.num_needed -= 1
        if not slab.num_needed and not slab.is_open:
            self._free_slab(slab)

    def _free_slab(self, slab: ReceiveSlab) -> None:
        """Give back a slab; released records are not even in a client's socket any more."""
        self._held -= len(slab.buffer)
        if not slab.is_lent:
            self._budget.recycle(slab.buffer)
        self._give_excess()
        _wake(self._room)
        self._tell_users()

    @property
    def _wanted(self) -> int:
        """Bytes held once all of the range has arrived and none of it was used."""
        return self._held + self._decoded_held + max(0, self._left - self._open_space)

    @property
    def _stream_grant(self) -> int:
        """Bytes for a fetch that streams.

        Where there are many, most of the budget stays for those that do not; and a client has to show that it is fast.
        """
        return min(max(TIGHT_GRANT, min(self._budget.share, self._reach) // 4), STREAM_GRANT)

    def _give_excess(self) -> None:
        """Give back what this fetch will not need again."""
        wanted = self._wanted
        if not self._is_full:
            wanted = min(wanted, max(self._held + self._decoded_held, self._stream_grant))
        if self.granted > wanted:
            self._budget.give(self.granted - wanted)
            self.granted = wanted

    def _tell_users(self) -> None:
        for user in self._users:
            user.on_change()

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            _wake(waiter)


def _size_of_record(view: memoryview, position: int, filled: int) -> int:
    """Give the size of the record at position, or of its header as long as that is incomplete."""
    if filled - position < CHUNK_HEADER_SIZE:
        return CHUNK_HEADER_SIZE
    return parse_chunk_header(view, position).record_size


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
