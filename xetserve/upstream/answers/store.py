"""Stored answers, for the event loop: reads wait for a thread, writes are done later."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.upstream.answers.folder import AnswerFolder
from xetserve.upstream.answers.stored_file import Stored

logger = logging.getLogger(__name__)

WAIT_COST: Final = 1024  # bytes of memory for each pending change, besides its texts
READ_TIMEOUT: Final = 2.0  # seconds; a slower disk is worse than none
CLOSE_TIMEOUT: Final = 5.0  # seconds for pending writes when the process ends

T = TypeVar("T")


class AnswerStore:
    """The folder of answers, for the event loop. Writes are done later, one after the other.

    Args:
        max_pending: bytes that may wait to be written; answers beyond that are not stored.
    """

    def __init__(self, folder: Path, *, max_size: int, max_pending: int) -> None:
        self._folder = AnswerFolder(folder, max_size=max_size)
        self._reading = ThreadPoolExecutor(4, "metadata")
        # One thread, so that writes stay in order.
        self._writing = ThreadPoolExecutor(1, "metadata-write")
        self._max_pending = max_pending
        self._pending = 0
        # Pending changes, which reads must see; None: removed.
        self._waiting: dict[str, Stored | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._is_failing = False  # the last write failed

    async def read(
        self, path: str, *, is_imported: bool = False, lead: float = 0.0
    ) -> Stored | None:
        """Return the answer at a path, also one still to be written; None if the disk fails or
        hangs.
        """
        if path in self._waiting and not is_imported:
            return self._waiting[path]
        return await self._run(partial(self._folder.read, path, is_imported=is_imported, lead=lead))

    async def list(self, path: str, *, is_imported: bool = False) -> list[str]:
        """Return the names in a folder."""
        return await self._run(partial(self._folder.list, path, is_imported=is_imported)) or []

    async def has_for_others(self, path: str) -> bool:
        """Return whether the same question has a positive answer for another token."""
        return await self._run(partial(self._folder.has_for_others, path)) or False

    async def count_by_realm(self, limit: int) -> dict[str, int]:
        """Return the number of answers of each Hub, however long it takes; see AnswerFolder."""
        loop = asyncio.get_running_loop()
        count = partial(self._folder.count_by_realm, limit)
        return await loop.run_in_executor(self._reading, count)

    async def _run(self, function: Callable[[], T | None]) -> T | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                return await loop.run_in_executor(self._reading, function)
        except (OSError, TimeoutError) as exc:
            cause = exc.strerror or exc
            LOG_LIMIT.log(logger, logging.WARNING, cause, "metadata: cannot read: %s", exc)
            return None

    def write(
        self,
        path: str,
        stored: Stored,
        *,
        is_minor: bool = False,
        is_first: bool = False,
        only_with: str | None = None,
        lead: float = 0.0,
        is_refusal: bool = False,
    ) -> bool:
        """Store an answer later; see AnswerFolder. False: too much is waiting, so it will not be
        stored.

        Args:
            is_refusal: it invalidates answers, so it may wait even if there is no room for others.
        """
        size = WAIT_COST + len(path) + len(stored.body) + len(stored.about)
        if not self._has_room(size, is_refusal=is_refusal):
            return False
        work = partial(
            self._folder.write,
            path,
            stored,
            is_minor=is_minor,
            is_first=is_first,
            only_with=only_with,
            lead=lead,
        )
        if not is_first:
            self._waiting[path] = stored
        self._submit(path, stored, work, size)
        return True

    def remove(self, path: str) -> None:
        """Remove an answer later."""
        size = WAIT_COST + len(path)
        if self._waiting.get(path, self) is None or not self._has_room(size, is_refusal=True):
            return
        self._waiting[path] = None
        self._submit(path, None, partial(self._folder.remove, path), size)

    def _has_room(self, size: int, *, is_refusal: bool) -> bool:
        limit = self._max_pending * (2 if is_refusal else 1)
        return not self._is_closed and self._pending + size <= limit

    def _submit(
        self, path: str, stored: Stored | None, work: Callable[[], None], size: int
    ) -> None:
        loop = asyncio.get_running_loop()
        self._pending += size

        async def wait() -> None:
            try:
                await loop.run_in_executor(self._writing, work)
            except OSError as exc:
                level = logging.DEBUG if self._is_failing else logging.WARNING
                self._is_failing = True
                logger.log(level, "metadata: cannot write: %s", exc.strerror or exc)
            else:
                if self._is_failing:
                    logger.info("metadata: answers are stored again")
                self._is_failing = False
            finally:
                self._pending -= size
                if path in self._waiting and self._waiting[path] is stored:
                    del self._waiting[path]

        task = loop.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until all has been written."""
        while tasks := set(self._tasks):
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        """Finish writing, within CLOSE_TIMEOUT."""
        self._is_closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.settle()
        for executor in (self._reading, self._writing):
            executor.shutdown(wait=False, cancel_futures=True)
