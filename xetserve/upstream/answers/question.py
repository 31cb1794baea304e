"""Questions to an upstream and their answers, as values, and where an answer is stored."""

import re
from enum import Enum
from typing import Final, NamedTuple

from blake3 import blake3

from xetserve.upstream.answers.stored_file import Stored

MAX_NAME_SIZE: Final = 4096  # characters; answers to longer questions are not cached
MAX_SKEW: Final = 5.0  # seconds; a date further ahead comes from a clock that was wrong
# Kinds of stored files: a refusal, or the mark in its place; in which repository a token read a
# file hash, and its size; answers that say only that a token may read.
REFUSAL: Final = "refusal"
HOLDER: Final = "holder"
PERMISSIONS: Final = ("grant", "plan", "permit", HOLDER)
# Kinds whose positive answer proves that the token may read the files of a repository.
PROOFS: Final = ("file", "grant", "plan")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_OF_COMMIT: Final = re.compile(r"/(?:revision|tree|paths-info)/[0-9a-f]{40}(?:[/?]|$)")


class Question(NamedTuple):
    """A question to an upstream.

    scope: who asks, see scope.py.
    kind: what sort of answer it has.
    repo: the repository that it is about; "": none.
    """

    scope: str
    kind: str
    repo: str
    name: str

    @property
    def size(self) -> int:
        """The characters of its texts."""
        return len(self.scope) + len(self.repo) + len(self.name)

    @property
    def is_kept(self) -> bool:
        """Whether its answer may be cached: the question is short enough."""
        return self.size <= MAX_NAME_SIZE

    @property
    def is_lasting(self) -> bool:
        """Whether its answer never changes, because it names a commit by its full id, or a file by
        its hash.
        """
        if self.kind == "file":
            return _COMMIT.fullmatch(self.name.partition("\0")[0]) is not None
        if self.kind == "api":
            kind, _, repo = self.repo.partition("/")
            target = self.name.split("\0")[1]
            prefix = f"/api/{kind}s/{repo}"
            return target.startswith(prefix) and bool(_OF_COMMIT.match(target, len(prefix)))
        return self.kind == "plan"

    @property
    def subject(self) -> str:
        """The kind, repository and name for logs, without scope and query."""
        about = " ".join((self.repo, *self.name.partition("?")[0].split("\0")))
        return f"{self.kind} {about.strip()!a}"

    def describe(self, realm: str) -> str:
        """Return the realm and all fields but the scope, as one text."""
        return "\0".join((realm, *self[1:]))


class Verdict(Enum):
    """The meaning of an answer, which decides how long it is cached.

    GOOD: a positive answer. ABSENT: the name does not exist. REFUSED: the token may not read the
    repository. PASSING: a temporary state that must not be cached.
    """

    GOOD = "good"
    ABSENT = "absent"
    REFUSED = "refused"
    PASSING = "passing"


class Answer(NamedTuple):
    """An answer.

    answered_at: when it was given, Unix seconds; 0: the cache fills it in.
    stale_age: its age in seconds, if it is used because the upstream could not be asked.
    is_minor: there may be any number of such answers; on disk they are removed first.
    """

    data: bytes
    verdict: Verdict = Verdict.GOOD
    answered_at: float = 0.0
    stale_age: int | None = None
    is_minor: bool = False


class Subject(NamedTuple):
    """The question that a stored answer is about: without its scope, and with the Hub's URL."""

    realm: str
    kind: str
    repo: str
    name: str

    @classmethod
    def parse(cls, about: str) -> "Subject | None":
        """Parse the text of Question.describe; None: it is something else."""
        parts = about.split("\0", 3)
        return cls(*parts) if len(parts) == 4 else None


def make_path(question: Question, realm: str) -> str:
    """Return the path of a stored answer: the scope and hex digits."""
    text = question.describe(realm)
    digest = blake3(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{question.scope}/{digest[:2]}/{digest}"


def read_stored(stored: Stored) -> Answer:
    """Return the answer that a stored file holds."""
    verdict = Verdict.ABSENT if stored.body[:1] == b"-" else Verdict.GOOD
    return Answer(stored.body[1:], verdict, stored.answered_at)


def make_permit(question: Question) -> Question:
    """Return the question under which it is stored when a token was last allowed to read."""
    return Question(question.scope, "permit", question.repo, "")


def make_holder(scope: str, file_hash: str) -> Question:
    """Return the question under which it is stored in which repository a token read a file."""
    return Question(scope, HOLDER, "", file_hash)


def make_refusal(question: Question) -> Question:
    """Return the question under which refusals, and marks for them, are stored."""
    return Question(question.scope, REFUSAL, question.repo, "")
