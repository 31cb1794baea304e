"""What the Hub and the CAS said to whom, kept for a while: answers to questions, yes or no, per
token.

A yes is believed for `ttl`, a no for `negative_ttl`; then the upstream is asked again, for answers
that never change only whether the token may still read. Equal questions at the same time are one.
After a 429 nobody asks in that token's name until Retry-After. Where the upstream is in trouble, a
yes that is older may do (`stale_for`), and offline whatever its age.

An answer is for the token that it was given to. What was said to no token at all is public: it may
stand in, only where the upstream cannot be asked. A refusal makes all older answers about the
repository worthless, in the folder, too: a mark stands there for each token and repository that had
a yes, and a refusal is written in its place. Where there is no mark, there is nothing to make
worthless, and a no is not stored: tokens that are made up leave nothing behind.

What was brought from elsewhere (imported) stands in offline, and where the upstream is in trouble,
for want of an answer of our own. It never spares a question, and online it permits nothing.

Answers are bytes here; whoever asks knows how to read them. Memory is bounded in bytes. With a
store, a yes is also written there, for other processes and for the next start.
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
    REFUSAL,
    Answer,
    Question,
    Verdict,
    make_path,
    make_refusal,
    read_stored,
)
from xetserve.upstream.answers.scope import ANONYMOUS
from xetserve.upstream.answers.singleflight import SingleFlight
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.answers.stored_file import Stored

logger = logging.getLogger(__name__)

STALE_PATIENCE: Final = 2.0  # seconds that an upstream has where an old answer would do
MARK_PAUSE: Final = 3600.0  # seconds after which it is marked again that a repository was shown
MARK_LEAD: Final = 7200.0  # seconds that a mark counts as used later: no older answer outlives it
MAX_MARKS: Final = 10_000
MAX_MARKS_SIZE: Final = 2 * 1024 * 1024  # bytes of their names


@dataclass(frozen=True, slots=True)
class AnswerPolicy:
    """How long what is believed. Times in seconds, 0: not at all.

    stale_for: oldest age of an answer that is given when the upstream is in trouble.
    is_offline: nobody is asked.
    max_size: bytes in memory.
    """

    ttl: float = 30.0
    negative_ttl: float = 5.0
    stale_for: float = 0.0
    is_offline: bool = False
    max_size: int = 16 * 1024 * 1024


# Asks the upstream; told whether to be patient, or to give up on the first trouble.
Ask = Callable[[bool], Awaitable[Answer]]
# Gives, for a scope, another question whose answer says the same; None: there is none.
FindOther = Callable[[str], Awaitable[Question | None]]
# Gives when the token was last allowed to read what an old answer is about, if that answer never
# changes; None: ask again.
Renew = Callable[[bytes], Awaitable[float | None]]


class AnswerCache:
    """Keeps answers.

    Args:
        realm: whose answers they are, for stores that are shared: the URL of the Hub.
        clock: Unix seconds.
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
        """Bytes of memory that it takes, about."""
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
            ask: called if the answer is not known, or too old.
            renew: for answers that may never change; without it they are asked for again.
            find_other: called for want of an answer to this question where nobody can be asked.

        Raises:
            UpstreamOffline: nobody is to be asked, and there is no answer.
            UpstreamError and its kinds: as ask raises them, now or shortly before.
        """
        if self.policy.is_offline:
            answer = await self.find_old(question, find_other)
            if answer is None:
                raise UpstreamOffline("this server is offline, and does not have what is asked for")
            return answer
        kept = self._memory.peek(question)
        if kept is None or not self._is_fresh(question, kept):
            kept = await self._load(question, kept)
        if kept is not None and self._is_fresh(question, kept):
            METADATA_HITS.add(question.kind)
            self._log("%s: cached, %.1f s old", question, self.clock() - kept.said)
            self._memory.use(question)  # it is used
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
        age = self.clock() - kept.said
        limit = self.policy.ttl if is_good else min(self.policy.negative_ttl, self.policy.ttl)
        return (
            limit > 0
            and -MAX_SKEW < age < limit
            and (not kept.is_yes or self._memory.is_believed(question, kept.said))
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
        # What it says was true when it was asked for, at least.
        return self.put(question, answer._replace(said=answer.said or asked))

    async def _renew(
        self, question: Question, kept: Kept | None, renew: Renew | None
    ) -> Answer | None:
        """Return an old answer that never changes, if it may still be given."""
        if renew is None or not self.policy.ttl or kept is None:
            return None
        if not isinstance(kept.answer, Answer):
            return None
        if not self._memory.is_believed(question, kept.said):
            return None
        said = await renew(kept.answer.data)
        if said is not None:
            self._log("%s: still valid, and the token may still read it", question)
        return None if said is None else kept.answer._replace(said=said)

    # Old answers.

    def _give_old(self, question: Question, old: Answer) -> Answer:
        METADATA_STALE.add(question.kind)
        self._log("%s: an answer that is %d s old stands in", question, old.stale_age or 0)
        return old

    async def find_old(
        self, question: Question, find_other: FindOther | None = None
    ) -> Answer | None:
        """Return an answer that will do for want of a new one: this token's, or else a public one.

        Args:
            find_other: see get.
        """
        for scope in dict.fromkeys((question.scope, ANONYMOUS)):
            known = await self._find_any(question._replace(scope=scope))
            if known is None and find_other is not None:
                other = await find_other(scope)
                known = None if other is None else await self._find_any(other)
            if known is not None:
                # The last word of all may have been no.
                return known.answer if isinstance(known.answer, Answer) and known.is_yes else None
        return None

    async def _find_any(self, question: Question) -> Kept | None:
        """Return what is known, unless it is a yes that is too old, or not believed any more."""
        known = self._memory.peek(question)
        if known is None or not self.policy.is_offline:
            known = await self._load(question, known)
        if known is None:
            known = await self._load_imported(question)
        if known is None or not isinstance(known.answer, Answer) or not known.is_yes:
            return known
        age = max(0.0, self.clock() - known.said)
        if not self._memory.is_believed(question, known.said):
            return None
        if not self.policy.is_offline and age > self.policy.stale_for:
            return None
        return Kept(known.said, known.answer._replace(stale_age=int(age)))

    # Keeping.

    async def _load(self, question: Question, kept: Kept | None) -> Kept | None:
        """Return what is stored, if that is newer than what is kept in memory."""
        if self.store is None:
            return kept
        stored = await self.store.read(self._path(question))
        if stored is None or (kept is not None and stored.said <= kept.said):
            return kept
        if not await self._load_refusal(question):
            self._mark(question)  # it has gone, or an older version has stored the answer
        if not self._memory.is_believed(question, stored.said):
            self.store.remove(self._path(question))
            return kept
        loaded = Kept(stored.said, read_stored(stored))
        self._memory.remember(question, loaded)
        return loaded

    async def _load_refusal(self, question: Question) -> bool:
        """Take in whether a token was refused; tells whether that, or a mark, is stored."""
        assert self.store is not None
        path = self._path(make_refusal(question))
        refused = await self.store.read(path, lead=MARK_LEAD)
        if refused is not None and refused.said > 0:
            self._memory.note_refusal(question, refused.said)
        return refused is not None

    async def _load_imported(self, question: Question) -> Kept | None:
        """Return what was brought from elsewhere; online it is not remembered, for it is not to be
        believed without asking.
        """
        if self.store is None or (question.kind in PERMISSIONS and not self.policy.is_offline):
            return None
        stored = await self.store.read(self._path(question), is_imported=True)
        if stored is None:
            return None
        await self._load_refusal(question)
        path = self._path(make_refusal(question))
        refused = await self.store.read(path, is_imported=True, lead=MARK_LEAD)
        if refused is not None and stored.said <= refused.said:
            return None
        loaded = Kept(stored.said, read_stored(stored))
        if self.policy.is_offline:
            self._memory.remember(question, loaded)
        return loaded

    def put(self, question: Question, answer: Answer) -> Answer:
        """Keep an answer that was given now, or when it says; gives it as it is kept."""
        answer = answer._replace(said=answer.said or self.clock(), stale_age=None)
        if answer.verdict is Verdict.PASSING:
            self.drop(question)
            return answer
        if answer.verdict is Verdict.REFUSED:
            self._memory.note_refusal(question, answer.said)
        self._memory.remember(question, Kept(answer.said, answer))
        if self.store is None or not question.is_kept:
            return answer
        path, note = self._path(question), self._path(make_refusal(question))
        stored = Stored(answer.said, b"+" + answer.data, question.describe(self._realm))
        if answer.verdict is Verdict.REFUSED:
            self._store_refusal(question, answer.said)
        elif answer.verdict is Verdict.ABSENT:
            # There is no end to what is not there.
            stored = stored._replace(body=b"-" + answer.data)
            self.store.write(path, stored, is_minor=True, only_with=note)
        elif self._mark(question):
            self.store.write(path, stored, is_minor=answer.is_minor)
        return answer

    def _mark(self, question: Question) -> bool:
        """Mark that something of a repository is stored for a token; False: there is no room for it
        now.
        """
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
        """Know nothing more about a question."""
        self._memory.pop(question)
        if self.store is not None:
            self.store.remove(self._path(question))

    def refuse(self, scope: str, repo: str) -> None:
        """Take note that a token was refused: what it was told about a repository is not believed
        any more.
        """
        question = Question(scope, REFUSAL, repo, "")
        now = self.clock()
        self._memory.note_refusal(question, now)
        self._store_refusal(question, now)

    def _path(self, question: Question) -> str:
        return make_path(question, self._realm)

    def _store_refusal(self, question: Question, said: float) -> None:
        if self.store is not None:
            if question.kind != REFUSAL:
                self.store.remove(self._path(question))
            note = make_refusal(question)
            path, stored = self._path(note), Stored(said, b"", note.describe(self._realm))
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
    """Return an error that can be kept or raised once more: it holds no traceback and no cause."""
    if isinstance(error, UpstreamDenied):
        return UpstreamDenied(
            str(error), status=error.status, code=error.code, headers=error.headers
        )
    return UpstreamMissing(str(error), code=error.code, headers=error.headers)
