"""Track the proven chunks of the entries that were used last, and mark proven entries on disk."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from xetserve.base.lru_dict import LruDict
from xetserve.pipeline.cache.chunk_hashes import ChunkHashes, name_of
from xetserve.pipeline.cache.coverage import Coverage
from xetserve.pipeline.cache.entry import EntryKey, Standing
from xetserve.pipeline.cache.store import Segment
from xetserve.pipeline.cache.write import DiskWorkers

MAX_COVERAGES: Final = 1024  # entries whose proven chunks are tracked
MAX_COVERED: Final = 2**22  # chunks of these entries: about 4 MB


class CoverageTable:
    """Finds the coverage of an entry, and marks an entry on disk once all its chunks are proven.

    Args:
        spawn: starts a task that renames or compares entries.

    hashes: of the chunks that were hashed as they were read from entries or written to them.
    """

    def __init__(
        self,
        disk_workers: DiskWorkers,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._disk_workers = disk_workers
        self._spawn = spawn
        # By path.
        self._coverages: LruDict[str, Coverage] = LruDict(
            max_num=MAX_COVERAGES, max_cost=MAX_COVERED
        )
        self.hashes = ChunkHashes()
        self._partly_proven: dict[bytes, dict[str, Coverage]] = {}  # by xorb and path
        self._marking: set[asyncio.Task[None]] = set()

    def make(self, key: EntryKey, path: str | None = None) -> Coverage:
        """Return a new coverage of an entry; path: None while the entry is being written."""
        return Coverage(
            key.xorb_hash, key.chunks, self._mark, path, self._note_part, self._note_hash
        )

    def _note_hash(self, coverage: Coverage, chunk: int, chunk_hash: bytes) -> None:
        path = coverage.path
        key = coverage if path is None else name_of(path)
        self.hashes.note(key, coverage.chunks, chunk, chunk_hash)

    def add(self, key: EntryKey, coverage: Coverage, path: str) -> None:
        """Add the coverage of an entry that has been written to a path."""
        self.hashes.place(coverage, path, coverage.chunks)
        if Standing.of(path) is not Standing.PROVEN:
            self._coverages.put(path, coverage, key.num_chunks)
            coverage.settle(path)

    def find(self, segment: Segment) -> Coverage | None:
        """Return the coverage of a stored entry; None if all its chunks are proven, and were
        hashed by this process.
        """
        path = segment.path
        is_proven = Standing.of(path) is Standing.PROVEN
        if is_proven and self.hashes.has_all(path):
            return None
        coverage = self._coverages.get(path)
        if coverage is None:
            key = segment.entry.key
            coverage = self.make(key, path)
            if is_proven:
                coverage.set_proven()
            self._coverages.put(path, coverage, key.num_chunks)
        return coverage

    def _mark(self, path: str) -> None:
        """Mark an entry as proven, without waiting for it."""

        async def mark() -> None:
            try:
                await self._disk_workers.run(self._disk_workers.store.mark_proven, path)
            except OSError as exc:
                self._disk_workers.warn("cache: cannot rename: %s", exc.strerror or exc)

        self._coverages.pop(path)
        task = self._spawn(mark())
        self._marking.add(task)
        task.add_done_callback(self._marking.discard)

    def _note_part(self, coverage: Coverage) -> None:
        """Compare the unproven chunks of an entry with other entries, in the background.

        Entries overlap where fetch ranges do. A chunk in two entries is read from one of them, and
        the proof of the file proves it only there. Example: the file is read from the entries 0-9
        and 6-12, so the proof covers 0-9 of the first one and 9-12 of the second one. Its records
        6-9 are then compared with those of the first one.
        """
        path = coverage.path
        assert path is not None
        if coverage.xorb_hash not in self._partly_proven:
            self._partly_proven[coverage.xorb_hash] = {}
            self._spawn(self._fill_gaps(coverage.xorb_hash))
        self._partly_proven[coverage.xorb_hash][path] = coverage

    async def _fill_gaps(self, xorb_hash: bytes) -> None:
        await asyncio.sleep(0)  # a proof reports all its entries in one turn of the loop
        partly_proven = self._partly_proven.pop(xorb_hash)
        if self._marking:
            await asyncio.wait(self._marking)
        gaps = {path: each.find_gaps() for path, each in partly_proven.items()}
        workers = self._disk_workers
        try:
            proven = await workers.run(workers.store.prove_gaps, xorb_hash, gaps)
        except OSError as exc:
            workers.warn("cache: cannot read: %s", exc.strerror or exc)
            return
        for path in proven:
            self._coverages.pop(path)
