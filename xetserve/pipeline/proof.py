"""Holding what one response reads against what the file has to be.

What is known to make the file hash, the ledger of a proven file, each chunk is held against at its place. Of a file that is
not proven, a whole response is folded on the way, and its root is the file hash or the answer is cut. Parts are
proven by the ledger, with the part that completes it.
"""

import asyncio
from typing import Final

from xetserve.errors import IntegrityError
from xetserve.pipeline.ledger import Ledger, extend_range
from xetserve.pipeline.ledger_shelf import LedgerShelf
from xetserve.xet.hashes import MerkleTree, format_hash
from xetserve.xet.reconstruction import ChunkRange

FOLDED_AT_ONCE: Final = 4096  # chunks, of some milliseconds


class Proof:
    """The proof of one response. Positions are decoded bytes in the file.

    Args:
        is_whole: whether the response is the whole file.
        shelf: where proven ledgers are stored.

    is_verified: whether all that was read belongs to the file, as far as finish has been told.
    chunks: what was to be read, by xorb: from the first of its chunks to the last.
    """

    def __init__(self, ledger: Ledger, *, is_whole: bool, shelf: LedgerShelf | None = None) -> None:
        self.is_verified = False
        self.chunks: dict[bytes, ChunkRange] = {}
        self._ledger = ledger
        self._generation = ledger.generation
        self._is_whole = is_whole
        self._tree = MerkleTree() if is_whole and not ledger.is_proven else None
        self._end = 0  # of what was added last
        self._shelf = shelf

    async def prepare(self) -> None:
        """Look whether the file was proven before; to be called before anything is added."""
        if self._shelf is not None and not self._ledger.is_proven:
            await self._shelf.load(self._ledger)
        self._generation = self._ledger.generation
        if self._ledger.is_proven:
            self._tree = None  # it could tell no more than the list does

    @property
    def is_proven(self) -> bool:
        """Whether every chunk is held against the list of a proven file."""
        return self._ledger.is_proven

    def contradicts(self, position: int, size: int, chunk_hash: bytes) -> bool:
        """Tell whether a chunk cannot be the file's, because the file is known."""
        ledger = self._ledger
        return ledger.is_proven and not ledger.matches(position, size, chunk_hash)

    def note_chunks(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Take in where the next chunks come from."""
        extend_range(self.chunks, xorb_hash, chunks)
        self._ledger.note_source(xorb_hash, chunks)

    def add(self, position: int, size: int, chunk_hash: bytes) -> None:
        """Take in the next chunk, which has size decoded bytes."""
        self._end = position + size
        if self._tree is not None:
            self._tree.add(chunk_hash, size)
        if not self._ledger.is_proven:
            self._ledger.note(position, size, chunk_hash)

    async def finish(self, size: int | None) -> None:
        """Judge, before the last bytes leave; what is proven by that is stored.

        Args:
            size: of the file; None: it is not known, and this is a part.

        Raises:
            IntegrityError: what was read is not the file, or together with other parts is not.
        """
        await self._judge(size)
        if self._shelf is not None:
            self._shelf.keep(self._ledger)

    async def _judge(self, size: int | None) -> None:
        ledger = self._ledger
        if self._tree is not None:
            root = self._tree.file_hash()
            if root != ledger.file_hash:
                raise IntegrityError(
                    f"the chunks make file {format_hash(root)}, expected {format_hash(ledger.file_hash)}"
                )
            self.is_verified = True
            if ledger.is_complete(self._tree.size):
                ledger.is_proven = True  # it was told the same chunks, or has cleared itself
            return
        if self._is_whole and not ledger.is_complete(self._end):
            raise IntegrityError(f"a whole file of {self._end} bytes, proven to have another size")
        if size is not None and ledger.can_be_proven(size) and not ledger.is_proven:
            generation = ledger.generation
            while ledger.fold(FOLDED_AT_ONCE):  # noqa: ASYNC110 - others have their turn
                await asyncio.sleep(0)
            is_still = ledger.generation == generation and ledger.can_be_proven(size)
            if is_still and not ledger.prove():
                raise IntegrityError(
                    f"all parts together are not file {format_hash(ledger.file_hash)}"
                )
        self.is_verified = ledger.is_proven and ledger.generation == self._generation

    def fail(self) -> dict[bytes, ChunkRange]:
        """Forget what the ledger has: some of it is wrong.

        Gives the chunks that it may be, by xorb: those of this response, and of those before it that have not been proven.
        A list that is proven stays: it is what shows who is wrong.
        """
        ledger = self._ledger
        if ledger.is_proven:
            return self.chunks
        suspects = self.chunks | ledger.sources
        for xorb_hash, chunks in self.chunks.items():
            extend_range(suspects, xorb_hash, chunks)
        ledger.clear()
        ledger.sources.clear()
        return suspects
