"""Filling the cache with a repository: every file is read whole and thrown away, as if clients had
asked for it.

What is in the cache already comes from there, so a run that was stopped is simply started again.
The cache may drop what it cannot write in time; here that counts: a file of which something was
dropped is read again, and what is missing fetched.
"""

import asyncio
import logging
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

from xetserve.commands.pull.listing import Asker, Refused, RemoteFile
from xetserve.commands.pull.progress import Progress, format_size, show
from xetserve.errors import IntegrityError, UpstreamError, XetserveError
from xetserve.metrics.catalogue import CACHE_ABANDONED, CACHE_EVICTIONS
from xetserve.pipeline.cache.disk_cache import DiskCache

logger = logging.getLogger(__name__)

MAX_ROUNDS: Final = 4  # over what could not be kept
MAX_TRIES: Final = 4  # of one file
FIRST_DELAY: Final = 1.0  # seconds before the second try, twice as many before the third
MAX_DELAY: Final = 60.0
_PASSING: Final = (408, 429, 500, 502, 503, 504)


class NotKept(XetserveError):
    """A file was read, but is not in the cache."""


@dataclass(slots=True)
class Summary:
    """What a run did. Sizes in bytes.

    num_files, size: of what was wanted and is in the cache now.
    upstream_size, cache_size: packed bytes of Xet files that came from upstream, and from the
        cache.
    num_evicted: files that left the cache meanwhile, because it was full.
    failed: path -> why.
    """

    commit: str = ""
    num_files: int = 0
    size: int = 0
    upstream_size: int = 0
    cache_size: int = 0
    num_evicted: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)


class Puller:
    """Pulls files of one commit.

    Args:
        can_keep: tells whether files that are not Xet are kept at all, if they have so many bytes.
        is_kept: tells of one, by the hash that is its ETag and its size, whether it is stored.
        num_jobs: files that are read at the same time.
    """

    def __init__(
        self,
        asker: Asker,
        commit: str,
        cache: DiskCache,
        can_keep: Callable[[int], bool],
        is_kept: Callable[[str, int], Awaitable[bool]],
        progress: Progress,
        *,
        num_jobs: int,
    ) -> None:
        self.summary = Summary(commit)
        self._asker = asker
        self._commit = commit
        self._cache = cache
        self._can_keep = can_keep
        self._is_kept = is_kept
        self._progress = progress
        self._num_jobs = num_jobs

    async def run(self, files: Sequence[RemoteFile]) -> Summary:
        """Pull files; what fails is in the summary."""
        started = time.monotonic()
        evicted = CACHE_EVICTIONS.total
        left = list(files)
        for number in range(MAX_ROUNDS):
            if number:
                logger.info("%d files were not kept whole: reading them again", len(left))
            # One at a time, when several were too much.
            num_jobs = 1 if number else self._num_jobs
            left = await self._run_round(left, num_jobs, is_last=number == MAX_ROUNDS - 1)
            if not left:
                break
        self.summary.seconds = time.monotonic() - started
        self.summary.num_evicted = int(CACHE_EVICTIONS.total - evicted)
        return self.summary

    async def _run_round(
        self, files: list[RemoteFile], num_jobs: int, *, is_last: bool
    ) -> list[RemoteFile]:
        """Read files; gives those that are not all in the cache, though they could be read."""
        queue = iter(files)
        finished: list[RemoteFile] = []
        again: list[RemoteFile] = []
        noticed = 0.0  # times that something was dropped, while a file was read

        async def work() -> None:
            nonlocal noticed
            for file in queue:
                before = CACHE_ABANDONED.total
                try:
                    await self._pull(file)
                except XetserveError as exc:
                    self._fail(file, str(exc))
                    continue
                if CACHE_ABANDONED.total > before or self._cache.is_resting:
                    again.append(file)
                else:
                    finished.append(file)
                noticed = CACHE_ABANDONED.total

        noticed = CACHE_ABANDONED.total
        async with asyncio.TaskGroup() as group:
            for _ in range(min(num_jobs, len(files))):
                group.create_task(work())
        await self._cache.settle()
        if CACHE_ABANDONED.total > noticed:  # what was written last; whose it was is not known
            again, finished = again + finished, []
        for file in finished:
            self.summary.num_files += 1
            self.summary.size += file.size
        if is_last:
            for file in again:
                self._fail(file, "the cache could not keep all of it: is there room for it?")
            return []
        return again

    def _fail(self, file: RemoteFile, reason: str) -> None:
        self.summary.failed[file.path] = reason
        self._progress.say(f"{show(file.path)}: {show(reason)}")

    async def _pull(self, file: RemoteFile) -> None:
        """Read one file, with several tries where it may help.

        Raises:
            XetserveError: it cannot be had, or not be kept.
        """
        delay = FIRST_DELAY
        for number in range(MAX_TRIES):
            try:
                return await self._read(file)
            except (Refused, UpstreamError, IntegrityError) as exc:
                may_pass = exc.status in _PASSING if isinstance(exc, Refused) else True
                if not may_pass or number == MAX_TRIES - 1:
                    raise
                named = exc.retry_after if isinstance(exc, Refused) else None
                wait = min(MAX_DELAY, max(delay, named or 0.0))
                logger.info("%s: %s; again in %g seconds", show(file.path), exc, wait)
            await sleep(wait)
            delay *= 2
        return None

    async def _read(self, file: RemoteFile) -> None:
        """Read one file, once."""
        asker = self._asker
        if asker.revision != self._commit:
            # Clients ask for it by the name of the branch first.
            await asker.head(asker.file_target(file.path, asker.revision))
        if not self._can_keep(file.size) and not await self._is_xet(file):
            raise NotKept("not Xet, and larger than half of the cache: not kept")
        request, response = await asker.ask("GET", asker.file_target(file.path, self._commit))
        received = 0
        try:
            if isinstance(response.body, bytes):
                received = len(response.body)
                self._progress.add(received)
            else:
                async for block in response.body:
                    received += (size := sum(map(len, block)))
                    self._progress.add(size)
                    await self._cache.catch_up()
        except BaseException:
            self._progress.add(-received)
            raise
        finally:
            await response.aclose()
        record = request.record
        if received != file.size or record.is_verified is False:
            self._progress.add(-received)
            if received != file.size:
                raise UpstreamError(f"{received} bytes, expected {file.size}")
            raise IntegrityError("it was not verified")
        self.summary.upstream_size += record.upstream_bytes or 0
        self.summary.cache_size += record.cache_bytes or 0
        if record.is_verified is None and file.size:
            etag = next((v for name, v in response.headers if name.lower() == "etag"), "")
            if not await self._is_kept(etag.strip('"'), file.size):
                raise NotKept("not Xet, and could not be kept")
        self._progress.finish(f"{show(file.path)} {format_size(file.size)}")

    async def _is_xet(self, file: RemoteFile) -> bool:
        """Ask whether a file is Xet, without reading it; the Hub's own URLs may hide that."""
        repo = self._asker.repo
        if "/" not in repo.id:
            return True  # only reading it will tell
        query = urlencode({"type": repo.kind, "revision": self._commit})
        fields = await self._asker.head(f"/download/{repo.id}/{quote(file.path)}?{query}")
        return "x-xet-hash" in fields
