"""Fetching one range of a xorb: packed chunk records, from their arrival to their last use.

Records stay packed until a response needs them decoded, because packed records are smaller and
their size is known before the fetch. Records lie in slabs. A slab is released when no response
needs a record in it.

Several responses can share a fetch, each through a Lease (leases.py). Each chunk is decoded and
hashed once for all of them. A slow response keeps records in memory, but never stops the others:
a response that waits for the next record always gets room for it.

HeldBuffers decides how much a fetch may hold, and whether it receives at full speed or streams. A
Receiver turns an answer into records, and ChunkWaiters are the tasks that wait for them.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError, IntegrityError, UpstreamError, UrlExpired
from xetserve.metrics.catalogue import EXPIRED_URLS, UPSTREAM_RETRIES
from xetserve.pipeline.fetch.buffers import ArrivedChunk
from xetserve.pipeline.fetch.chunk_waiters import ChunkWaiters
from xetserve.pipeline.fetch.held_buffers import HeldBuffers
from xetserve.pipeline.fetch.receive import Receiver
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.pacing import HostSpeed, Stopwatch
from xetserve.pipeline.flow.stall_deadline import StallDeadline
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.upstream.cas.source import CasSource, Provenance
from xetserve.upstream.retry import RetryPolicy, RetryState
from xetserve.xet.hashes import format_hash, hash_chunk
from xetserve.xet.reconstruction import FetchInfo
from xetserve.xet.xorb import ChunkHeader, ChunkRecord

logger = logging.getLogger(__name__)

MIN_RESUMED: Final = 4 * 1024 * 1024  # packed bytes; to fetch fewer again costs no question
MAX_REFRESHES: Final = 4  # fresh URLs in a row that may be refused
LONG_PAUSE: Final = 1.0  # seconds; others may use the room meanwhile
MAX_SHARED_DECODED: Final = 2 * 1024 * 1024  # decoded bytes that one fetch keeps for those behind


class User(Protocol):
    """A response that uses a fetch."""

    tally: Tally
    is_packed: bool  # wants records as they are, decoded or not

    async def resume(self, first: int) -> FetchInfo | None:
        """Return fetch info for the chunks from `first` on; None: this user cannot get one."""
        ...

    def get_patience(self) -> float:
        """Return for how many seconds this user would wait for the data."""
        ...

    def note_failure(self, error: Exception) -> None:
        """Record that a try of the fetch failed, and another one follows."""
        ...

    def note_success(self) -> None:
        """Record that the fetch has got bytes."""
        ...

    async def refresh(self, stale: FetchInfo) -> FetchInfo:
        """Return fetch info with a new URL, because the old one has expired.

        Raises:
            UrlExpired: this user cannot get one.
        """
        ...


class Fetch:
    """The fetch of one range, from its request until all its chunks are used.

    Args:
        step: the xorb and the range. Its uses are ignored, because each user has its own.
        stall_timeout: seconds without a byte after which a connection is given up.
        is_awaited: returns whether other responses will need chunks that all users have used.
        host_speed: the duration of the fetch is recorded there.
        is_proven: its users compare every chunk with the list of a proven file.
        takes_imported: its users succeed only if all data is proven; see CasSource.
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
        host_speed: HostSpeed,
        is_proven: bool = False,
        takes_imported: bool = False,
    ) -> None:
        self.xorb_hash = step.xorb_hash
        self.chunks = step.info.chunks
        self.size = step.info.byte_range.size  # packed bytes
        self._info = step.info
        self._source = source
        self._policy = policy
        self._stall_timeout = stall_timeout
        self._is_awaited = is_awaited
        self._host_speed = host_speed
        self.is_proven = is_proven
        self._takes_imported = takes_imported
        self._has_imported = False
        self._users: list[User] = []
        self._needed = [0] * (self.chunks.end - self.chunks.start)  # uses to come, by chunk
        self._entries: dict[int, ArrivedChunk] = {}
        self._next_chunk = self.chunks.start  # the first chunk that has never arrived
        self._rejected: set[int] = set()  # chunks that arrived damaged
        self._was_stored = False  # whether what came last came from a store
        self._is_failing = False  # whether the last try failed, and nothing came since
        self._waiters = ChunkWaiters()
        self._held_buffers = HeldBuffers(
            budget,
            self.size,
            is_hurried=lambda: bool(self._waiters),
        )
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self.is_closed = False

    def __repr__(self) -> str:
        return (
            f"<Fetch {format_hash(self.xorb_hash)[:8]} at chunk {self._next_chunk} of "
            f"{self.chunks.start}..{self.chunks.end}, {len(self._users)} users, "
            f"{self._held_buffers}>"
        )

    # Users come and go.

    def can_serve(
        self,
        uses: tuple[int, ...],
        *,
        is_packed: bool = False,
        is_proven: bool = False,
        takes_imported: bool = False,
    ) -> bool:
        """Return whether every chunk with uses is in memory or still to be received.

        Args:
            is_packed: the chunks are needed as packed records.
            is_proven, takes_imported: as for Fetch. A response without these properties cannot
                share a fetch that has them.
        """
        if self._has_imported and not takes_imported:
            return False
        if self.is_closed or self._error is not None or (self.is_proven and not is_proven):
            return False
        return all(
            not count or chunk >= self._next_chunk or self._has_kept(chunk, is_packed=is_packed)
            for chunk, count in enumerate(uses, self.chunks.start)
        )

    def _has_kept(self, chunk: int, *, is_packed: bool) -> bool:
        entry = self._entries.get(chunk)
        return entry is not None and not (is_packed and entry.slab is None)

    def add_user(self, user: User, uses: tuple[int, ...], *, takes_imported: bool = False) -> None:
        """Add a user, and keep each chunk until the user has used it as often as it needs."""
        if self._users or self._task is not None:
            self._log("shared with a response that came before")
        self._users.append(user)
        self._takes_imported = self._takes_imported and takes_imported
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
        """Remove a user, and the uses that it did not make. Close a fetch without users."""
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
        """Stop receiving, and return all memory to the budget at once."""
        self.is_closed = True
        if self._task is not None:
            self._task.cancel()
        self._entries.clear()
        self._held_buffers.close()

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
        return self._held_buffers.num_left

    @property
    def granted(self) -> int:
        """Bytes of the budget that the fetch has now."""
        return self._held_buffers.granted

    def start(self, room: int, *, streams: bool = False, must: bool = False) -> bool:
        """Start if all of the range fits into room bytes and into the budget.

        Args:
            streams: without room, start streaming, which takes less of the budget.
            must: even if the budget has nothing left.
        """
        if self._task is not None:
            return True
        if not self._held_buffers.reserve(room, streams=streams, must=must):
            return False
        self._task = asyncio.get_running_loop().create_task(self._run())
        return True

    def fit(self, room: int) -> None:
        """Let a running fetch receive at full speed if it fits into room bytes; else let it
        stream.
        """
        self._held_buffers.fit(room, is_shared=len(self._users) > 1)

    # Using.

    def has(self, chunk: int) -> bool:
        """Return whether a chunk is in memory."""
        return chunk in self._entries

    async def wait(self, chunk: int, deadline: StallDeadline | None = None) -> None:
        """Wait for a chunk.

        Raises:
            UpstreamTimeout: the deadline has passed.
            UpstreamError: the chunk cannot be received.
            IntegrityError: the fetch range does not hold it.
        """
        while chunk not in self._entries:
            if self._error is not None:
                raise self._error
            if self._task is None or self._task.done():
                raise IntegrityError(f"chunk {chunk} is missing from its fetch range")
            self._held_buffers.hurry()  # the next record gets room, since somebody waits
            await self._waiters.wait(deadline)

    def get_header(self, chunk: int) -> ChunkHeader:
        """Return the header of a chunk that is in memory."""
        return self._entries[chunk].record.header

    def decode(self, chunk: int) -> Buffer:
        """Return the decoded bytes of a chunk that is in memory.

        A memoryview points into a slab, and is valid until the chunk is released. Other results
        stay valid.

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
        if entry.slab is None or any(user.is_packed for user in self._users):
            return
        if not self._held_buffers.try_keep_decoded(len(data), MAX_SHARED_DECODED):
            return
        entry.decoded = data
        slab, entry.slab = entry.slab, None
        self._held_buffers.leave_slab(slab)

    def copy_record(self, chunk: int) -> ChunkRecord | None:
        """Return a copy of a chunk's record; None if the chunk was decoded for several users and
        the record was dropped.
        """
        entry = self._entries[chunk]
        if entry.slab is None:
            return None
        return ChunkRecord(entry.record.header, memoryview(bytes(entry.record.payload)))

    def find_records(self, chunk: int) -> tuple[memoryview, int, int]:
        """Return where the record of a chunk lies, with its header: a slab, start and end.

        It is valid until the chunk is released. Only for users that need packed records.
        """
        entry = self._entries[chunk]
        assert entry.slab is not None
        return entry.slab.view, entry.end - entry.record.header.record_size, entry.end

    def get_known_hash(self, chunk: int) -> bytes | None:
        """Return the chunk hash if a user has decoded and hashed the chunk already."""
        return self._entries[chunk].chunk_hash

    def get_hash(self, chunk: int, data: Buffer) -> bytes:
        """Return the chunk hash of the bytes that decode() returned."""
        entry = self._entries[chunk]
        if entry.chunk_hash is None:
            entry.chunk_hash = hash_chunk(data)
            if entry.origin is not None:
                entry.origin.note_hash(chunk, len(data), entry.chunk_hash)
        return entry.chunk_hash

    def get_origin(self, chunk: int) -> Provenance | None:
        """Return the copy in the store that a chunk was read from or written to."""
        return self._entries[chunk].origin

    def release(self, start: int, end: int) -> None:
        """Record that the chunks [start, end) were used once more."""
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
        """Drop a chunk that no user needs any more."""
        entry = self._entries.pop(chunk, None)
        if entry is None:
            return  # it has not come yet, and will not be kept
        self._let_go(entry)

    def _let_go(self, entry: ArrivedChunk) -> None:
        if entry.decoded is not None:
            self._held_buffers.drop_decoded(len(entry.decoded))
        if entry.slab is not None:
            self._held_buffers.leave_slab(entry.slab)

    def reject(self, chunk: int, error: FormatError | IntegrityError) -> None:
        """Fetch a chunk again, because its payload is damaged."""
        if self._task is not None:
            self._task.cancel()
        self._held_buffers.begin(self.size)
        self._let_go(self._entries.pop(chunk))
        self._rejected.add(chunk)
        self._task = asyncio.get_running_loop().create_task(self._run(error))

    # Fetching.

    async def _run(self, error: UpstreamError | FormatError | IntegrityError | None = None) -> None:
        """Receive the range, and retry failures that may pass.

        Args:
            error: the failure before this task; None: there was none.
        """
        try:
            await self._fetch_until_complete(error)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the users' to see
            self._error = exc
        self._waiters.wake_all()

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
                self._log("the data URL was refused, asking for another")
                try:
                    self._info = await self._refresh(error)
                    error = None
                    continue
                except UrlExpired:
                    raise
                except UpstreamError as exc:
                    error, num_refreshes = exc, 0
            await self._pause(state, error)
            await self._resume()
            error, num_refreshes = None, 0

    async def _pause(
        self, state: RetryState, error: UpstreamError | FormatError | IntegrityError
    ) -> None:
        """Wait before the next try.

        Raises:
            UpstreamError: no time is left for another try, or another try cannot succeed.
        """
        patience = max((user.get_patience() for user in self._users), default=0.0)
        cause = error
        if not isinstance(cause, UpstreamError):
            cause = UpstreamError(f"the data host sent damaged data: {cause}")
        elif isinstance(cause, UrlExpired) and patience:
            cause = UpstreamError(str(cause))  # while the CAS is gone, an old URL stands in
        delay = state.next_delay(cause, time.monotonic(), patience)
        if delay is None:
            raise cause
        UPSTREAM_RETRIES.add("data", type(error).__name__)
        self._log("chunk %d.. again in %.2f s: %s", self._next_chunk, delay, error)
        self._is_failing = True
        for user in self._users:
            user.note_failure(error)
        if delay >= LONG_PAUSE:
            self._held_buffers.lend()
        await asyncio.sleep(delay)

    async def _refresh(self, error: UrlExpired) -> FetchInfo:
        """Return fetch info with a new URL, from the first user that can get one."""
        for user in list(self._users):
            try:
                return await user.refresh(self._info)
            except UrlExpired:
                continue
        raise error

    async def _resume(self) -> None:
        """Continue at the first missing chunk, if that saves at least MIN_RESUMED bytes."""
        info, first = self._info, min(self._rejected | {self._next_chunk})
        done = (first - info.chunks.start) / (info.chunks.end - info.chunks.start)
        if done * info.byte_range.size < MIN_RESUMED:
            return
        for user in list(self._users):
            try:
                found = await user.resume(first)
            except UpstreamError as exc:
                self._log("cannot go on at chunk %d: %s", first, exc)
                continue
            if found is not None:
                self._log("going on at chunk %d", found.chunks.start)
                self._info = found
                return

    async def _attempt(self) -> None:
        """Read the range once from its start, keeping the chunks that have not arrived before."""
        while not await self._try():
            pass  # whoever came while it was opened needs better data

    async def _try(self) -> bool:
        """Read the range once; return False at once if the data does not suffice for all users."""
        started = time.monotonic()
        watch = Stopwatch(started, time.thread_time())
        buffers, info = self._held_buffers, self._info
        buffers.begin(info.byte_range.size)
        receiver = Receiver(buffers, self._stall_timeout)
        try:
            async with self._source.open_data(
                self.xorb_hash,
                info,
                is_proven=self.is_proven,
                takes_imported=self._takes_imported,
            ) as response:
                if response.has_imported and not self._takes_imported:
                    return False
                self._has_imported |= response.has_imported
                chunk = info.chunks.start
                while buffers.num_left:
                    is_first = buffers.num_left == self.size
                    count = await receiver.receive(response)
                    watch.note_bytes(count, time.monotonic())
                    self._count_bytes(count, response.is_stored, is_first=is_first)
                    chunk += self._keep(chunk, receiver.take_chunks(response))
                watch.record_in(
                    self._host_speed, time.monotonic(), time.thread_time(), buffers.paused
                )
                if not receiver.is_between_records or chunk != info.chunks.end:
                    raise FormatError(
                        f"{chunk - info.chunks.start} chunks in a range, expected "
                        f"{info.chunks.end - info.chunks.start}"
                    )
                await receiver.check_end(response)
                self._log(
                    "%d bytes from the %s in %.0f ms",
                    info.byte_range.size,
                    "cache" if response.is_stored else "data host",
                    (time.monotonic() - started) * 1000,
                )
                return True
        finally:
            receiver.close()

    def _log(self, text: str, *values: object) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            name = format_hash(self.xorb_hash)[:8]
            logger.debug("xorb %s, chunks %d..%d: %s", name, *self.chunks, text % values)

    def _count_bytes(self, count: int, is_stored: bool, *, is_first: bool) -> None:
        """Count received bytes in the tally of the first user."""
        self._was_stored = is_stored
        tally = self._users[0].tally if self._users else Tally()
        if is_stored:
            tally.cache_bytes += count
            tally.cache_hits += is_first
        else:
            tally.upstream_bytes += count

    def _keep(self, start: int, arrived: list[ArrivedChunk]) -> int:
        """Keep those of the arrived chunks, from start on, that are needed and not in memory yet;
        return how many have arrived.
        """
        for chunk, entry in enumerate(arrived, start):
            if chunk == self._next_chunk and chunk < self.chunks.end:
                self._next_chunk += 1
            elif chunk not in self._rejected:
                continue
            self._rejected.discard(chunk)
            if self._needed[chunk - self.chunks.start]:
                assert entry.slab is not None
                entry.slab.num_needed += 1
                self._entries[chunk] = entry
        if arrived:
            self._waiters.wake_all()
            if self._is_failing:
                self._is_failing = False
                for user in self._users:
                    user.note_success()
        return len(arrived)
