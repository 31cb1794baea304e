"""The Hub's description of a file, as values: no I/O.

Source: huggingface_hub file_download.py.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from urllib.parse import quote

from xetserve.errors import UpstreamDenied, UpstreamError, UpstreamMissing
from xetserve.http.messages import Headers
from xetserve.net.url import Url
from xetserve.upstream.requests import error_for_status
from xetserve.xet.hashes import format_hash, parse_hash

KINDS: Final = ("model", "dataset", "space", "kernel")  # of repositories
BUCKET: Final = "bucket"  # files without revisions: a kind of its own, in few places
KINDS_BY_PLURAL: Final = {f"{kind}s": kind for kind in KINDS}  # as paths name them
_LINK: Final = re.compile(r'<([^<>]*)>\s*;\s*rel="?([^",;]+)"?')
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SIZE: Final = re.compile(r"[0-9]{1,18}")


class RepoRef(NamedTuple):
    """A repository: its kind, one of KINDS or BUCKET, and id, usually owner/name."""

    kind: str
    id: str

    @property
    def url_prefix(self) -> str:
        """The part of a file URL before /resolve/."""
        path = quote(self.id, safe="/")
        return f"/{path}" if self.kind == "model" else f"/{self.kind}s/{path}"

    @property
    def name(self) -> str:
        """Kind and id in one word."""
        return f"{self.kind}/{self.id}"

    @property
    def api_prefix(self) -> str:
        """The start of the repository's API URLs."""
        return f"/api/{self.kind}s/{quote(self.id, safe='/')}"

    def make_file_path(self, revision: str, path: str) -> str:
        """Return the path of a file's URL, encoded; a bucket has no revisions."""
        at = "" if self.kind == BUCKET else f"{quote(revision, safe='')}/"
        return f"{self.url_prefix}/resolve/{at}{quote(path, safe='/')}"

    def make_token_path(self, revision: str) -> str:
        """Return the path of the URL of read tokens, encoded."""
        at = "" if self.kind == BUCKET else f"/{quote(revision, safe='')}"
        return f"{self.api_prefix}/xet-read-token{at}"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """The Hub's description of one file.

    size: bytes, if known. etag: without quotes. sha256: hex, if the Hub names it.
    file_hash: 32 raw bytes; None for a file that is not Xet.
    token_url: where the Hub gives a read token; None: at its usual place.
    url: the last URL requested on the Hub; a file that is not Xet is fetched from there.
    stale_age: the age of the description in seconds, if the Hub could not be asked now.
    """

    size: int | None
    etag: str | None
    sha256: str | None
    commit: str | None
    last_modified: str | None
    content_type: str | None
    file_hash: bytes | None
    token_url: str | None
    url: Url
    stale_age: int | None = None


def make_entry(url: Url, headers: Headers, length: int | None) -> FileEntry:
    """Return the entry that a resolve answer describes. length: of its body, if known."""
    links = {rel: link for value in headers.get_all("link") for link, rel in _LINK.findall(value)}
    linked_size = headers.get("x-linked-size") or ""
    linked_etag = _strip_etag(headers.get("x-linked-etag"))
    etag = linked_etag or _strip_etag(headers.get("etag"))
    file_hash = None
    with suppress(ValueError):  # absent, or redacted for a gated repository
        file_hash = parse_hash(headers.get("x-xet-hash") or "")
    size = int(linked_size) if _SIZE.fullmatch(linked_size) else length
    return FileEntry(
        size=size,
        etag=etag,
        sha256=linked_etag if linked_etag and _SHA256.fullmatch(linked_etag) else None,
        commit=headers.get("x-repo-commit"),
        last_modified=headers.get("last-modified"),
        content_type=headers.get("content-type"),
        file_hash=file_hash,
        token_url=links.get("xet-auth") or headers.get("x-xet-refresh-route"),
        url=url,
    )


def describe_bucket_file(entry: FileEntry) -> FileEntry:
    """Return the entry of a file in a bucket: the Xet hash alone says what it holds.

    Of buckets, the Hub's ETag may be the Xet hash, or something else that looks like a sha256.
    """
    etag = None if entry.file_hash is None else format_hash(entry.file_hash)
    return replace(entry, etag=etag, sha256=None, commit=None)


def _strip_etag(value: str | None) -> str | None:
    if value is None:
        return None
    return value.removeprefix("W/").strip('"') or None


def hub_error(status: int, headers: Headers) -> UpstreamError:
    """Return the error for an answer of the Hub, with the Hub's own code and message."""
    code = headers.get("x-error-code")
    passed = [
        (name, value)
        for name, value in headers
        if name.lower() in ("x-error-code", "x-error-message", "x-repo-commit")
    ]
    message = headers.get("x-error-message")
    if status in (401, 403):
        reason = message or (
            "the Hub refused the token, or wants one"
            if status == 401
            else "the Hub does not let this token read the repository"
        )
        return UpstreamDenied(reason, status=status, code=code, headers=passed)
    if status in (404, 410):
        reason = message or "the Hub knows no such repository, revision or file"
        return UpstreamMissing(reason, code=code, headers=passed)
    return error_for_status("the Hub", status, headers)
