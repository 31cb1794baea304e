"""Parse request paths: repositories, revisions and file paths.

A path is split before it is decoded, segment by segment, so that an encoded slash splits nothing.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from xetserve.errors import RequestError
from xetserve.http.messages import Request
from xetserve.upstream.hub.entry import KINDS, RepoRef

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN: Final = re.compile(r"[!-$&-.0-~]*")  # ASCII that needs no decoding
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
REPO_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
# The Hub calls refs/convert/parquet ~parquet, too. \ufffd: it was not UTF-8.
_REVISION: Final = re.compile(r"~?[^\s\x00-\x1f\x7f~^:?*\[\\\ufffd]{1,255}")
_MAX_NAME_SIZE: Final = 40  # characters of a query parameter that are looked at
_MAX_PATH_SIZE: Final = 4096  # bytes, encoded; servers take URLs of 8 KiB


class ResolvePath(NamedTuple):
    """A file of a repository; revision and path decoded."""

    repo: RepoRef
    revision: str
    path: str


def split_path(raw_path: str) -> list[str]:
    """Split a percent-encoded path into decoded segments; "/a/b%20c" gives ["a", "b c"].

    Raises:
        RequestError: 400, a segment is malformed, cannot be the name of a file, or is ambiguous:
            other servers may read it differently.
    """
    return [decode_segment(segment) for segment in raw_path[1:].split("/")]


def decode_segment(raw: str, *, may_have_slash: bool = False) -> str:
    """Decode one segment of a path.

    Args:
        may_have_slash: accept encoded slashes, which names of revisions have.

    Raises:
        RequestError: 400, as split_path.
    """
    if _PLAIN.fullmatch(raw) and raw not in (".", ".."):
        return raw  # a fast path for nearly all segments; a path may have 4000 of them
    if _BAD_ESCAPE.search(raw):
        raise RequestError(400, "the path has a % that is not followed by two hex digits")
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise RequestError(400, "the path is not UTF-8") from None
    if "/" in text and not may_have_slash:
        raise RequestError(400, "the path has an encoded slash inside a segment")
    if _CONTROL.search(text):
        raise RequestError(400, "the path has a control character")
    if not {".", ".."}.isdisjoint(text.split("/")):
        raise RequestError(400, "the path has a dot segment")
    return text


def join_file_path(segments: Sequence[str]) -> str:
    """Return the path of a file in its repository.

    Raises:
        RequestError: 404, a segment is empty, which no file or folder can be named; 414, the path
            is too long for a request to the Hub.
    """
    if not segments or not all(segments):
        raise RequestError(404, "the path of the file has an empty name in it")
    path = "/".join(segments)
    if len(quote(path)) > _MAX_PATH_SIZE:
        raise RequestError(414, f"the encoded path is longer than {_MAX_PATH_SIZE} bytes")
    return path


def check_query(request: Request, known: Sequence[str]) -> None:
    """Check that a request has no query parameters but the known ones.

    Raises:
        RequestError: 400, it has another one: a misspelt ?revision= would get another file.
    """
    for name, _ in request.query_pairs:
        if name not in known:
            close = get_close_matches(name[:_MAX_NAME_SIZE], known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}"
            raise RequestError(
                400, f"the query has an unknown parameter {name[:_MAX_NAME_SIZE]!r}: {advice}"
            )


def parse_repo(repo_id: str, kind: str) -> RepoRef:
    """Parse owner/name and a repository type.

    Raises:
        RequestError: 400, the id or the type is not valid.
    """
    if kind not in KINDS:
        raise RequestError(400, f"type must be one of {', '.join(KINDS)}")
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(REPO_PART.fullmatch(part) for part in parts):
        raise RequestError(400, "the repository must be owner/name")
    return RepoRef(kind, repo_id)


def parse_hub_repo(parts: Sequence[str], kind: str) -> RepoRef:
    """Parse the id of a repository in a path of the Hub: owner and name, or a name alone.

    Raises:
        RequestError: 404, the id is not valid.
    """
    if len(parts) > 2 or not all(REPO_PART.fullmatch(part) for part in parts):
        raise RequestError(404, "no repository has such a name: it must be OWNER/NAME or NAME")
    return RepoRef(kind, "/".join(parts))


def get_revision(request: Request) -> str:
    """Return the value of ?revision=; "main" if it is missing.

    Raises:
        RequestError: 400, git does not allow such a name.
    """
    if _BAD_ESCAPE.search(request.target):
        raise RequestError(400, "the query has a % that is not followed by two hex digits")
    return check_revision(request.query.get("revision", "main"))


def check_revision(revision: str) -> str:
    """Check the name of a revision, and return it.

    Raises:
        RequestError: 400, git does not allow such a name.
    """
    is_odd = ".." in revision or revision.startswith(("/", "-", ".")) or revision.endswith("/")
    if is_odd or not _REVISION.fullmatch(revision):
        raise RequestError(
            400, "revision must be a branch, a tag, a commit id, refs/pr/N or ~parquet"
        )
    return revision
