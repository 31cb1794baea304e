"""Answers in memory, and the refusals that invalidate older ones."""

from typing import Final, NamedTuple

from xetserve.base.lru_dict import LruDict
from xetserve.errors import UpstreamError
from xetserve.upstream.answers.question import Answer, Question, Verdict

ENTRY_COST: Final = 700  # bytes of memory besides the texts of question and answer
MAX_REFUSALS: Final = 10_000
MAX_REFUSALS_SIZE: Final = 2 * 1024 * 1024  # bytes of scopes and names


class Kept(NamedTuple):
    """An answer, or a refusal as an error, and when it was given, in Unix seconds."""

    answered_at: float
    answer: Answer | UpstreamError

    @property
    def size(self) -> int:
        """Approximate bytes of memory."""
        if isinstance(self.answer, Answer):
            return ENTRY_COST + len(self.answer.data)
        fields = (len(name) + len(value) + ENTRY_COST // 4 for name, value in self.answer.headers)
        return 2 * ENTRY_COST + len(str(self.answer)) + sum(fields)

    @property
    def is_positive(self) -> bool:
        """Whether it is an answer that may be used when it is old."""
        return isinstance(self.answer, Answer) and self.answer.verdict is not Verdict.REFUSED


class AnswerMemory:
    """Answers by question, of at most max_size bytes together, and the latest refusals."""

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._kept: LruDict[Question, Kept] = LruDict(max_cost=max_size, on_leave=self._note_left)
        # Questions with positive answers, by scope and repository, so that a refusal finds them
        # without a walk over all.
        self._by_repo: dict[tuple[str, str], dict[Question, None]] = {}
        self._refusals: LruDict[tuple[str, str], float] = LruDict(
            max_num=MAX_REFUSALS, max_cost=MAX_REFUSALS_SIZE
        )

    @property
    def size(self) -> int:
        """Approximate bytes of memory that the answers take."""
        return self._kept.cost

    def peek(self, question: Question) -> Kept | None:
        """Return the answer to a question; None: there is none."""
        return self._kept.peek(question)

    def use(self, question: Question) -> None:
        """Mark an answer as used now."""
        self._kept.get(question)

    def pop(self, question: Question) -> None:
        """Remove an answer."""
        self._kept.pop(question)

    def is_current(self, question: Question, answered_at: float) -> bool:
        """Return whether the token has not been refused since an answer was given."""
        refused = self._refusals.peek((question.scope, question.repo))
        return refused is None or answered_at > refused

    def note_refusal(self, question: Question, answered_at: float) -> None:
        """Record that a token was refused a repository, and remove older answers about it.

        Args:
            question: any about the repository.
            answered_at: when it was refused, Unix seconds.
        """
        key = (question.scope, question.repo)
        before = self._refusals.get(key)
        if before is not None and answered_at <= before:
            return
        self._refusals.put(key, answered_at, sum(map(len, key)))
        # The refusal itself may be dropped one day. By then no older answer may be left.
        for other in list(self._by_repo.get(key, ())):
            kept = self._kept.peek(other)
            if kept is not None and kept.answered_at <= answered_at:
                self._kept.pop(other)

    def remember(self, question: Question, kept: Kept) -> None:
        """Keep an answer, unless it is too large or older than a refusal."""
        self._kept.pop(question)
        size = kept.size + question.size
        if size > self._max_size // 2 or not question.is_kept:
            return
        if kept.is_positive:
            if not self.is_current(question, kept.answered_at):
                return
            self._by_repo.setdefault((question.scope, question.repo), {})[question] = None
        self._kept.put(question, kept, size)

    def _note_left(self, question: Question, kept: Kept) -> None:
        if kept.is_positive:
            key = (question.scope, question.repo)
            others = self._by_repo[key]
            del others[question]
            if not others:
                del self._by_repo[key]
