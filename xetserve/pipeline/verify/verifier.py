"""HeldBuffers what one response reads against what the file has to be.

What is known to make the file hash, the ledger of a proven file, each chunk is held against at its
place. Of a file that is not proven, a whole response is folded on the way, and its root is the file
hash or the answer is cut. Parts are proven by the ledger, with the part that completes it.
"""

import asyncio
import time
from typing import Final

from xetserve.errors import IntegrityError, UpstreamBusy
from xetserve.pipeline.provenance import Provenance, ProvenanceLog
from xetserve.pipeline.verify.ledger import Ledger, extend_range
from xetserve.pipeline.verify.ledger_store import LedgerStore
from xetserve.pipeline.verify.ledgers import Ledgers
from xetserve.pipeline.verify.worker_records import SeenCollector
from xetserve.xet.hashes import MerkleTree, format_hash
from xetserve.xet.reconstruction import ChunkRange

FOLDED_AT_ONCE: Final = 4096  # chunks, of some milliseconds


class Verifier:
    """The proof of one response. Positions are decoded bytes in the file.

    Args:
        is_whole: whether the response is the whole file.
        store: where proven ledgers are stored.
        since: seconds, of a steady clock; the ledger has to know all that was read of the file from
            then on. None: it may be that other parts were never seen here.

    is_verified: whether all that was read belongs to the file, as far as finish has been told.
    chunks: what was to be read, by xorb: from the first of its chunks to the last.
    """

    def __init__(
        self,
        ledgers: Ledgers,
        file_hash: bytes,
        *,
        is_whole: bool,
        store: LedgerStore | None = None,
        since: float | None = None,
    ) -> None:
        self.is_verified = False
        self.chunks: dict[bytes, ChunkRange] = {}
        self._ledgers = ledgers
        self._ledger = ledger = ledgers.get(file_hash)
        self._generation = ledger.generation
        self._epoch = ledger.epoch
        self._origins = ProvenanceLog()
        self.is_whole = is_whole
        self._tree = MerkleTree() if is_whole and not ledger.is_proven else None
        self._end = 0  # of what was added last
        self._collector = (
            SeenCollector(file_hash) if ledgers.is_shared else None
        )  # for the other workers
        self._store = store
        self.since = since

    async def prepare(self) -> None:
        """Look whether the file was proven before; to be called before anything is added."""
        ledger = self._ledger
        await recall(ledger, self._ledgers, self._store)
        self._generation = ledger.generation
        self._epoch = ledger.epoch
        if ledger.is_proven:
            self._tree = None  # it could tell no more than the list does

    @property
    def is_proven(self) -> bool:
        """Whether every chunk is held against the list of a proven file."""
        return self._ledger.is_proven

    def contradicts(self, position: int, size: int, chunk_hash: bytes) -> bool:
        """Return whether a chunk cannot be the file's, because the file is known."""
        ledger = self._ledger
        return ledger.is_proven and not ledger.matches(position, size, chunk_hash)

    @property
    def is_in_doubt(self) -> bool:
        """Whether the file's list has turned out wrong since we began, so that what we have read
        may be.
        """
        return self._ledger.generation != self._generation and not self._ledger.is_full

    def check_doubt(self) -> None:
        """Stop who is in doubt.

        Raises:
            IntegrityError: they are.
        """
        if self.is_in_doubt:
            raise IntegrityError("the file has had two different chunks in one place")

    def note_chunks(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Take in where the next chunks come from."""
        extend_range(self.chunks, xorb_hash, chunks)
        self._ledger.note_source(xorb_hash, chunks)
        if self._collector is not None:
            self._collector.note_source(xorb_hash, chunks)

    def add(self, position: int, size: int, chunk_hash: bytes) -> None:
        """Take in the next chunk, which has size decoded bytes."""
        self._end = position + size
        if self._tree is not None:
            self._tree.add(chunk_hash, size)
        if not self._ledger.is_proven:
            if self._collector is not None:
                # First, so that it is older than what becomes of it: others forget it, too.
                self._collector.add(position, size, chunk_hash, time.monotonic_ns())
            self._ledger.note(position, size, chunk_hash)

    def add_origin(self, origin: Provenance | None, chunk: int) -> None:
        """Take in the store's copy of the chunk that was added last, if there is one."""
        if origin is not None:
            self._origins.add(origin, chunk)

    def settle(self) -> None:
        """Have the origins told of what is proven, now or with the rest of the file, and account
        for the ledger; to be called in the end.
        """
        if self.is_verified and self._tree is not None:
            self._origins.prove()
        else:
            self._ledger.take_origins(self._origins, self._epoch)
            self._ledgers.watch(self._ledger)
        self._ledgers.trim(self._ledger.file_hash)

    async def pass_on(self, size: int | None) -> None:
        """Let others count on what was added, before its bytes leave, and judge if it was the last
        of the file that was missing.

        Not only the end of a response completes a file: clients that ask for parts leave when they
        have what they want.

        Args:
            size: of the file; None: it is not known.

        Raises:
            IntegrityError: it is the last of a wrong file.
        """
        self._send()
        if not self.is_verified and not self._ledger.is_proven:
            self._ledgers.receive()
            self._ledgers.trim(self._ledger.file_hash)
            if self._tree is None:
                self.check_doubt()
            await self._prove(size)
            self._keep()

    def _send(self) -> None:
        if self._collector is not None:
            self._ledgers.send(self._collector.take())

    async def finish(self, size: int | None) -> None:
        """Judge, before the last bytes leave; what is proven by that is stored.

        Args:
            size: of the file; None: it is not known, and this is a part.

        Raises:
            IntegrityError: what was read is not the file, or together with other parts is not.
            UpstreamBusy: other parts would have had to be remembered, and were not.
        """
        self._send()
        if self._tree is not None:
            self._judge_whole(self._tree)
        else:
            if not self._ledger.is_proven:
                self._ledgers.look_up(self._ledger)
            self.check_doubt()
            if self.is_whole and not self._ledger.is_complete(self._end):
                raise IntegrityError(f"a file of {self._end} bytes, proven to have another size")
            await self._prove(size)
            self.check_doubt()
            self.is_verified = self._ledger.is_proven
            self._check_lost()
        self._keep()

    def _keep(self) -> None:
        self._ledgers.send_proven(self._ledger)
        if self._store is not None:
            self._store.keep(self._ledger)

    def _check_lost(self) -> None:
        """Stop who may be about to complete what nobody can judge any more.

        Raises:
            UpstreamBusy: what was known of the file had to go.
        """
        if self.is_verified or self.since is None:
            return
        ledgers, file_hash = self._ledgers, self._ledger.file_hash
        ledgers.trim(file_hash)
        if self._ledger.is_full or ledgers.was_lost_since(file_hash, self.since):
            raise UpstreamBusy("what was known of the file had to go before all of it was read")

    def _judge_whole(self, tree: MerkleTree) -> None:
        ledger = self._ledger
        root = tree.file_hash()
        if root != ledger.file_hash:
            raise IntegrityError(
                f"the chunks make file {format_hash(root)}, "
                f"expected {format_hash(ledger.file_hash)}"
            )
        self.is_verified = True
        # In doubt, it may have been told the first chunks again, by others.
        if not self.is_in_doubt and ledger.is_complete(tree.size):
            ledger.set_proven()

    async def _prove(self, size: int | None) -> None:
        """Prove the ledger if it has all chunks of the file."""
        ledger = self._ledger
        if size is None or ledger.is_proven or not ledger.can_be_proven(size):
            return
        generation = ledger.generation
        while ledger.fold(FOLDED_AT_ONCE):  # noqa: ASYNC110 - others have their turn
            await asyncio.sleep(0)
        is_still = ledger.generation == generation and ledger.can_be_proven(size)
        if is_still and not ledger.prove():
            raise IntegrityError(f"all parts together are not file {format_hash(ledger.file_hash)}")

    def note_cut(self) -> None:
        """Record that an answer with the file was cut, here and for the other workers."""
        self._ledgers.note_cut(self._ledger.file_hash, time.monotonic())

    def fail(self) -> dict[bytes, ChunkRange]:
        """Forget what the ledger has: some of it is wrong. The file counts as cut from now on.

        Gives the chunks that it may be, by xorb: those of this response, and of those before it
        that have not been proven. A list that is proven stays: it is what shows who is wrong, and
        what it has let pass was right.
        """
        ledger = self._ledger
        self._origins.clear()
        if ledger.is_proven:
            return self.chunks
        suspects = self.chunks | ledger.sources
        for xorb_hash, chunks in self.chunks.items():
            extend_range(suspects, xorb_hash, chunks)
        if self._tree is None and self.is_in_doubt:
            ledger.forget()  # who has put us in doubt has said so
        else:
            ledger.clear()
        ledger.sources.clear()
        return suspects


async def recall(ledger: Ledger, ledgers: Ledgers, store: LedgerStore | None) -> None:
    """Let a ledger have what other workers and the disk know of its file."""
    if not ledger.is_proven:
        ledgers.look_up(ledger)
    if store is not None and not ledger.is_proven:
        await store.load(ledger)
