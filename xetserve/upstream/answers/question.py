"""Questions to an upstream and their answers, as values, and where an answer is stored."""

from enum import Enum
from typing import Final, NamedTuple

from blake3 import blake3

from xetserve.upstream.answers.stored_file import Stored

MAX_NAME_SIZE: Final = 4096  # characters; answers to longer questions are not kept
MAX_SKEW: Final = 5.0  # seconds; an answer from the future is of a clock that was wrong
# Kinds of what is kept: a note that a token was refused, or the mark in its place; and what says
# only that a token may read.
REFUSAL: Final = "refusal"
PERMISSIONS: Final = ("grant", "plan")


class Question(NamedTuple):
    """A question to an upstream.

    scope: in whose name, see scope.py. kind: what sort of answer. repo: the repository that it is
        about; "": none.
    """

    scope: str
    kind: str
    repo: str
    name: str

    @property
    def size(self) -> int:
        """Characters of its texts."""
        return len(self.scope) + len(self.repo) + len(self.name)

    @property
    def is_kept(self) -> bool:
        """Whether its answer may be kept: it is not too long."""
        return self.size <= MAX_NAME_SIZE

    @property
    def subject(self) -> str:
        """What it is about, for logs: not in whose name, and without queries."""
        about = " ".join((self.repo, *self.name.partition("?")[0].split("\0")))
        return f"{self.kind} {about.strip()!a}"

    def describe(self, realm: str) -> str:
        """Return all but the scope, and whose answer it is, as one text."""
        return "\0".join((realm, *self[1:]))


class Verdict(Enum):
    """What an answer is: something; the word that there is no such thing; a refusal; or nothing to
    be kept.
    """

    GOOD = "good"
    ABSENT = "absent"
    REFUSED = "refused"
    PASSING = "passing"


class Answer(NamedTuple):
    """An answer.

    said: Unix seconds; the cache fills it in.
    stale_age: its age in seconds, where it is given because the upstream could not be asked.
    is_minor: there is no end to such answers; in the folder it goes before others.
    """

    data: bytes
    verdict: Verdict = Verdict.GOOD
    said: float = 0.0
    stale_age: int | None = None
    is_minor: bool = False


class Subject(NamedTuple):
    """Which question a stored answer is one to: Question without its scope, and the Hub that was
    asked.
    """

    realm: str
    kind: str
    repo: str
    name: str

    @classmethod
    def parse(cls, about: str) -> "Subject | None":
        """Read what Question.describe gives; None: it is something else."""
        parts = about.split("\0", 3)
        return cls(*parts) if len(parts) == 4 else None


def make_path(question: Question, realm: str) -> str:
    """Return where an answer is stored: nothing but hex digits, and the scope."""
    text = question.describe(realm)
    digest = blake3(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{question.scope}/{digest[:2]}/{digest}"


def read_stored(stored: Stored) -> Answer:
    """Read an answer as it lies in a store."""
    verdict = Verdict.ABSENT if stored.body[:1] == b"-" else Verdict.GOOD
    return Answer(stored.body[1:], verdict, stored.said)


def make_refusal(question: Question) -> Question:
    """Return the place of the note that a token was refused."""
    return Question(question.scope, REFUSAL, question.repo, "")
