"""Cached reconstructions: equal questions become one, and known answers serve while the CAS fails.

Fresh answers, with their signed URLs, are kept in memory for the token that asked, like all answers
to a token (upstream/answers/cache.py). Reconstructions are also archived on disk, without URLs
(reconstruction_archive.py). A permission beside them records, for each token and repository, when
the CAS last showed that token the file. Without a permission, nothing from the archive is used.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from xetserve.base.lru_dict import LruDict
from xetserve.errors import (
    RangeUnsatisfiable,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamOffline,
    UrlExpired,
)
from xetserve.metrics.catalogue import METADATA_STALE
from xetserve.upstream.answers.backoff import Backoff
from xetserve.upstream.answers.cache import STALE_PATIENCE, AnswerCache
from xetserve.upstream.answers.question import Answer, Question, make_holder
from xetserve.upstream.cas.reconstruction_archive import (
    STORED_URL,
    ReconstructionArchive,
    pack_plan,
)
from xetserve.upstream.cas.source import Access, CasSource, DataResponse
from xetserve.upstream.slices import run_slices
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import (
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    iter_reconstruction,
)

MAX_NOTES: Final = 1000  # permissions of a token and a file that are remembered
NOTE_PAUSE: Final = 10.0  # seconds after which a permission is recorded again


@runtime_checkable
class ScopedAccess(Access, Protocol):
    """An Access whose client is known. Answers to any other Access are not cached.

    scope: see upstream/answers/scope.py. repo_name: the repository that it is for.
    """

    scope: str
    repo_name: str


class _TooLargeToKeep(Exception):
    """The answer is used, but is too large to be cached."""


class CachedReconstructions:
    """A CAS that is asked only for answers that are not known."""

    max_stored_size = None

    def __init__(self, inner: CasSource, metadata: AnswerCache) -> None:
        self._inner = inner
        self._metadata = metadata
        policy = metadata.policy
        # These answers are of no use without the CAS: their URLs expire.
        fresh = replace(policy, stale_for=0.0, is_offline=False, max_size=policy.max_size // 2)
        self._fresh = AnswerCache(fresh, clock=metadata.clock)
        self._archive = None if metadata.store is None else ReconstructionArchive(metadata.store)
        self._noted: LruDict[Question, float] = LruDict(max_num=MAX_NOTES)
        self._epoch = 0  # answers of earlier epochs have URLs that expired
        self._backoff = Backoff(policy.negative_ttl, metadata.clock)

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Return the reconstruction of a range of a file; see CasClient.

        Raises:
            UpstreamOffline: the CAS may not be asked, and there is no stored answer.
        """
        policy = self._metadata.policy
        if not isinstance(access, ScopedAccess):
            return await self._inner.fetch_reconstruction(access, file_hash, byte_range)
        name = format_hash(file_hash)
        grant = Question(access.scope, "plan", access.repo_name, name)
        if policy.is_offline:
            return await self._find_stored(grant, file_hash, byte_range)
        old: Reconstruction | RangeUnsatisfiable | None = None
        if policy.stale_for:
            try:
                old = await self._find_stored(grant, file_hash, byte_range)
            except RangeUnsatisfiable as exc:
                old = exc
            except UpstreamOffline:
                pass
        if old is None:
            return await self._ask(access, grant, file_hash, byte_range)
        if self._backoff.find(access.scope, "plan") is None:
            try:
                async with asyncio.timeout(STALE_PATIENCE):
                    return await self._ask(access, grant, file_hash, byte_range)
            except TimeoutError:
                pass
            except UpstreamError as exc:
                if not exc.retriable:
                    raise
            self._backoff.note_down(access.scope, "plan")
        METADATA_STALE.add("plan")
        if isinstance(old, RangeUnsatisfiable):
            raise old
        return old

    async def _ask(
        self, access: ScopedAccess, grant: Question, file_hash: bytes, asked: ByteRange
    ) -> Reconstruction:
        # Asks the Hub again if its permission is old: a cached answer must not extend it.
        await access.get_token()
        given: list[Reconstruction] = []  # the answer itself, if this call asked

        async def ask(patient: bool) -> Answer:
            answer = await self._inner.fetch_reconstruction(access, file_hash, asked)
            given.append(answer)
            data = await pack_plan(answer)
            if data is None:
                raise _TooLargeToKeep
            return Answer(data)

        # For this file alone: a CAS that does not know it says nothing about other files of the
        # repository.
        repo = f"{grant.repo} {grant.name}"
        question = Question(grant.scope, "plan", repo, f"{self._epoch} {asked.start}-{asked.end}")
        try:
            answer = await self._fresh.get(question, ask)
        except _TooLargeToKeep:
            if not given:  # another call asked
                given.append(await self._inner.fetch_reconstruction(access, file_hash, asked))
        except RangeUnsatisfiable:
            self._note(grant)
            if self._archive is not None:
                await self._archive.note_past_end(file_hash, asked.start)
            raise
        except (UpstreamDenied, UpstreamMissing):
            self._noted.pop(grant)
            self._metadata.drop(grant)
            raise
        if not given:
            return await run_slices(iter_reconstruction(answer.data))
        self._note(grant)
        if self._archive is not None:
            await self._archive.add(file_hash, asked, given[0])
        return given[0]

    def _note(self, grant: Question) -> None:
        """Record that the CAS shows this token the file."""
        now = self._metadata.clock()
        noted = self._noted.peek(grant)
        if noted is None or not 0 <= now - noted < NOTE_PAUSE:
            self._noted.put(grant, now)
            self._metadata.put(grant, Answer(b""))

    async def _find_stored(
        self, grant: Question, file_hash: bytes, asked: ByteRange
    ) -> Reconstruction:
        """Return the archived reconstruction, if this token has a permission that is new enough.

        Raises:
            RangeUnsatisfiable: the file is known to end before the range.
            UpstreamOffline: there is no permission, or the archive lacks part of the range.
        """
        if self._archive is not None and await self._metadata.find_old(grant) is not None:
            takes_imported = self._metadata.policy.is_offline
            found = await self._archive.find(file_hash, asked, takes_imported=takes_imported)
            if found is not None:
                return found
            reason = None
        else:
            reason = await self._metadata.find_reason(grant, make_holder(grant.scope, grant.name))
        raise UpstreamOffline(
            reason or "this server is offline, and has not stored all of the file's reconstruction"
        )

    @asynccontextmanager
    async def open_data(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        *,
        is_proven: bool = False,
        takes_imported: bool = True,
    ) -> AsyncIterator[DataResponse]:
        """Open packed bytes; see CasClient.

        Raises:
            UpstreamOffline: the server is offline.
        """
        if self._metadata.policy.is_offline:
            raise UpstreamOffline(
                "this server is offline, and has not stored all of the file's data"
            )
        if info.url == STORED_URL:
            raise UrlExpired("the CAS could not be asked where data is that is not stored")
        try:
            async with self._inner.open_data(xorb_hash, info) as body:
                yield body
        except UrlExpired:
            self._epoch += 1
            raise

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Do nothing: no data is stored here."""
