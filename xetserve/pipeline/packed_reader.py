"""From a range of a xorb to its packed bytes as they are, for clients that unpack them themselves.

They come the way of all data: one fetch for all who want the range, plain readers among them, from
the disk cache where it is there. And no chunk leaves unseen: each is decoded, hashed and noted in
the file's ledger at every place where the file has it. A proven file is held against its list chunk
by chunk; of any other, the answer that completes the list ends only if the list makes the file
hash.

What a client of an unproven file has got before may be the wrong part. So when the list turns out
wrong, or the same place of the file has had two different chunks, the file counts as cut: whoever
serves data URLs has to refuse those from before (Ledgers.was_cut_since), or a client would go on
with one answer repeated and the damage undetected.

All this holds only where all parts of the file pass. What another instance has granted of a file
that was proven there is held against the list if it is proven here, too, or else against the digest
in the grant (PackedReader.can_prove).
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Final

from blake3 import blake3

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError, IntegrityError, UrlExpired
from xetserve.metrics.catalogue import INTEGRITY_FAILURES
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.fetch.table import FetchTable
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.pacing import Pacer
from xetserve.pipeline.flow.stall_deadline import StallDeadline
from xetserve.pipeline.plan.window_plan import Step, check_fetch_range
from xetserve.pipeline.reader import MAX_REJECTS
from xetserve.pipeline.tally import Tally
from xetserve.pipeline.verify.verifier import Verifier
from xetserve.xet.grants import DIGEST_SIZE, Grant, GrantedRange, TermUse
from xetserve.xet.reconstruction import ChunkRange, FetchInfo
from xetserve.xet.xorb import make_chunk_header

PLACES_AT_ONCE: Final = 1000  # of one chunk; some milliseconds


class _Places:
    """Where in the file the chunks of a range are, going through them in order.

    Args:
        uses: terms, by their first chunk.
    """

    def __init__(self, uses: Sequence[TermUse]) -> None:
        self._coming = list(reversed(uses))
        self._open: list[tuple[TermUse, int]] = []  # and the decoded bytes of it that have passed

    def find(self, chunk: int) -> Iterator[int]:
        """Iterate over the positions of the next chunk, in bytes."""
        while self._coming and self._coming[-1].chunks.start == chunk:
            self._open.append((self._coming.pop(), 0))
        for use, done in self._open:
            for position in use.iter_positions():
                yield position + done

    @property
    def is_used(self) -> bool:
        """Whether the chunk that was looked for last has places."""
        return bool(self._open)

    def pass_by(self, chunk: int, size: int) -> None:
        """Go on behind a chunk of size decoded bytes.

        Raises:
            IntegrityError: a term has another size than promised.
        """
        still_open = []
        for use, done in self._open:
            done += size
            is_last = chunk + 1 >= use.chunks.end
            if done > use.decoded_size or (is_last and done != use.decoded_size):
                raise IntegrityError(f"a term of {done} decoded bytes, expected {use.decoded_size}")
            if not is_last:
                still_open.append((use, done))
        self._open = still_open


class PackedReader:
    """Reads one range of one xorb, once.

    Args:
        granted: one of the grant's ranges.
        gap_timeout: seconds without a block for the client, retries included, before the read
            fails.

    tally: where its bytes have come from so far.
    """

    def __init__(
        self,
        table: FetchTable,
        verifier: Verifier,
        grant: Grant,
        granted: GrantedRange,
        *,
        gap_timeout: float,
    ) -> None:
        self._table = table
        self._grant = grant
        self._granted = granted
        self._info = FetchInfo(granted.chunks, granted.byte_range, grant.url)
        self._places = _Places(granted.uses)
        self._verifier = verifier
        self._pacer = Pacer()
        self._stall_deadline = StallDeadline(gap_timeout, self._pacer)
        self._digest = blake3()  # of the chunks that terms use
        self._expected_digest = ""  # where it is all that proves the range
        self._spare_url = False  # whether the fetch is another's, so that our URL was not tried
        self.tally = Tally()

    @property
    def is_verified(self) -> bool:
        """Whether all that was read is the file's; known once the last block is given out."""
        return self._verifier.is_verified

    async def can_prove(self) -> bool:
        """Return whether the range can be proven by itself, not only together with all others; from
        then on it has to be.
        """
        await self._verifier.prepare()
        if self._verifier.is_proven:
            return True
        self._expected_digest = self._granted.digest
        self._verifier.since = None  # whatever becomes of the other parts
        return bool(self._expected_digest)

    async def blocks(self) -> AsyncGenerator[list[Buffer], None]:
        """Yield the packed bytes, in blocks; a block's buffers are good until the next one is asked
        for.

        Raises:
            UrlExpired: no URL that is known works.
            UpstreamError: the data host fails for good.
            IntegrityError: the data is not what was promised.
            UpstreamBusy: nobody can tell whether the file is right with it; see Verifier.finish.
        """
        check_fetch_range(self._info)
        table, budget = self._table, self._table.budget
        budget.open_reader()
        await self._verifier.prepare()  # what may be taken from the cache depends on it
        num_chunks = self._info.chunks.end - self._info.chunks.start
        step = Step(self._grant.xorb_hash, self._info, (1,) * num_chunks)
        # Nobody is known to follow: others who want the range share the fetch, or have a cache.
        traffic = FileTraffic()
        lease = table.open_lease(
            step,
            traffic,
            0,
            self._refresh,
            self.tally,
            is_packed=True,
            takes_imported=self._verifier.is_proven,
        )
        self._spare_url = lease.fetch.is_started
        last = time.monotonic()
        self._stall_deadline.renew(last)
        try:
            lease.fetch.start(self._room, must=True)
            async with aclosing(self._read(lease)) as blocks:
                async for block in blocks:
                    await self._verifier.pass_on(self._grant.file_size)
                    before = time.monotonic()
                    yield block
                    now = time.monotonic()
                    self._pacer.note_block(sum(map(len, block)), now - before, now - last)
                    self._stall_deadline.renew(now)
                    last = now
                    lease.fetch.fit(self._room)
        except (IntegrityError, FormatError):
            self._fail()
            raise
        finally:
            self._verifier.settle()
            budget.close_reader()
            table.close_leases([lease], traffic, 0)
            if lease.fetch.is_closed:
                await lease.fetch.wait_closed()

    @property
    def _room(self) -> int:
        """Bytes that may be held at once."""
        return min(self._pacer.hold_limit, self._table.budget.share)

    def _fail(self) -> None:
        INTEGRITY_FAILURES.add()
        suspects = {self._grant.xorb_hash: self._info.chunks}
        if self._verifier.is_in_doubt or self._expected_digest:
            self._verifier.note_cut()
            suspects = self._verifier.fail()
        for xorb_hash, chunks in suspects.items():
            self._table.source.forget(xorb_hash, chunks)

    async def _refresh(self, stale: FetchInfo) -> FetchInfo:
        """Return our own URL, once, if it was not tried: only the client can get another."""
        if not self._spare_url or stale.url == self._info.url:
            raise UrlExpired("the data URL has expired")
        self._spare_url = False
        return self._info

    async def _read(self, lease: Lease) -> AsyncGenerator[list[Buffer], None]:
        fetch = lease.fetch
        position, end = self._info.byte_range
        block: list[Buffer] = []
        size = 0
        used: list[int] = []  # chunks in the block: released once it has left
        for chunk in range(*self._info.chunks):
            if not fetch.has(chunk):
                if block:
                    yield block
                    block, size = [], 0
                    _release(lease, used)
                await self._stall_deadline.wait(fetch.wait(chunk))
            await self._verify(lease, chunk)
            record = fetch.get_record(chunk)
            position += record.header.record_size
            size += record.header.record_size
            used.append(chunk)
            block += (make_chunk_header(record.header), record.payload)
            if size >= self._pacer.block_size and position < end:
                yield block
                block, size = [], 0
                _release(lease, used)
        if position != end:
            raise IntegrityError(f"a range ends at byte {position}, expected {end}")
        if self._expected_digest not in ("", self._digest.hexdigest(DIGEST_SIZE)):
            raise IntegrityError("the range is not the one that was granted")
        # Before the last bytes leave: what completes a wrong file must not look complete.
        await self._verifier.finish(self._grant.file_size)
        yield block
        _release(lease, used)

    async def _verify(self, lease: Lease, chunk: int) -> None:
        """Hash a chunk that is here, and hold it against the file; one that is damaged is fetched
        again a few times.
        """
        num_rejects = 0
        while True:
            try:
                size, chunk_hash = _hash_chunk(lease, chunk)
                async for at in self._iter_places(chunk):
                    if self._verifier.contradicts(at, size, chunk_hash):
                        raise IntegrityError(f"chunk {chunk} is not the file's")
                break
            except (FormatError, IntegrityError) as exc:
                if num_rejects == MAX_REJECTS:
                    raise
                num_rejects += 1
                self._table.source.forget(lease.fetch.xorb_hash, ChunkRange(chunk, chunk + 1))
                lease.fetch.reject(chunk, exc)
            await self._stall_deadline.wait(lease.fetch.wait(chunk))
        self._verifier.note_chunks(self._grant.xorb_hash, ChunkRange(chunk, chunk + 1))
        async for at in self._iter_places(chunk):
            self._verifier.add(at, size, chunk_hash)
        if self._places.is_used:
            self._digest.update(chunk_hash)
            self._verifier.add_origin(lease.fetch.get_origin(chunk), chunk)
        self._places.pass_by(chunk, size)
        self._verifier.check_doubt()

    async def _iter_places(self, chunk: int) -> AsyncIterator[int]:
        """Iterate over the places of a chunk in the file; of many, others have their turn in
        between.
        """
        for number, at in enumerate(self._places.find(chunk), 1):
            yield at
            if number % PLACES_AT_ONCE == 0:
                await asyncio.sleep(0)


def _hash_chunk(lease: Lease, chunk: int) -> tuple[int, bytes]:
    """Give decoded size and hash of a chunk that is here; what others have decoded already is not
    decoded again.

    Raises:
        FormatError: the payload is damaged.
    """
    fetch = lease.fetch
    known = fetch.get_known_hash(chunk)
    if known is None:
        known = fetch.get_hash(chunk, fetch.decode(chunk))
    return fetch.get_header(chunk).decoded_size, known


def _release(lease: Lease, used: list[int]) -> None:
    for chunk in used:
        lease.release(chunk)
    used.clear()
