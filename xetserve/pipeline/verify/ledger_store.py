"""Store proven ledgers in the cache folder, so that they survive a restart.

A thread reads the ledger of a file when the file is first read, and proves it again
(ledger_file.py). A ledger that is damaged, missing or slow to load is ignored. No response waits
while a ledger is stored.
"""

import asyncio
import logging
import os
import time
from typing import Final

from xetserve.base.regular_files import open_regular
from xetserve.errors import FormatError, OtherVersion
from xetserve.metrics.catalogue import CACHE_DAMAGED
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.cache.layout import LEDGERS, make_file_path
from xetserve.pipeline.verify.ledger import MAX_FILE_MEMORY, Ledger
from xetserve.pipeline.verify.ledger_file import (
    MAGIC,
    ChunkList,
    ledger_file_size,
    pack_ledger,
    parse_ledger,
)
from xetserve.xet.hashes import format_hash

logger = logging.getLogger(__name__)

LOAD_TIMEOUT: Final = 1.0  # seconds that a read waits for a ledger, which may arrive later


class LedgerStore:
    """The stored ledgers of a cache folder."""

    def __init__(self, cache: DiskCache) -> None:
        self._cache = cache
        self._store = cache.disk_workers.store
        self._loading: dict[bytes, asyncio.Task[ChunkList | None]] = {}

    async def load(self, ledger: Ledger) -> None:
        """Copy the stored ledger of the file into a ledger, if there is one.

        It never fails, and waits LOAD_TIMEOUT seconds at most.
        """
        if ledger.is_proven or self._cache.is_resting:
            return
        file_hash = ledger.file_hash
        loading = self._loading.get(file_hash)
        if loading is None:
            loading = self._cache.spawn(self._load(file_hash))
            self._loading[file_hash] = loading
            loading.add_done_callback(lambda _: self._loading.pop(file_hash, None))
        done, _ = await asyncio.wait((loading,), timeout=LOAD_TIMEOUT)
        if done and not loading.cancelled() and (chunks := loading.result()) is not None:
            ledger.adopt(chunks)

    async def _load(self, file_hash: bytes) -> ChunkList | None:
        try:
            return await self._cache.disk_workers.run(self._read, file_hash)
        except OSError as exc:
            self._cache.disk_workers.warn("cache: cannot read: %s", exc.strerror or exc)
            return None

    def _read(self, file_hash: bytes) -> ChunkList | None:
        """Read and prove the ledger of a file; runs in a thread."""
        path = self._get_path(file_hash)
        try:
            with open(open_regular(path), "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > MAX_FILE_MEMORY:
                    raise FormatError(f"more than {MAX_FILE_MEMORY} bytes")
                data = file.read() or b""
            # Folding is Python code and holds the interpreter lock; sleeping lets the loop run.
            chunks = parse_ledger(data, file_hash, lambda: time.sleep(0))
        except (FileNotFoundError, OtherVersion):
            return None
        except FormatError as exc:
            logger.info("cache: ledger of %s: %s", format_hash(file_hash), exc)
            CACHE_DAMAGED.add(amount=self._store.remove(path))
            return None
        self._store.touch(path)
        return chunks

    def _is_kept(self, file_hash: bytes) -> bool:
        """Return whether this version has stored a ledger of a file; runs in a thread."""
        try:
            with open(open_regular(self._get_path(file_hash)), "rb", buffering=0) as file:
                return file.read(len(MAGIC)) == MAGIC
        except FileNotFoundError:
            return False

    def keep(self, ledger: Ledger) -> None:
        """Store a proven ledger in the background, unless it is stored already."""
        if ledger.is_kept or not ledger.is_proven or self._cache.is_resting:
            return
        chunks = ledger.get_chunks()
        if chunks is not None:
            ledger.is_kept = True
            self._cache.spawn(self._keep(ledger.file_hash, chunks))

    async def _keep(self, file_hash: bytes, chunks: ChunkList) -> None:
        disk_workers = self._cache.disk_workers
        try:
            if await disk_workers.run(self._is_kept, file_hash):
                return
            temporary = await disk_workers.create(ledger_file_size(len(chunks.starts)))
            if temporary is None:
                return

            def write() -> None:
                try:
                    self._store.write(temporary, pack_ledger(file_hash, chunks))
                    self._store.place(temporary, LEDGERS, f"{format_hash(file_hash)}.xl")
                except OSError:
                    self._store.discard(temporary)
                    raise
                finally:
                    os.close(temporary.fd)

            await disk_workers.run(write)
        except OSError as exc:
            disk_workers.warn("cache: cannot write: %s", exc.strerror or exc)

    def _get_path(self, file_hash: bytes) -> str:
        return make_file_path(self._store.folder, LEDGERS, f"{format_hash(file_hash)}.xl")
