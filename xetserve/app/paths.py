"""From a request target to what is asked for. Segments are decoded one by one, after the path is
cut.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from xetserve.errors import RequestError
from xetserve.http.messages import Request
from xetserve.upstream.hub.client import RepoRef

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN: Final = re.compile(r"[!-$&-.0-~]*")  # ASCII that stands for itself
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_REPO_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION: Final = re.compile(r"[^\s\x00-\x1f\x7f~^:?*\[\\\ufffd]{1,255}")  # \ufffd: was not UTF-8
_MAX_PATH_SIZE: Final = 4096  # bytes, encoded; servers take URLs of 8 KiB
KINDS: Final = ("model", "dataset", "space")


class ResolvePath(NamedTuple):
    """A file of a repository; revision and path decoded."""

    repo: RepoRef
    revision: str
    path: str


def split_path(raw_path: str) -> list[str]:
    """Cut a percent-encoded path into decoded segments; "/a/b%20c" gives ["a", "b c"].

    Raises:
        RequestError: 400, a segment that no file can be named by, or whose meaning depends on who
            reads it.
    """
    return [decode_segment(segment) for segment in raw_path[1:].split("/")]


def decode_segment(raw: str, *, may_have_slash: bool = False) -> str:
    """Decode one segment of a path.

    Args:
        may_have_slash: it may have encoded slashes, as names of revisions do.

    Raises:
        RequestError: 400, as split_path.
    """
    if _PLAIN.fullmatch(raw) and raw not in (".", ".."):
        return raw  # nearly all are; a path may have 4000 of them, and is read more than once
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
        RequestError: 404, no file can be at an empty path or have an empty folder name. 414, the
            Hub could not be asked for it.
    """
    if not segments or not all(segments):
        raise RequestError(404, "no file has an empty name")
    path = "/".join(segments)
    if len(quote(path)) > _MAX_PATH_SIZE:
        raise RequestError(414, f"the encoded path is longer than {_MAX_PATH_SIZE} bytes")
    return path


def parse_repo(repo_id: str, kind: str) -> RepoRef:
    """Read owner/name and a repository type.

    Raises:
        RequestError: 400.
    """
    if kind not in KINDS:
        raise RequestError(400, f"type must be one of {', '.join(KINDS)}")
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(_REPO_PART.fullmatch(part) for part in parts):
        raise RequestError(400, "a repository is named owner/name")
    return RepoRef(kind, repo_id)


def parse_hub_repo(parts: Sequence[str], kind: str) -> RepoRef:
    """Read the id of a repository in a path of the Hub: owner and name, or a name alone.

    Raises:
        RequestError: 404, none can be named so.
    """
    if len(parts) > 2 or not all(_REPO_PART.fullmatch(part) for part in parts):
        raise RequestError(404, "no repository has such a name")
    return RepoRef(kind, "/".join(parts))


def get_revision(request: Request) -> str:
    """Give ?revision=, "main" without it.

    Raises:
        RequestError: 400, not a name that git would allow.
    """
    if _BAD_ESCAPE.search(request.target):
        raise RequestError(400, "the query has a % that is not followed by two hex digits")
    return check_revision(request.query.get("revision", "main"))


def check_revision(revision: str) -> str:
    """Return a revision as it is.

    Raises:
        RequestError: 400, not a name that git would allow.
    """
    is_odd = ".." in revision or revision.startswith(("/", "-", ".")) or revision.endswith("/")
    if is_odd or not _REVISION.fullmatch(revision):
        raise RequestError(400, "revision must be a branch, a tag, a commit id or refs/pr/N")
    return revision
