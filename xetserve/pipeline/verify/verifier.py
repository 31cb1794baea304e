"""Verify what one response reads.

If the file is proven, each chunk is compared with its ledger. Otherwise, the chunks of a response
with the whole file are folded as they are read; unless their root is the file hash, the answer is
cut before its last bytes. The chunks of a part are added to the ledger, which is proven with the
last missing part (ledger.py).
"""

import asyncio
import time
from typing import Final

from xetserve.errors import IntegrityError, UpstreamBusy
from xetserve.pipeline.provenance import ProvenanceLog
from xetserve.pipeline.verify.ledger import Ledger, extend_range
from xetserve.pipeline.verify.ledger_store import LedgerStore
from xetserve.pipeline.verify.ledgers import Ledgers
from xetserve.pipeline.verify.worker_records import SeenCollector
from xetserve.upstream.cas.source import Provenance
from xetserve.xet.hashes import MerkleTree, format_hash
from xetserve.xet.reconstruction import ChunkRange

FOLDED_AT_ONCE: Final = 4096  # chunks; they take some milliseconds


class Verifier:
    """Verifies one response. Positions are decoded bytes in the file.

    Args:
        is_whole: whether the response is the whole file.
        store: stores proven ledgers; None if they are not stored.
        since: seconds of the monotonic clock. The ledger must know all chunks that were read of the
            file since then. None: other parts may have been read elsewhere.
        client: that gets the bytes, see Ledgers.was_client_cut; None: nobody.

    is_verified: whether all that was read belongs to the file; set by finish.
    chunks: for each xorb, a range that contains the chunks which the response uses.
    """

    def __init__(
        self,
        ledgers: Ledgers,
        file_hash: bytes,
        *,
        is_whole: bool,
        store: LedgerStore | None = None,
        since: float | None = None,
        client: str | None = None,
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
        self._end = 0  # of the last chunk that was added
        self._collector = (
            SeenCollector(file_hash) if ledgers.is_shared else None
        )  # for the other workers
        self._store = store
        self.since = since
        self._client = client

    async def prepare(self) -> None:
        """Look up whether the file is proven; to be called before the first chunk."""
        ledger = self._ledger
        await recall(ledger, self._ledgers, self._store)
        self._generation = ledger.generation
        self._epoch = ledger.epoch
        if ledger.is_proven:
            self._tree = None  # the ledger is enough

    @property
    def is_proven(self) -> bool:
        """Whether every chunk is compared with the ledger of a proven file."""
        return self._ledger.is_proven

    def contradicts(self, position: int, size: int, chunk_hash: bytes) -> bool:
        """Return whether the file is proven and does not have this chunk at this position."""
        ledger = self._ledger
        return ledger.is_proven and not ledger.matches(position, size, chunk_hash)

    def has_part(self, position: int, size: int, hashes: bytes) -> bool:
        """Return whether the file is proven, and chunks with just these hashes make up the part of
        size decoded bytes at a position.
        """
        return self._ledger.find_hashes(position, size) == hashes

    @property
    def is_in_doubt(self) -> bool:
        """Whether the file's ledger had a wrong chunk since the response began.

        The wrong chunk may be one of this response.
        """
        return self._ledger.generation != self._generation and not self._ledger.is_full

    def check_doubt(self) -> None:
        """Check that the response is not in doubt.

        Raises:
            IntegrityError: it is.
        """
        if self.is_in_doubt:
            raise IntegrityError("the file has had two different chunks in one place")

    def note_chunks(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Record which chunks of a xorb the response uses next."""
        extend_range(self.chunks, xorb_hash, chunks)
        self._ledger.note_source(xorb_hash, chunks)
        if self._collector is not None:
            self._collector.note_source(xorb_hash, chunks)

    def add(self, position: int, size: int, chunk_hash: bytes) -> None:
        """Add the next chunk; size: decoded bytes."""
        self._end = position + size
        if self._tree is not None:
            self._tree.add(chunk_hash, size)
        if not self._ledger.is_proven:
            if self._collector is not None:
                # Before the ledger has it: if that finds it wrong, its mark is later than the
                # chunk, so the other workers forget the chunk, too.
                self._collector.add(position, size, chunk_hash, time.monotonic_ns())
            self._ledger.note(position, size, chunk_hash)

    def add_origin(self, origin: Provenance | None, chunk: int) -> None:
        """Record the cache entry that the last chunk came from, if it came from one."""
        if origin is not None:
            self._origins.add(origin, chunk)

    def settle(self) -> None:
        """Mark cache entries as proven, now or with the rest of the file; to be called at the end.

        It also updates the memory that the ledger takes.
        """
        if self.is_verified and self._tree is not None:
            self._origins.prove()
        else:
            self._ledger.take_origins(self._origins, self._epoch)
            self._ledgers.watch(self._ledger)
        self._ledgers.trim(self._ledger.file_hash)

    async def pass_on(self, size: int | None) -> None:
        """Send the added chunks to the other workers, before their bytes leave, and verify the file
        if no chunk is missing any more.

        A file may be complete before the end of a response: clients that ask for parts disconnect
        once they have the bytes they need.

        Args:
            size: of the file in bytes; None if it is not known.

        Raises:
            IntegrityError: the file is complete and wrong.
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
        """Verify the response, before its last bytes leave. A ledger that is proven now is stored.

        Args:
            size: of the file in bytes; None if it is not known and the response is a part.

        Raises:
            IntegrityError: the chunks are not the file, alone or together with other parts.
            UpstreamBusy: chunks of other parts were dropped, so the file cannot be verified.
        """
        self._send()
        if self._tree is not None:
            self._judge_whole(self._tree)
        else:
            if not self._ledger.is_proven:
                self._ledgers.look_up(self._ledger)
            self.check_doubt()
            if self.is_whole and not self._ledger.is_complete(self._end):
                raise IntegrityError(f"{self._end} bytes were read, but the file has another size")
            await self._prove(size)
            self.check_doubt()
            self.is_verified = self._ledger.is_proven
            self._check_lost()
        if self._client is not None and self.is_whole and self.is_verified:
            self._ledgers.note_client_right(self._ledger.file_hash, self._client, time.monotonic())
        self._keep()

    def _keep(self) -> None:
        self._ledgers.send_proven(self._ledger)
        if self._store is not None:
            self._store.keep(self._ledger)

    def _check_lost(self) -> None:
        """Check that no chunk was dropped that is needed to verify a part.

        Raises:
            UpstreamBusy: one may have been.
        """
        if self.is_verified or self.since is None:
            return
        ledgers, file_hash = self._ledgers, self._ledger.file_hash
        ledgers.trim(file_hash)
        if self._ledger.is_full or ledgers.was_lost_since(file_hash, self.since):
            raise UpstreamBusy("chunk hashes of the file were dropped before all of it was read")

    def _judge_whole(self, tree: MerkleTree) -> None:
        ledger = self._ledger
        root = tree.file_hash()
        if root != ledger.file_hash:
            raise IntegrityError(
                f"the chunks make file {format_hash(root)}, "
                f"expected {format_hash(ledger.file_hash)}"
            )
        self.is_verified = True
        # In doubt, the ledger may have got its first chunks again, from other responses.
        if self.is_in_doubt:
            return
        if ledger.is_complete(tree.size):
            ledger.set_proven()
        else:
            self._ledgers.note_right(ledger.file_hash, time.monotonic())

    async def _prove(self, size: int | None) -> None:
        """Prove the ledger if it has all chunks of the file."""
        ledger = self._ledger
        if size is None or ledger.is_proven or not ledger.can_be_proven(size):
            return
        generation = ledger.generation
        while ledger.fold(FOLDED_AT_ONCE):  # noqa: ASYNC110 - other tasks run meanwhile
            await asyncio.sleep(0)
        is_still = ledger.generation == generation and ledger.can_be_proven(size)
        if is_still and not ledger.prove():
            raise IntegrityError(f"all parts together are not file {format_hash(ledger.file_hash)}")

    def note_cut(self) -> None:
        """Record that an answer with the file was cut, here and for the other workers."""
        self._ledgers.note_cut(self._ledger.file_hash, time.monotonic())

    def fail(self) -> dict[bytes, ChunkRange]:
        """Forget the chunks of the ledger, since one is wrong. The file counts as cut from now on.

        Returns the chunks that may be wrong, by xorb: those of this response, and the others of the
        ledger. A proven ledger is kept, since all chunks in it are right.
        """
        ledger = self._ledger
        self._origins.clear()
        # What a proven ledger was compared with is right, so that the client has no wrong byte.
        if self._client is not None and (self.is_in_doubt or not ledger.is_proven):
            self._ledgers.note_client_cut(ledger.file_hash, self._client, time.monotonic())
        if ledger.is_proven:
            return self.chunks
        suspects = self.chunks | ledger.sources
        for xorb_hash, chunks in self.chunks.items():
            extend_range(suspects, xorb_hash, chunks)
        if self._tree is None and self.is_in_doubt:
            ledger.forget()  # the worker that found the wrong chunk has sent a mark
        else:
            ledger.clear()
        ledger.sources.clear()
        return suspects


async def recall(ledger: Ledger, ledgers: Ledgers, store: LedgerStore | None) -> None:
    """Add to a ledger what other workers and the disk know of its file."""
    if not ledger.is_proven:
        ledgers.look_up(ledger)
    if store is not None and not ledger.is_proven:
        await store.load(ledger)
