"""Read a range of a xorb as packed bytes, for native clients, which decode it themselves.

The data comes as all data does: from the disk cache or the data host, and through one fetch for all
responses that need the range. Every chunk is decoded, hashed and noted in the file's ledger, at
each position where the file has it. For a proven file, each chunk is compared with the ledger. For
another file, the response that completes the ledger ends only if the ledger gives the file hash.

Records that were proven before are sent from the disk cache without decoding if

- the file's ledger is proven in this process,
- the whole range is in cache entries that are marked as proven,
- this process has hashed every chunk of these entries, from records that it has read from the
  entry or written to it (cache/chunk_hashes.py),
- these hashes are the ledger's at each position that the grant names, and
- if the grant of another instance proves the range, the hashes also give the grant's digest.

These records were the file's when they were hashed. What can have changed since:

- The disk has damaged them. Each record, with its header, is compared with its CRC-32 in memory,
  and sent from the same memory. The CRCs lie in an index, which has a BLAKE3 of its own. A record
  that differs is not sent. A CRC finds errors of a disk. It does not find changes by somebody who
  can write to the folder, nor one random error in four billion.
- The entry was removed, truncated or replaced. The name of an entry is never used again, and an
  open file keeps its content. Other content under the same name fails the CRCs.
- A part of the range has no such entry. Then the whole range is decoded.
- The disk fails in the middle. Then the range is fetched from its start, every chunk is decoded,
  hashed and compared, and the chunks that were sent already are dropped. They must have had the
  same number of bytes.
- Another worker has written the entry. A worker trusts neither another worker's hashes nor the mark
  alone. It decodes the entry once, as after a restart. A ledger that another worker has proven is
  as good as its own.
- The ledger was dropped for want of memory. The comparison with the proven ledger stays true.

Before a file is proven, a client may have received wrong data. So if the ledger turns out wrong, or
one position of the file has had two different chunks, the file counts as cut: data URLs from before
must be refused (Ledgers.was_cut_since). Otherwise a client could repeat one request only, and keep
the damage of another.

All this holds only if all parts of a file are read here. A range that another instance has granted,
of a file that was proven there, is compared with the ledger if the file is proven here too, else
with the digest in the grant (PackedReader.can_prove).
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from blake3 import blake3

from xetserve.errors import FormatError, IntegrityError, UrlExpired
from xetserve.metrics.catalogue import CACHE_PROVEN_BYTES
from xetserve.pipeline.blocks import Block, BlockReader, OnClose
from xetserve.pipeline.fetch.leases import Lease
from xetserve.pipeline.fetch.table import FetchTable
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.pacing import MAX_BLOCK, MIN_BLOCK
from xetserve.pipeline.plan.window_plan import Step, check_fetch_range
from xetserve.pipeline.proven_store import ProvenRecords, ProvenStore
from xetserve.pipeline.verify.verifier import Verifier
from xetserve.pipeline.window_reader import MAX_REJECTS
from xetserve.xet.grants import DIGEST_SIZE, Grant, GrantedRange, TermUse
from xetserve.xet.hashes import HASH_SIZE
from xetserve.xet.reconstruction import ChunkRange, FetchInfo

PLACES_AT_ONCE: Final = 1000  # of one chunk, some milliseconds; then others have their turn
NOTED_AT_ONCE: Final = 16  # chunks
PACKED_BLOCK: Final = 256 * 1024  # bytes of records that are sent at once: they are held anyway
STORED_BLOCKS: Final = 4  # read from the store at once if the client is fast
STORE_TIMEOUT: Final = 2.0  # seconds; a disk that is slower only delays clients


class _Places:
    """Where in the file the chunks of a range are, going through them in order.

    Args:
        uses: terms, by their first chunk.
    """

    def __init__(self, uses: Sequence[TermUse]) -> None:
        self._coming = list(reversed(uses))
        self._open: list[tuple[TermUse, int]] = []  # and the decoded bytes of it that have passed

    def find(self, chunk: int) -> Iterable[int]:
        """Return the positions of the next chunk in the file, in bytes."""
        while self._coming and self._coming[-1].chunks.start == chunk:
            self._open.append((self._coming.pop(), 0))
        if len(self._open) == 1 and not self._open[0][0].gaps:  # as in most files
            use, done = self._open[0]
            return (use.position + done,)
        return self._iter_positions()

    def _iter_positions(self) -> Iterator[int]:
        for use, done in self._open:
            for position in use.iter_positions():
                yield position + done

    @property
    def is_used(self) -> bool:
        """Whether the file uses the chunk that find() was called for last."""
        return bool(self._open)

    def pass_by(self, chunk: int, size: int) -> None:
        """Advance behind a chunk of size decoded bytes.

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


class _Run:
    """Records that follow each other in a slab, and their chunks; both half-open."""

    __slots__ = ("end", "first", "last", "slab", "start")

    def __init__(self, slab: memoryview, start: int, chunk: int) -> None:
        self.slab = slab
        self.start = self.end = start
        self.first = self.last = chunk

    def add_to(self, block: Block, lease: Lease) -> None:
        """Add the records to a block."""
        block.add_records(self.slab[self.start : self.end], lease, self.first, self.last)


class PackedReader(BlockReader):
    """Reads one range of one xorb.

    A block fails with UrlExpired if no known URL works, and with UpstreamBusy if it cannot be
    decided whether the range is the file's; see Verifier.finish.

    Args:
        granted: one of the grant's ranges.
        proven_store: holds records that need not be decoded; None: there is no such store.

    Raises:
        FormatError, IntegrityError: the range cannot be one of a xorb.
    """

    def __init__(
        self,
        table: FetchTable,
        verifier: Verifier,
        grant: Grant,
        granted: GrantedRange,
        *,
        proven_store: ProvenStore | None = None,
        gap_timeout: float,
        outage_patience: float = 0.0,
        on_close: OnClose | None = None,
    ) -> None:
        super().__init__(table.budget, gap_timeout, outage_patience, on_close)
        self._table = table
        self._grant = grant
        self._granted = granted
        self._info = FetchInfo(granted.chunks, granted.byte_range, grant.url)
        check_fetch_range(self._info)
        self._places = _Places(granted.uses)
        self._verifier = verifier
        self._proven_store = proven_store
        self._records: ProvenRecords | None = None  # while they are read without decoding
        self._is_proven_stored = False  # whether all of them were
        self._sent = (granted.chunks.start, granted.byte_range.start)  # before these failed
        self._lease: Lease | None = None  # while it is open
        # Nobody is known to follow: others who want the range share the fetch, or have a cache.
        self._traffic = FileTraffic()
        self._chunk, self._position = granted.chunks.start, granted.byte_range.start  # the next
        self._num_rejects = 0  # of the next chunk
        self._noted_end = 0  # the verifier knows that the chunks up to here are used
        self._digest = blake3()  # of the chunks that terms use
        self._expected_digest = ""  # where it is all that proves the range
        self._spare_url = False  # whether the fetch is another's, so that our URL was not tried

    @property
    def is_verified(self) -> bool:
        """Whether all data read is the file's; known when the last block is returned."""
        return self._is_proven_stored or self._verifier.is_verified

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

    # The life of a body.

    async def _open(self) -> None:
        await self._verifier.prepare()  # what may be taken from the cache depends on it
        self._records = await self._find_proven()
        if self._records is None:
            self._open_lease()
        else:
            self.tally.cache_hits += 1

    def _open_lease(self) -> None:
        num_chunks = self._info.chunks.end - self._info.chunks.start
        self._lease = self._table.open_lease(
            Step(self._grant.xorb_hash, self._info, (1,) * num_chunks),
            self._traffic,
            0,
            self._refresh,
            self.tally,
            outage=self.outage,
            is_packed=True,
            takes_imported=self._verifier.is_proven,
        )
        self._spare_url = self._lease.fetch.is_started
        self._lease.fetch.start(self._room, must=True)

    async def _make_block(self) -> Block | None:
        if self._chunk == self._info.chunks.end:
            return None
        if self._records is not None:
            block = await self._read_proven(self._records)
            if block is not None:
                return block
        lease = self._lease
        assert lease is not None
        lease.fetch.fit(self._room)
        block = Block()
        await self._fill_block(block, lease)
        if self._chunk == self._info.chunks.end:
            # Before the last bytes leave: what completes a wrong file must not look complete.
            await self._finish()
        await self._verifier.pass_on(self._grant.file_size)
        return block

    def _fail(self) -> None:
        suspects = {self._grant.xorb_hash: self._info.chunks}
        if self._verifier.is_in_doubt or self._expected_digest:
            self._verifier.note_cut()
            suspects = self._verifier.fail()
        for xorb_hash, chunks in suspects.items():
            self._table.source.forget(xorb_hash, chunks)

    async def _close(self) -> None:
        self._close_records()
        self._verifier.settle()
        lease, self._lease = self._lease, None
        if lease is not None:
            self._table.close_leases([lease], self._traffic, 0)
            if lease.fetch.is_closed:
                await lease.fetch.wait_closed()

    @property
    def _room(self) -> int:
        """The bytes that the fetch may hold."""
        return min(self._pacer.hold_limit, self._budget.share)

    async def _refresh(self, stale: FetchInfo) -> FetchInfo:
        """Return the grant's URL once, if it was not tried: only the client can get another one."""
        if not self._spare_url or stale.url == self._info.url:
            raise UrlExpired("the data URL has expired")
        self._spare_url = False
        return self._info

    # Records that were proven before.

    async def _find_proven(self) -> ProvenRecords | None:
        """Return the records of the range if they need not be decoded; see the module."""
        if self._proven_store is None or not self._verifier.is_proven:
            return None
        records = await self._proven_store.find_proven(self._grant.xorb_hash, self._info)
        if records is not None and not await self._has_file(records.hashes):
            records.close()
            return None  # whatever is wrong is found, and fetched again, when it is decoded
        return records

    async def _has_file(self, hashes: bytes) -> bool:
        """Return whether the file has chunks with these hashes wherever it uses the range, and
        they make the digest that proves it.
        """
        first = reached = self._info.chunks.start
        digest = blake3()
        number = 0
        for use in self._granted.uses:
            start, end = use.chunks
            part = hashes[(start - first) * HASH_SIZE : (end - first) * HASH_SIZE]
            for position in use.iter_positions():
                if not self._verifier.has_part(position, use.decoded_size, part):
                    return False
                number += 1
                if number % PLACES_AT_ONCE == 0:
                    await asyncio.sleep(0)
            start = max(start, reached)
            if start < end:
                digest.update(hashes[(start - first) * HASH_SIZE : (end - first) * HASH_SIZE])
                reached = end
        return self._expected_digest in ("", digest.hexdigest(DIGEST_SIZE))

    async def _read_proven(self, records: ProvenRecords) -> Block | None:
        """Make a block of records that need not be decoded; None: the disk failed, and the range is
        fetched instead.
        """
        try:
            data, num_chunks = await records.read(self._stored_size, STORE_TIMEOUT)
        except (FormatError, OSError):
            self._close_records()
            self._sent = (self._chunk, self._position)
            self._chunk, self._position = self._info.chunks.start, self._info.byte_range.start
            self._open_lease()
            return None
        block = Block()
        block.add(data, len(data), None, self._chunk, is_lent=False)
        self.tally.cache_bytes += len(data)
        CACHE_PROVEN_BYTES.add(amount=len(data))
        self._chunk += num_chunks
        self._position += len(data)
        if self._chunk == self._info.chunks.end:
            self._is_proven_stored = True
        return block

    @property
    def _stored_size(self) -> int:
        """The bytes to read at once: more than of chunks that are decoded, as they cost less."""
        size = self._pacer.block_size
        return size if size == MIN_BLOCK else min(STORED_BLOCKS * size, MAX_BLOCK)

    def _close_records(self) -> None:
        records, self._records = self._records, None
        if records is not None:
            records.close()

    # Chunks.

    async def _fill_block(self, block: Block, lease: Lease) -> None:
        """Add chunks to a block until it is large enough, or the next chunk has not arrived."""
        fetch = lease.fetch
        wanted = max(self._pacer.block_size, PACKED_BLOCK)
        run: _Run | None = None
        while self._chunk < self._info.chunks.end:
            chunk = self._chunk
            if not fetch.has(chunk):
                if run is not None:
                    break  # what is here leaves first
                await fetch.wait(chunk, self._stall_deadline)
            if not await self._verify(lease, chunk):
                continue
            slab, start, end = fetch.find_records(chunk)
            self._go_on(end - start)
            if chunk < self._sent[0]:
                lease.release(chunk)
                continue
            if run is None or run.slab is not slab or run.end != start:
                if run is not None:
                    run.add_to(block, lease)
                run = _Run(slab, start, chunk)
            run.end, run.last = end, chunk + 1
            if (
                block.size + end - run.start >= wanted
                and self._position < self._info.byte_range.end
            ):
                break
        if run is not None:
            run.add_to(block, lease)

    def _go_on(self, size: int) -> None:
        """Advance behind a record of size bytes.

        Raises:
            IntegrityError: the records before were of another size when they left.
        """
        self._chunk += 1
        self._position += size
        if self._chunk == self._sent[0] and self._position != self._sent[1]:
            raise IntegrityError(
                f"chunk {self._chunk} is at byte {self._position}, but was at {self._sent[1]}"
            )

    async def _finish(self) -> None:
        """Decide whether the whole range is the file's.

        Raises:
            IntegrityError: it is not the one that was granted, or completes a wrong file.
        """
        end = self._info.byte_range.end
        if self._position != end:
            raise IntegrityError(f"a range ends at byte {self._position}, expected {end}")
        if self._expected_digest not in ("", self._digest.hexdigest(DIGEST_SIZE)):
            raise IntegrityError("the range is not the one that was granted")
        await self._verifier.finish(self._grant.file_size)

    async def _verify(self, lease: Lease, chunk: int) -> bool:
        """Hash a chunk that is here, and compare it with the file; False: it is damaged, and being
        fetched again.

        Raises:
            FormatError, IntegrityError: it stays damaged.
        """
        try:
            size, chunk_hash = _hash_chunk(lease, chunk)
            for number, at in enumerate(self._places.find(chunk), 1):
                if self._verifier.contradicts(at, size, chunk_hash):
                    raise IntegrityError(f"chunk {chunk} is not the file's")
                if number % PLACES_AT_ONCE == 0:
                    await asyncio.sleep(0)
        except (FormatError, IntegrityError) as exc:
            if self._num_rejects == MAX_REJECTS:
                raise
            self._num_rejects += 1
            self._table.source.forget(lease.fetch.xorb_hash, ChunkRange(chunk, chunk + 1))
            lease.fetch.reject(chunk, exc)
            return False
        self._num_rejects = 0
        if chunk >= self._noted_end:
            self._noted_end = min(chunk + NOTED_AT_ONCE, self._info.chunks.end)
            self._verifier.note_chunks(self._grant.xorb_hash, ChunkRange(chunk, self._noted_end))
        for number, at in enumerate(self._places.find(chunk), 1):
            self._verifier.add(at, size, chunk_hash)
            if number % PLACES_AT_ONCE == 0:
                await asyncio.sleep(0)
        if self._places.is_used:
            self._digest.update(chunk_hash)
            self._verifier.add_origin(lease.fetch.get_origin(chunk), chunk)
        self._places.pass_by(chunk, size)
        self._verifier.check_doubt()
        return True


def _hash_chunk(lease: Lease, chunk: int) -> tuple[int, bytes]:
    """Return decoded size and hash of a chunk that is here; what others have decoded already is not
    decoded again.

    Raises:
        FormatError: the payload is damaged.
    """
    fetch = lease.fetch
    known = fetch.get_known_hash(chunk)
    if known is None:
        known = fetch.get_hash(chunk, fetch.decode(chunk))
    return fetch.get_header(chunk).decoded_size, known
