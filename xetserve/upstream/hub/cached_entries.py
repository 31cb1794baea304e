"""File entries as cached answers: their form, and which of them never change."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, UpstreamError, UpstreamMissing
from xetserve.net.url import Origin, Url
from xetserve.upstream.answers.question import Answer, Question, Verdict
from xetserve.upstream.hub.entry import FileEntry, RepoRef

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# Codes of a 404 for a readable repository. Any other 404 counts as a refusal.
ABSENT_CODES: Final = ("EntryNotFound", "RevisionNotFound")


def make_file_question(scope: str, repo: RepoRef, revision: str, path: str) -> Question:
    """Return the question about a file."""
    return Question(scope, "file", repo.name, f"{revision}\0{path}")


def pack_entry(entry: FileEntry) -> Answer:
    """Return an entry as an answer to cache."""
    fields = asdict(entry)
    del fields["stale_age"]
    fields["file_hash"] = None if entry.file_hash is None else entry.file_hash.hex()
    fields["url"] = [*entry.url.origin, entry.url.target]
    return Answer(json.dumps(fields).encode())


def pack_holder(repo: RepoRef, size: int) -> bytes:
    """Return the content of the answer where a file was read; see make_holder."""
    return json.dumps([repo.kind, repo.id, size]).encode()


def unpack_holder(data: bytes) -> tuple[RepoRef, int]:
    """Return the repository, and the size of the file in bytes.

    Raises:
        FormatError: it cannot be read.
    """
    try:
        kind, repo_id, size = parse_json(data)
        return RepoRef(str(kind), str(repo_id)), int(size)
    except (ValueError, TypeError) as exc:
        raise FormatError("the answer does not say where a file was read") from exc


def pack_missing(error: UpstreamMissing) -> Answer:
    """Return an answer that says there is no such file; a refusal is raised again."""
    if error.code not in ABSENT_CODES:
        raise error
    fields = {"message": str(error), "code": error.code, "headers": error.headers}
    return Answer(json.dumps({"missing": fields}).encode(), Verdict.ABSENT)


def unpack_entry(answer: Answer) -> FileEntry:
    """Decode a cached answer.

    Raises:
        UpstreamMissing: the answer says that there is no such file.
        UpstreamError: it cannot be read; another version may have written it.
    """
    try:
        fields: dict[str, Any] = parse_json(answer.data)
        missing = fields.get("missing")
        if missing is None:
            scheme, host, port, target = fields.pop("url")
            file_hash = fields.pop("file_hash")
            return FileEntry(
                **fields,
                file_hash=None if file_hash is None else bytes.fromhex(file_hash),
                url=Url(Origin(scheme, host, port), target),
                stale_age=answer.stale_age,
            )
        error = UpstreamMissing(
            missing["message"],
            code=missing["code"],
            headers=[(name, value) for name, value in missing["headers"]],
        )
    except (FormatError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UpstreamError("a stored answer of the Hub cannot be read") from exc
    raise error


def is_lasting(data: bytes, revision: str, is_on_hub: Callable[[Url], object]) -> bool:
    """Return whether a cached entry never changes: its revision is the full id of a commit.

    Args:
        is_on_hub: returns whether a URL is the Hub's; an entry with another URL does not count.
    """
    if COMMIT.fullmatch(revision) is None:
        return False
    try:
        entry = unpack_entry(Answer(data))
    except UpstreamError:  # there is no such file, or another version wrote the answer
        return False
    return entry.commit == revision and bool(is_on_hub(entry.url))
