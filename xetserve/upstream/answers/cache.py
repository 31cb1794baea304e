"""Answers of the Hub and the CAS, cached for a while for each token.

A positive answer is used for `ttl` seconds, a negative one for `negative_ttl`. Then the upstream is
asked again; for answers that never change, only whether the token may still read. Equal questions
at the same time become one request. After a 429, nothing more is asked with that token until
Retry-After. While the upstream fails, older positive answers are used, up to `stale_for` seconds
old, and answers that never change at any age. Both need a permission: the token must have been
allowed to read the repository within `stale_permission` seconds. Offline, answers of any age are
used.

An answer belongs to the token that got it. Answers to requests without a token are public: they
stand in for others, but only while the upstream cannot be asked. A refusal invalidates all older
answers about the repository, also those on disk. For that, each token and repository with a stored
positive answer has a mark on disk, and a refusal replaces the mark. Without a mark there is nothing
to invalidate, and no negative answer is stored: invented tokens leave no files behind.

Answers imported from an archive are used offline, or while the upstream fails and there is no
answer of our own. They never replace a request, and they grant no permission online.

The cache holds answers as bytes, which the caller decodes. Its memory is bounded. With a store,
positive answers are also written to disk, for other processes and the next start.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import (
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamOffline,
)
from xetserve.metrics.catalogue import METADATA_HITS, METADATA_MISSES, METADATA_STALE
from xetserve.upstream.answers.backoff import Backoff
from xetserve.upstream.answers.memory import AnswerMemory, Kept
from xetserve.upstream.answers.question import (
    MAX_SKEW,
    PERMISSIONS,
    PROOFS,
    REFUSAL,
    Answer,
    Question,
    Verdict,
    make_path,
    make_permit,
    make_refusal,
    read_stored,
)
from xetserve.upstream.answers.scope import ANONYMOUS
from xetserve.upstream.answers.singleflight import SingleFlight
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.answers.stored_file import Stored

logger = logging.getLogger(__name__)

STALE_PATIENCE: Final = 2.0  # seconds that an upstream has if an old answer is at hand
PERMIT_PAUSE: Final = 60.0  # seconds after which a permission is recorded again
MARK_PAUSE: Final = 3600.0  # seconds after which a mark is written again
MARK_LEAD: Final = 7200.0  # seconds that a mark is dated ahead, so that it outlives its answers
MAX_MARKS: Final = 10_000
MAX_MARKS_SIZE: Final = 2 * 1024 * 1024  # bytes of their names


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """The limits of using cached answers. Times are in seconds; 0: such answers are not used.

    stale_for: the largest age of an answer that is used while the upstream fails; unless it is 0,
        answers that never change may have any age.
    stale_permission: the largest age of the permission to read such answers.
    is_offline: the upstream is never asked.
    max_size: bytes in memory.
    """

    ttl: float = 30.0
    negative_ttl: float = 5.0
    stale_for: float = 0.0
    stale_permission: float = 3600.0
    is_offline: bool = False
    max_size: int = 16 * 1024 * 1024


# Asks the upstream. The argument: whether to retry, or to give up after the first failure.
Ask = Callable[[bool], Awaitable[Answer]]
# Returns another question of a scope whose answer says the same; None: there is none.
FindOther = Callable[[str], Awaitable[Question | None]]
# Returns when the token was last allowed to read what an old answer describes, if that answer never
# changes; None: ask again.
Renew = Callable[[bytes], Awaitable[float | None]]


class AnswerCache:
    """Ask an upstream, or use a cached answer.

    Args:
        realm: the URL of the Hub, for stores that several Hubs share.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        policy: AnswerPolicy,
        store: AnswerStore | None = None,
        realm: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.policy = policy
        self.store = store
        self.clock = clock
        self._realm = realm
        self._memory = AnswerMemory(policy.max_size)
        self._flights: SingleFlight[Question, Answer] = SingleFlight()
        self._marks: LruDict[tuple[str, str], float] = LruDict(
            max_num=MAX_MARKS, max_cost=MAX_MARKS_SIZE
        )
        self._backoff = Backoff(policy.negative_ttl, clock)

    @property
    def size(self) -> int:
        """Approximate bytes of memory that the answers take."""
        return self._memory.size

    async def get(
        self,
        question: Question,
        ask: Ask,
        renew: Renew | None = None,
        find_other: FindOther | None = None,
    ) -> Answer:
        """Return the answer to a question.

        Args:
            ask: called if there is no cached answer that is new enough.
            renew: for answers that never change; without it, an old answer is asked for again.
            find_other: called if the upstream cannot be asked and there is no answer to this
                question.

        Raises:
            UpstreamOffline: the server is offline and has no answer.
            UpstreamError and its kinds: as ask raises them, now or a moment ago.
        """
        if self.policy.is_offline:
            answer = await self.find_old(question, find_other)
            if answer is None:
                reason = await self.find_reason(question)
                raise UpstreamOffline(
                    reason or "this server is offline, and has no stored answer to this request"
                )
            return answer
        kept = self._memory.peek(question)
        if kept is None or not self._is_fresh(question, kept):
            kept = await self._load(question, kept)
        if kept is not None and self._is_fresh(question, kept):
            METADATA_HITS.add(question.kind)
            self._log("%s: cached, %.1f s old", question, self.clock() - kept.answered_at)
            self._memory.use(question)  # marks it as used
            if isinstance(kept.answer, UpstreamError):
                raise _copy(kept.answer)
            return kept.answer
        if self.policy.ttl == 0:
            return await self._ask(question, kept, ask, renew, find_other)
        return await self._flights.share(
            question, lambda: self._ask(question, kept, ask, renew, find_other)
        )

    def _log(self, text: str, question: Question, *values: float) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(text, question.subject, *values)

    def _is_fresh(self, question: Question, kept: Kept) -> bool:
        is_good = isinstance(kept.answer, Answer) and kept.answer.verdict is Verdict.GOOD
        age = self.clock() - kept.answered_at
        limit = self.policy.ttl if is_good else min(self.policy.negative_ttl, self.policy.ttl)
        return (
            limit > 0
            and -MAX_SKEW < age < limit
            and (not kept.is_positive or self._memory.is_current(question, kept.answered_at))
        )

    async def _ask(
        self,
        question: Question,
        kept: Kept | None,
        ask: Ask,
        renew: Renew | None,
        find_other: FindOther | None,
    ) -> Answer:
        old = await self.find_old(question, find_other) if self.policy.stale_for else None
        trouble = self._backoff.find(question.scope, question.kind)
        if trouble is not None and old is not None:
            return self._give_old(question, old)
        if isinstance(trouble, UpstreamBusy):
            raise trouble
        METADATA_MISSES.add(question.kind)
        self._log("%s: not cached" if kept is None else "%s: cached, but too old", question)
        asked = self.clock()
        try:
            async with asyncio.timeout(None if old is None else STALE_PATIENCE):
                answer = await self._renew(question, kept, renew)
                if answer is None:
                    answer = await ask(old is None)
        except (UpstreamDenied, UpstreamMissing) as exc:
            self._keep_refusal(question, exc)
            raise
        except (UpstreamError, TimeoutError) as exc:
            if isinstance(exc, UpstreamBusy) and exc.status == 429:
                self._backoff.note_busy(question.scope, question.kind, exc)
            if old is None or (isinstance(exc, UpstreamError) and not exc.retriable):
                raise
            self._backoff.note_down(question.scope, question.kind)
            return self._give_old(question, old)
        self._backoff.note_up(question.scope, question.kind)
        # Without a date of its own, an answer is as old as its request.
        return self.put(question, answer._replace(answered_at=answer.answered_at or asked))

    async def _renew(
        self, question: Question, kept: Kept | None, renew: Renew | None
    ) -> Answer | None:
        """Return an old answer that never changes, if the token may still read it."""
        if renew is None or not self.policy.ttl or kept is None:
            return None
        if not isinstance(kept.answer, Answer):
            return None
        if not self._memory.is_current(question, kept.answered_at):
            return None
        answered_at = await renew(kept.answer.data)
        if answered_at is not None:
            self._log("%s: still valid, and the token may still read it", question)
        return None if answered_at is None else kept.answer._replace(answered_at=answered_at)

    # Old answers.

    def _give_old(self, question: Question, old: Answer) -> Answer:
        METADATA_STALE.add(question.kind)
        self._log("%s: an answer that is %d s old stands in", question, old.stale_age or 0)
        return old

    async def find_old(
        self, question: Question, find_other: FindOther | None = None
    ) -> Answer | None:
        """Return an old answer to use if the upstream cannot be asked: this token's, or else a
        public one.

        Args:
            find_other: see get.
        """
        for scope in dict.fromkeys((question.scope, ANONYMOUS)):
            known = await self._find_any(question._replace(scope=scope))
            if known is None and find_other is not None:
                other = await find_other(scope)
                known = None if other is None else await self._find_any(other)
            if known is not None:
                # The newest answer may be negative.
                return (
                    known.answer if isinstance(known.answer, Answer) and known.is_positive else None
                )
        return None

    async def find_reason(self, *questions: Question) -> str | None:
        """Return why a question has no answer offline, if another token has one; else None."""
        if self.store is None or not self.policy.is_offline:
            return None
        for question in questions:
            if await self.store.has_for_others(self._path(question)):
                if question.scope == ANONYMOUS:
                    return (
                        "this server is offline. It has this, but only for clients with the token "
                        "that asked for it: send that token, or, if it is public, pull it again"
                    )
                return (
                    "this server is offline. It has this, but this token has not asked for it: use "
                    "the token that it was pulled with, or pull it with this one"
                )
        return None

    async def _find_any(self, question: Question) -> Kept | None:
        """Return a known answer, unless it is positive and too old, or was refused since."""
        known = self._memory.peek(question)
        if known is None or not self.policy.is_offline:
            known = await self._load(question, known)
        if known is None:
            known = await self._load_imported(question)
        if known is None or not isinstance(known.answer, Answer) or not known.is_positive:
            return known
        age = max(0.0, self.clock() - known.answered_at)
        if not self._memory.is_current(question, known.answered_at):
            return None
        if not self.policy.is_offline:
            if age > self.policy.stale_for and not question.is_lasting:
                return None
            if not await self._is_permitted(question, known.answered_at):
                return None
        return Kept(known.answered_at, known.answer._replace(stale_age=int(age)))

    async def _is_permitted(self, question: Question, answered_at: float) -> bool:
        """Return whether the token was allowed to read lately.

        Args:
            answered_at: when it got the answer to the question, in Unix seconds.
        """
        limit = self.clock() - self.policy.stale_permission
        if answered_at >= limit:
            return True
        permit = make_permit(question)
        known = self._memory.peek(permit)
        if known is None or known.answered_at < limit:
            known = await self._load(permit, known)
        return (
            known is not None
            and known.answered_at >= limit
            and self._memory.is_current(permit, known.answered_at)
        )

    def _permit(self, question: Question, answered_at: float) -> None:
        """Record that a token may read a repository, unless that was recorded a moment ago."""
        pause = min(PERMIT_PAUSE, self.policy.stale_permission)
        self._put_now_and_then(make_permit(question), b"", answered_at, pause)

    def note_read(self, holder: Question, data: bytes) -> None:
        """Record where a token has read a file, unless that was recorded a moment ago."""
        self._put_now_and_then(holder, data, self.clock(), PERMIT_PAUSE)

    def _put_now_and_then(
        self, question: Question, data: bytes, answered_at: float, pause: float
    ) -> None:
        known = self._memory.peek(question)
        if known is None or answered_at - known.answered_at >= pause:
            self.put(question, Answer(data, answered_at=answered_at))

    # Storing.

    async def _load(self, question: Question, kept: Kept | None) -> Kept | None:
        """Return the stored answer if it is newer than the one in memory."""
        if self.store is None:
            return kept
        stored = await self.store.read(self._path(question))
        if stored is None or (kept is not None and stored.answered_at <= kept.answered_at):
            return kept
        if not await self._load_refusal(question):
            self._mark(question)  # the mark was removed, or an older version stored the answer
        if not self._memory.is_current(question, stored.answered_at):
            self.store.remove(self._path(question))
            return kept
        loaded = Kept(stored.answered_at, read_stored(stored))
        self._memory.remember(question, loaded)
        return loaded

    async def _load_refusal(self, question: Question) -> bool:
        """Load a stored refusal; return whether there is a refusal or a mark."""
        assert self.store is not None
        path = self._path(make_refusal(question))
        refused = await self.store.read(path, lead=MARK_LEAD)
        if refused is not None and refused.answered_at > 0:
            self._memory.note_refusal(question, refused.answered_at)
        return refused is not None

    async def _load_imported(self, question: Question) -> Kept | None:
        """Return an imported answer; online it is not kept in memory, where it would count as
        fresh.
        """
        if self.store is None or (question.kind in PERMISSIONS and not self.policy.is_offline):
            return None
        stored = await self.store.read(self._path(question), is_imported=True)
        if stored is None:
            return None
        await self._load_refusal(question)
        path = self._path(make_refusal(question))
        refused = await self.store.read(path, is_imported=True, lead=MARK_LEAD)
        if refused is not None and stored.answered_at <= refused.answered_at:
            return None
        loaded = Kept(stored.answered_at, read_stored(stored))
        if self.policy.is_offline:
            self._memory.remember(question, loaded)
        return loaded

    def put(self, question: Question, answer: Answer) -> Answer:
        """Cache an answer, dated now unless it has a date; return it as it is cached."""
        answer = answer._replace(answered_at=answer.answered_at or self.clock(), stale_age=None)
        if answer.verdict is Verdict.PASSING:
            self.drop(question)
            return answer
        if answer.verdict is Verdict.REFUSED:
            self._memory.note_refusal(question, answer.answered_at)
        self._memory.remember(question, Kept(answer.answered_at, answer))
        is_proof = question.kind in PROOFS and answer.verdict is Verdict.GOOD
        if is_proof and self.policy.stale_for:
            self._permit(question, answer.answered_at)
        if self.store is None or not question.is_kept:
            return answer
        path, note = self._path(question), self._path(make_refusal(question))
        stored = Stored(answer.answered_at, b"+" + answer.data, question.describe(self._realm))
        if answer.verdict is Verdict.REFUSED:
            self._store_refusal(question, answer.answered_at)
        elif answer.verdict is Verdict.ABSENT:
            # There is no limit to the names that do not exist.
            stored = stored._replace(body=b"-" + answer.data)
            self.store.write(path, stored, is_minor=True, only_with=note)
        elif self._mark(question):
            self.store.write(path, stored, is_minor=answer.is_minor)
        return answer

    def _mark(self, question: Question) -> bool:
        """Mark that a token has stored answers about a repository; False: there is no room now."""
        assert self.store is not None
        key = (question.scope, question.repo)
        now = self.clock()
        marked = self._marks.get(key)
        if marked is not None and 0 <= now - marked < MARK_PAUSE:
            return True
        note = make_refusal(question)
        mark = Stored(0.0, b"", note.describe(self._realm))
        if not self.store.write(self._path(note), mark, is_first=True, lead=MARK_LEAD):
            return False
        self._marks.put(key, now, sum(map(len, key)))
        return True

    def drop(self, question: Question) -> None:
        """Remove the answer to a question."""
        self._memory.pop(question)
        if self.store is not None:
            self.store.remove(self._path(question))

    def refuse(self, scope: str, repo: str) -> None:
        """Record that a token was refused: older answers about the repository are not used."""
        question = Question(scope, REFUSAL, repo, "")
        now = self.clock()
        self._memory.note_refusal(question, now)
        self._store_refusal(question, now)

    def _path(self, question: Question) -> str:
        return make_path(question, self._realm)

    def _store_refusal(self, question: Question, answered_at: float) -> None:
        if self.store is not None:
            if question.kind != REFUSAL:
                self.store.remove(self._path(question))
            note = make_refusal(question)
            path, stored = self._path(note), Stored(answered_at, b"", note.describe(self._realm))
            self.store.write(path, stored, only_with=path, lead=MARK_LEAD, is_refusal=True)

    def _keep_refusal(self, question: Question, error: UpstreamError) -> None:
        now = self.clock()
        self._memory.note_refusal(question, now)
        self._memory.remember(question, Kept(now, _copy(error)))
        self._store_refusal(question, now)

    async def aclose(self) -> None:
        """Finish writing."""
        if self.store is not None:
            await self.store.aclose()


def _copy(error: UpstreamError) -> UpstreamError:
    """Return a copy of an error to keep or to raise again: without traceback and cause."""
    if isinstance(error, UpstreamDenied):
        return UpstreamDenied(
            str(error), status=error.status, code=error.code, headers=error.headers
        )
    return UpstreamMissing(str(error), code=error.code, headers=error.headers)
