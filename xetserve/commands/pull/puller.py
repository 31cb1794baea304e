"""Fill the cache with a repository: read each file completely, as a client would, and discard it.

Data that is already in the cache is read from there, so a new run continues a stopped one. The
cache drops data that it cannot write in time. The puller then reads the file again, which fetches
the missing data. Data for which there is no room is not fetched again. In the end, the puller looks
which files the cache really has.
"""

import asyncio
import logging
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

from xetserve.base.permissions import describe_os_error
from xetserve.base.sizes import format_size
from xetserve.commands.pull.listing import HandlerClient, Refused, RemoteFile
from xetserve.commands.pull.progress import Progress, show
from xetserve.errors import IntegrityError, UpstreamError, XetserveError
from xetserve.metrics.catalogue import CACHE_ABANDONED
from xetserve.pipeline.cache.disk_cache import DiskCache

logger = logging.getLogger(__name__)

MAX_ROUNDS: Final = 4  # rounds over the files that the cache did not keep completely
MAX_TRIES: Final = 4  # tries of one file in a round, and more while an outage is waited for
FIRST_DELAY: Final = 1.0  # seconds before the second try; each further delay is twice as long
MAX_DELAY: Final = 60.0
_PASSING: Final = (408, 429, 500, 502, 503, 504)
# Causes of dropped data that remain when the file is read again.
_LASTING: Final = ("too large", "no room", "disk")
_ADVICE: Final = "check the free space and cache_size"


class NotKept(XetserveError):
    """The cache does not keep a file."""


@dataclass(slots=True)
class Summary:
    """The result of a run. Sizes are in bytes.

    num_files, size: the requested files that are in the cache now, and their total size.
    upstream_size, cache_size: bytes from upstream and from the cache, of Xet files packed ones.
    is_token_spared: the repository is public, and was pulled without the token.
    failed: path -> reason.
    """

    commit: str = ""
    num_files: int = 0
    size: int = 0
    upstream_size: int = 0
    cache_size: int = 0
    seconds: float = 0.0
    is_token_spared: bool = False
    failed: dict[str, str] = field(default_factory=dict)


class Puller:
    """A run that pulls files of one commit.

    Args:
        can_keep: returns whether the cache keeps blobs (files that are not Xet) of a size in bytes.
        is_kept: returns whether the cache holds the blob with this ETag hash and size.
        find_lack: returns what the cache lacks of a file; None: nothing. It may raise XetserveError
            if the Hub fails.
        num_jobs: files that are read at the same time.
        outage_patience: seconds from the first failure for which an upstream that fails is tried
            again.
    """

    def __init__(
        self,
        client: HandlerClient,
        commit: str,
        cache: DiskCache,
        can_keep: Callable[[int], bool],
        is_kept: Callable[[str, int], Awaitable[bool]],
        find_lack: Callable[[RemoteFile], Awaitable[str | None]],
        progress: Progress,
        *,
        num_jobs: int,
        outage_patience: float = 0.0,
    ) -> None:
        self.summary = Summary(commit)
        self._client = client
        self._commit = commit
        self._cache = cache
        self._can_keep = can_keep
        self._is_kept = is_kept
        self._find_lack = find_lack
        self._progress = progress
        self._num_jobs = num_jobs
        self._outage_patience = outage_patience
        self._trouble = ""  # why the cache can keep nothing any more

    async def run(self, files: Sequence[RemoteFile]) -> Summary:
        """Pull files; failed files are in the summary."""
        started = time.monotonic()
        left = list(files)
        for number in range(MAX_ROUNDS):
            if number:
                logger.info("the cache dropped parts of %d files: reading them again", len(left))
            # The cache could not keep up with several at a time.
            left = await self._run_round(left, 1 if number else self._num_jobs)
            if not left:
                break
        for file in files:
            if file.path in self.summary.failed:
                continue
            lack = await self._look_for_lack(file)
            if lack is None:
                self.summary.num_files += 1
                self.summary.size += file.size
            elif file in left:
                self._fail(file, f"the cache could not store all of it: {_ADVICE}")
            else:
                self._fail(file, f"it is not in the cache any more ({lack}): {_ADVICE}")
        self.summary.seconds = time.monotonic() - started
        return self.summary

    async def _run_round(self, files: list[RemoteFile], num_jobs: int) -> list[RemoteFile]:
        """Read files; return those to read again, because parts were dropped that may fit now."""
        queue = iter(files)
        read: list[RemoteFile] = []
        dropped, lasting = CACHE_ABANDONED.total, _count_lasting()

        async def work() -> None:
            for file in queue:
                if self._trouble:
                    self._fail(file, f"not read, because nothing can be kept: {self._trouble}")
                    continue
                try:
                    await self._pull(file)
                except XetserveError as exc:
                    self._fail(file, str(exc))
                else:
                    read.append(file)
                if _count_lasting() > lasting:
                    await self._check_cache()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(num_jobs, len(files))):
                group.create_task(work())
        await self._cache.settle()
        if CACHE_ABANDONED.total == dropped and not self._cache.is_resting:
            return []
        again = [file for file in read if await self._look_for_lack(file) is not None]
        if again and _count_lasting() > lasting:
            for file in again:
                self._fail(file, f"the cache could not store all of it: {_ADVICE}")
            return []
        return again

    async def _check_cache(self) -> None:
        """Note the reason if the cache can keep nothing at all now: then the rest is not read."""
        try:
            await self._cache.check()
        except OSError as exc:
            self._trouble = describe_os_error(exc) or "the disk does not answer"

    async def _look_for_lack(self, file: RemoteFile) -> str | None:
        """Return what the cache lacks of a file; None: nothing, or the Hub fails just now."""
        try:
            return await self._find_lack(file)
        except XetserveError as exc:
            logger.info("%s: cannot look whether it is complete: %s", show(file.path), exc)
            return None

    def _fail(self, file: RemoteFile, reason: str) -> None:
        self.summary.failed[file.path] = reason
        self._progress.print_line(f"{show(file.path)}: {show(reason)}")

    async def _pull(self, file: RemoteFile) -> None:
        """Read one file; retry errors that may pass.

        Raises:
            XetserveError: the file cannot be read, or the cache does not keep it.
        """
        delay, num_failures, failing_since = FIRST_DELAY, 0, 0.0
        while True:
            try:
                return await self._read(file)
            except (Refused, UpstreamError, IntegrityError) as exc:
                now = time.monotonic()
                failing_since = failing_since or now
                num_failures += 1
                may_pass = exc.status in _PASSING if isinstance(exc, Refused) else True
                is_outage = not isinstance(exc, IntegrityError)
                is_late = not is_outage or now - failing_since >= self._outage_patience
                if not may_pass or (num_failures >= MAX_TRIES and is_late):
                    raise
                named = exc.retry_after if isinstance(exc, Refused) else None
                wait = min(MAX_DELAY, max(delay, named or 0.0))
                level = logging.INFO if num_failures == 1 else logging.DEBUG
                logger.log(level, "%s: %s; retrying in %g seconds", show(file.path), exc, wait)
            await sleep(wait)
            delay *= 2

    async def _read(self, file: RemoteFile) -> None:
        """Read one file, once."""
        client = self._client
        if client.revision != self._commit:
            # Clients first request the file by its branch: let the server cache that answer too.
            await client.head(client.file_target(file.path, client.revision))
        if not self._can_keep(file.size) and not await self._is_xet(file):
            raise NotKept("not a Xet file, and larger than half of the cache: not kept")
        request, response = await client.ask("GET", client.file_target(file.path, self._commit))
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
            stored = record.cache_bytes or 0
            fetched = record.upstream_bytes  # unknown for a file that is not Xet
            self.summary.upstream_size += received - stored if fetched is None else fetched
            self.summary.cache_size += stored
        if received != file.size or record.is_verified is False:
            self._progress.add(-received)
            if received != file.size:
                raise IntegrityError(f"{received} bytes, expected {file.size}")
            raise IntegrityError("the file could not be verified")
        if record.is_verified is None and file.size:
            etag = next((v for name, v in response.headers if name.lower() == "etag"), "")
            if not await self._is_kept(etag.strip('"'), file.size):
                raise NotKept("not a Xet file, and the cache could not store it")
        self._progress.finish(f"{show(file.path)} {format_size(file.size)}")

    async def _is_xet(self, file: RemoteFile) -> bool:
        """Return whether a file is Xet, without reading it; the Hub's own URLs may not show it."""
        repo = self._client.repo
        if "/" not in repo.id:
            return True  # unknown: /download needs an owner, so the file must be read
        query = urlencode({"type": repo.kind, "revision": self._commit})
        fields = await self._client.head(f"/download/{repo.id}/{quote(file.path)}?{query}")
        return "x-xet-hash" in fields


def _count_lasting() -> float:
    """Return how many writes were dropped for causes that remain."""
    return sum(CACHE_ABANDONED.values[(cause,)] for cause in _LASTING)
