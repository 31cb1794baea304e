"""The pipeline as the application sees it: content to read, and what is known of a file's proof.

The engine owns what all responses of a process share: the budget, the source, the fetches under
way, and the ledgers with their store and their link to the other workers. A reader is made for one
response and borrows them.
"""

import time
from dataclasses import dataclass

from xetserve.pipeline.blocks import OnClose
from xetserve.pipeline.fetch.table import FetchTable
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.flow.pacing import MIN_HOLD
from xetserve.pipeline.packed_reader import PackedReader
from xetserve.pipeline.proven_store import ProvenStore
from xetserve.pipeline.prover import Prover
from xetserve.pipeline.reader import FileReader
from xetserve.pipeline.verify.ledger import Ledger
from xetserve.pipeline.verify.ledger_store import LedgerStore
from xetserve.pipeline.verify.ledgers import Ledgers
from xetserve.pipeline.verify.verifier import Verifier, recall
from xetserve.pipeline.verify.worker_bus import WorkerBus
from xetserve.upstream.cas.source import Access, CasSource
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.grants import Grant, GrantedRange


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Times in seconds.

    stall_timeout: without a byte on one upstream connection, before another is tried.
    gap_timeout: without a block for the client, retries included, before the read fails.
    outage_patience: the same once the body has begun, if that is more.
    """

    stall_timeout: float = 3.0
    gap_timeout: float = 8.0
    outage_patience: float = 0.0


class Engine:
    """Reads files and xorb ranges for all responses of a process.

    Args:
        ledger_store: where proven ledgers are stored; None: nowhere.
        worker_bus: from the other workers, and to them; None: there are none.
        proven_store: has proven records, which native clients get as they are; None: nothing has.
    """

    def __init__(
        self,
        source: CasSource,
        budget: ByteBudget,
        *,
        policy: RetryPolicy,
        limits: ReadLimits,
        ledger_store: LedgerStore | None = None,
        worker_bus: WorkerBus | None = None,
        proven_store: ProvenStore | None = None,
    ) -> None:
        self.budget = budget
        self.limits = limits
        self.fetches = FetchTable(source, budget, policy=policy, stall_timeout=limits.stall_timeout)
        self.ledgers = Ledgers(worker_bus=worker_bus)
        self._ledger_store = ledger_store
        self._proven_store = proven_store
        self._prover = Prover(self._read_for_proof, self.ledgers, budget)

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._prover.aclose()

    @property
    def source(self) -> CasSource:
        """Where reconstructions and data come from."""
        return self.fetches.source

    @property
    def num_fetches(self) -> int:
        """Fetches under way, or kept for responses that follow."""
        return len(self.fetches)

    # Reading.

    def read(
        self,
        access: Access,
        file_hash: bytes,
        *,
        start: int = 0,
        end: int | None = None,
        size: int | None = None,
        on_close: OnClose | None = None,
        max_hold: int | None = None,
        client: str | None = None,
    ) -> FileReader:
        """Return a reader of a range of a file; nothing is asked for before it is started.

        Args:
            start, end: decoded positions, half-open; end None: up to the end of the file.
            size: of the file in bytes, where known.
            max_hold: see Pacer.
            client: that the bytes are for, see was_client_cut; None: nobody.
        """
        is_whole = start == 0 and (end is None or end == size)
        verifier = Verifier(
            self.ledgers, file_hash, is_whole=is_whole, store=self._ledger_store, client=client
        )
        return FileReader(
            self.fetches,
            verifier,
            access,
            file_hash,
            start=start,
            end=end,
            size=size,
            gap_timeout=self.limits.gap_timeout,
            outage_patience=self.limits.outage_patience,
            on_close=on_close,
            max_hold=max_hold,
        )

    def read_packed(
        self, grant: Grant, granted: GrantedRange, on_close: OnClose | None = None
    ) -> PackedReader:
        """Return a reader of one of a grant's ranges of a xorb, as it is packed."""
        verifier = Verifier(
            self.ledgers,
            grant.file_hash,
            is_whole=False,
            store=self._ledger_store,
            since=grant.issued,
        )
        return PackedReader(
            self.fetches,
            verifier,
            grant,
            granted,
            proven_store=self._proven_store,
            gap_timeout=self.limits.gap_timeout,
            outage_patience=self.limits.outage_patience,
            on_close=on_close,
        )

    def prove(self, access: Access, file_hash: bytes, size: int) -> float:
        """Start a proof of a file in the background: it was cut, and parts of it are refused.

        Returns the seconds until they may be answered, estimated.

        Args:
            access: of the request for the part; nothing else is used to read the file.
        """
        return self._prover.ask(access, file_hash, size)

    def _read_for_proof(self, access: Access, file_hash: bytes, size: int) -> FileReader:
        return self.read(access, file_hash, size=size, max_hold=MIN_HOLD)

    # What is known of a file. Times are seconds of the monotonic clock.

    def was_cut(self, file_hash: bytes) -> bool:
        """Return whether an answer with the file was cut of late because the file was damaged."""
        return self.ledgers.was_cut(file_hash, time.monotonic())

    def is_suspect(self, file_hash: bytes) -> bool:
        """Return whether a client may want a part of the file to complete damaged content."""
        return self.ledgers.is_suspect(file_hash, time.monotonic())

    def was_client_cut(self, file_hash: bytes, client: str) -> bool:
        """Return whether a client may hold wrong bytes of a file, which parts would complete."""
        return self.ledgers.was_client_cut(file_hash, client, time.monotonic())

    def was_cut_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether an answer with the file was cut after a time because it was damaged."""
        return self.ledgers.was_cut_since(file_hash, since)

    def was_lost_since(self, file_hash: bytes, since: float) -> bool:
        """Return whether the record of what was read of the file may have been dropped since."""
        return self.ledgers.was_lost_since(file_hash, since)

    def is_proven(self, file_hash: bytes) -> bool:
        """Return whether the file's ledger is in memory and proven."""
        ledger = self.ledgers.find(file_hash)
        return ledger is not None and ledger.is_proven

    def find_hashes(self, file_hash: bytes, position: int, size: int) -> bytes | None:
        """Return the chunk hashes of a part of a proven file; see Ledger.find_hashes."""
        return self.ledgers.find_hashes(file_hash, position, size)

    async def recall(self, file_hash: bytes) -> None:
        """Load the ledger of a file into memory, if another worker or the disk has it proven."""
        known = self.ledgers.find(file_hash)
        ledger = known or Ledger(file_hash)
        await recall(ledger, self.ledgers, self._ledger_store)
        chunks = ledger.get_chunks()
        if known is None and chunks is not None:
            self.ledgers.get(file_hash).adopt(chunks)
            self.ledgers.trim(file_hash)

    def hear_workers(self) -> None:
        """Take in what other workers have proven; called now and then."""
        self.ledgers.poll()
