"""Prove files again after a cut, in the background.

After damage, parts of a file are refused until the file is proven (verify/ledgers.py). Without a
client that reads all of it, that would last up to an hour. So a request for a part has the server
read the whole file itself, and throw the bytes away: the proof stays.

One file at a time, for the clients that are refused now, and with what others leave: the reader
holds the least that a reader can, waits while half of the budget is in use, and sleeps most of the
time while there are other readers. It uses the access of the request that was refused last, since
nobody else has asked for the file.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.base.request_id import REQUEST_ID
from xetserve.errors import UpstreamError, XetserveError
from xetserve.metrics.catalogue import PROOFS
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.reader import FileReader
from xetserve.pipeline.verify.ledgers import PROVING_SECONDS, Ledgers
from xetserve.upstream.cas.source import Access
from xetserve.xet.hashes import format_hash

logger = logging.getLogger(__name__)

MAX_PROVED: Final = 12 * 1024**3  # bytes; larger files mostly have no ledger afterwards
MAX_WANTED: Final = 100  # files
MAX_TRIES: Final = 3  # after a request; if all fail, the next request has it tried again
FIRST_PAUSE: Final = 5.0  # seconds after a failure; doubled after each
MAX_PAUSE: Final = 900.0
RATE: Final = 64e6  # bytes per second that are expected before anything is measured
BUSY_PAUSE: Final = 0.1  # seconds between two looks whether others need the budget
POLITE: Final = 3  # times as long as a block took is slept while others read

Read = Callable[[Access, bytes, int], FileReader]


@dataclass(slots=True)
class _Wanted:
    """A file to be proven.

    tries_left: until another request asks for the file.
    num_failures: tries in a row that have failed.
    not_before: when the next try may begin, seconds of the monotonic clock.
    began, done: of the try that runs: when it began, and bytes so far.
    """

    access: Access
    size: int
    request_id: str
    tries_left: int = MAX_TRIES
    num_failures: int = 0
    not_before: float = 0.0
    began: float = 0.0
    done: int = 0

    def get_left(self, now: float) -> float:
        """Return the seconds that the proof will still take, estimated."""
        elapsed = now - self.began
        rate = self.done / elapsed if self.done and elapsed > 0 else RATE
        return max(0.0, self.not_before - now) + (self.size - self.done) / rate


class Prover:
    """Reads files that were cut, one after the other.

    Args:
        read: makes a reader of a whole file.
        budget: the one that the readers take from.
    """

    def __init__(self, read: Read, ledgers: Ledgers, budget: ByteBudget) -> None:
        self._read = read
        self._ledgers = ledgers
        self._budget = budget
        self._wanted: dict[bytes, _Wanted] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, access: Access, file_hash: bytes, size: int) -> float:
        """Start a proof of a file; return how many seconds its parts stay refused, estimated."""
        now = time.monotonic()
        suspect = self._ledgers.get_suspect_left(file_hash, now)
        if not self._is_needed(file_hash):
            return suspect
        if size > MAX_PROVED:
            return self._ledgers.get_cut_left(file_hash, now)
        wanted = self._wanted.get(file_hash)
        if wanted is None:
            wanted = _Wanted(access, size, REQUEST_ID.get())
            self._forget_old()
            if len(self._wanted) == MAX_WANTED:
                return max(suspect, wanted.get_left(now))
            self._wanted[file_hash] = wanted
        elif not wanted.done:  # the newest right to read is the one that will last longest
            wanted.access, wanted.request_id = access, REQUEST_ID.get()
        wanted.tries_left = MAX_TRIES
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        return max(suspect, wanted.get_left(now))

    def _forget_old(self) -> None:
        """Forget files that nobody has asked for since they could not be proven."""
        if len(self._wanted) == MAX_WANTED:
            old = (name for name, wanted in self._wanted.items() if not wanted.tries_left)
            if (name := next(old, None)) is not None:
                del self._wanted[name]

    async def aclose(self) -> None:
        """Stop."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _run(self) -> None:
        while True:
            now = time.monotonic()
            waiting = [item for item in self._wanted.items() if item[1].tries_left]
            if not waiting:
                return
            file_hash, wanted = min(waiting, key=lambda item: item[1].not_before)
            if wanted.not_before > now:
                await asyncio.sleep(min(1.0, wanted.not_before - now))
            elif not self._is_needed(file_hash):
                del self._wanted[file_hash]
            elif self._ledgers.is_being_proven(file_hash, now):
                wanted.not_before = now + 1.0  # by another worker
            else:
                await self._prove(file_hash, wanted)

    def _is_needed(self, file_hash: bytes) -> bool:
        return self._ledgers.needs_proof(file_hash, time.monotonic())

    async def _prove(self, file_hash: bytes, wanted: _Wanted) -> None:
        """Try to prove a file, and decide when to try again if that fails."""
        REQUEST_ID.set(wanted.request_id)
        name, wanted.began = format_hash(file_hash), time.monotonic()
        logger.info(
            "proving file %s of %d bytes again, since it was cut and parts of it are asked for",
            name,
            wanted.size,
        )
        error: XetserveError | None = None
        try:
            await self._read_all(file_hash, wanted)
        except XetserveError as exc:
            error = exc
        took, wanted.done = time.monotonic() - wanted.began, 0
        if error is None and not self._is_needed(file_hash):
            PROOFS.add("proven")
            logger.info("file %s is proven again after %.1f s", name, took)
            del self._wanted[file_hash]
            return
        PROOFS.add("failed")
        is_final = isinstance(error, UpstreamError) and not error.retriable
        wanted.tries_left = 0 if is_final else wanted.tries_left - 1
        pause = min(FIRST_PAUSE * 2**wanted.num_failures, MAX_PAUSE)
        wanted.num_failures += 1
        wanted.not_before = time.monotonic() + pause
        reason = error or "it was cut again meanwhile"
        text = "file %s is not proven, again after %.0f s: %s"
        LOG_LIMIT.log(logger, logging.WARNING, reason, text, name, pause, reason)

    async def _read_all(self, file_hash: bytes, wanted: _Wanted) -> None:
        marked = -PROVING_SECONDS
        async with aclosing(self._read(wanted.access, file_hash, wanted.size)) as reader:
            while True:
                before = time.monotonic()
                if before - marked > PROVING_SECONDS / 3:
                    if not self._is_needed(file_hash):
                        return  # another worker has proven it meanwhile
                    marked = before
                    self._ledgers.note_proving(file_hash, before)
                block = await anext(reader, None)
                if block is None:
                    return
                wanted.done += sum(map(len, block))
                await self._let_others_read(time.monotonic() - before)

    async def _let_others_read(self, took: float) -> None:
        """Wait while others need what a block costs, which took so many seconds."""
        is_alone = self._budget.num_readers == 1
        await asyncio.sleep(0.0 if is_alone else POLITE * took)
        while self._is_crowded():  # noqa: ASYNC110 - looking is cheaper than being told
            await asyncio.sleep(BUSY_PAUSE)

    def _is_crowded(self) -> bool:
        """Return whether other readers use a good part of the budget."""
        return self._budget.num_readers > 1 and 2 * self._budget.held > self._budget.limit
