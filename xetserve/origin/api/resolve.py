"""File downloads for plain clients: /resolve/, and the bridge that it may redirect to.

A Xet file is rebuilt from its xorbs here. With a bridge URL the answer is a redirect to another
host, as on the real Hub: clients that know Xet use its headers, others follow it.

Source: huggingface_hub file_download.py; RFC 9110, sections 13 and 14; RFC 6266.
"""

import mimetypes
from collections.abc import Callable
from email.utils import formatdate
from typing import Final
from urllib.parse import quote

from xetserve.http.messages import Request, Response, error_response
from xetserve.http.ranges import (
    Span,
    UnsatisfiableRange,
    format_content_range,
    format_unsatisfied_range,
    parse_range,
)
from xetserve.origin.api.auth import hub_error
from xetserve.origin.api.hub import find_commit, is_true
from xetserve.origin.faults import Misbehaviour
from xetserve.origin.store.commits import BUCKET, Entry, RepoType
from xetserve.origin.store.git_ids import make_pointer
from xetserve.origin.store.library import Library
from xetserve.origin.store.repos import Repo
from xetserve.origin.store.signing import Signer
from xetserve.xet.hashes import format_hash

OCTETS: Final = "application/octet-stream"
# Files of users, beside pages and an API that a browser may use: nothing may run in one.
_SANDBOX: Final = (
    ("Content-Security-Policy", "default-src 'none'; sandbox"),
    ("X-Content-Type-Options", "nosniff"),
)

Headers = list[tuple[str, str]]


class ResolveApi:
    """Downloads of files by repository, revision and path."""

    def __init__(
        self,
        library: Library,
        signer: Signer,
        *,
        url_lifetime: float,
        bridge_url: str | None,
        misbehaviour: Callable[[], Misbehaviour],
    ) -> None:
        self._library = library
        self._signer = signer
        self._url_lifetime = url_lifetime
        self._bridge_url = bridge_url
        self._misbehaviour = misbehaviour

    async def resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Response:
        """Answer GET or HEAD /{id}/resolve/{rev}/{path}."""
        commit = await find_commit(repo, revision)
        entry = commit.entries.get(path)
        if entry is None:
            raise hub_error(404, f"Entry not found: {path}", "EntryNotFound", commit.id)
        changed = await repo.load_commit_info(entry.changed_in)
        etag = f'"{entry.sha256 or entry.oid}"'
        if repo.type is BUCKET and entry.file_hash is not None:
            etag = f'"{format_hash(entry.file_hash)}"'
        headers = [
            *([("X-Repo-Commit", commit.id)] if repo.type is not BUCKET else []),
            ("Accept-Ranges", "bytes"),
            ("Content-Disposition", make_disposition(path, is_true(request.query.get("download")))),
            ("Last-Modified", formatdate(changed["date"], usegmt=True)),
        ]
        if entry.file_hash is not None:
            headers += _xet_headers(request, repo, commit.id, entry, etag)
            if self._bridge_url is not None:
                url = self._make_bridge_url(self._bridge_url, repo, entry)
                # The ETag of a redirect is that of the redirect, not of the file.
                headers += [("ETag", f'"{commit.id}"'), ("Location", url)]
                return Response(302, headers, f"Found. Redirecting to {url}".encode())
            content_type = OCTETS
        else:
            content_type = mimetypes.guess_type(path)[0] or "text/plain; charset=utf-8"
        headers += [("ETag", etag), ("Content-Type", content_type)]
        return self._serve(request, entry, etag, headers)

    async def raw(self, request: Request, repo: Repo, revision: str, path: str) -> Response:
        """Answer GET or HEAD /{id}/raw/{rev}/{path} as git would: of a large file, its pointer."""
        commit = await find_commit(repo, revision)
        entry = commit.entries.get(path)
        if entry is None:
            raise hub_error(404, f"Entry not found: {path}", "EntryNotFound", commit.id)
        etag = f'"{entry.oid}"'
        headers = [("X-Repo-Commit", commit.id), ("ETag", etag)]
        headers.append(("Content-Type", "text/plain; charset=utf-8"))
        if entry.sha256 is not None:
            return Response(200, headers, make_pointer(entry.sha256, entry.size))
        return self._serve(request, entry, etag, headers)

    async def bridge(
        self, request: Request, repo_type: RepoType, repo_id: str, sha256: str
    ) -> Response:
        """Answer a signed GET or HEAD /bridge/{type}s/{id}/{sha256}: the file, or a range of it."""
        problem = self._signer.check_url(request.raw_path, request.query)
        if problem is not None:
            return error_response(403, problem)
        repo = await self._library.repos.get(repo_type, repo_id)
        file_hash = await repo.get_upload(sha256) if repo is not None else None
        record = await self._library.files.get(file_hash) if file_hash is not None else None
        if record is None:
            return error_response(404, "no such object")
        entry = self._library.make_large_entry("", sha256, record.size, record.file_hash)
        etag = f'"{format_hash(record.file_hash)}"'
        headers = [("Accept-Ranges", "bytes"), ("ETag", etag), ("Content-Type", OCTETS)]
        disposition = request.query.get("response-content-disposition")
        if disposition is not None and disposition.isascii():
            headers.append(("Content-Disposition", disposition))
        return self._serve(request, entry, etag, headers)

    def serve_object(self, request: Request, repo: Repo, entry: Entry) -> Response:
        """Serve a large file by its sha256; with a bridge URL, redirect there."""
        etag = f'"{entry.sha256}"'
        if self._bridge_url is not None:
            return Response(
                307, [("Location", self._make_bridge_url(self._bridge_url, repo, entry))]
            )
        headers = [("Accept-Ranges", "bytes"), ("ETag", etag), ("Content-Type", OCTETS)]
        return self._serve(request, entry, etag, headers)

    def _make_bridge_url(self, base: str, repo: Repo, entry: Entry) -> str:
        lifetime = self._misbehaviour().faults.url_lifetime
        expires = self._signer.get_expiry(self._url_lifetime if lifetime is None else lifetime)
        path = f"/bridge/{repo.type.plural}/{quote(repo.id, safe='')}/{entry.sha256}"
        query = {"response-content-disposition": make_disposition(entry.path, False)}
        return self._signer.make_url(base, path, query, expires)

    def _serve(self, request: Request, entry: Entry, etag: str, headers: Headers) -> Response:
        """Serve a file, or the one range that is requested."""
        headers = [*headers, *_SANDBOX]
        if_none_match = request.headers.get("if-none-match")
        if if_none_match is not None and etag in if_none_match.replace("W/", "").split(", "):
            return Response(304, headers)
        wanted = request.headers.get("range") if request.method == "GET" else None
        if request.headers.get("if-range", etag) != etag:
            wanted = None  # the client has a part of another version
        try:
            span = parse_range(wanted, entry.size) if wanted is not None else None
        except UnsatisfiableRange:
            field = ("Content-Range", format_unsatisfied_range(entry.size))
            return error_response(416, f"{entry.path} has {entry.size} bytes", [field])
        status = 200
        if span is not None:
            status = 206
            headers.append(("Content-Range", format_content_range(span, entry.size)))
        span = span or Span(0, entry.size)
        if request.method == "HEAD" or not span.size:
            return Response(status, headers, length=span.size)
        return Response(status, headers, self._library.read_entry(entry, span), span.size)


def _xet_headers(request: Request, repo: Repo, commit: str, entry: Entry, etag: str) -> Headers:
    assert entry.file_hash is not None
    name = format_hash(entry.file_hash)
    base = request.base_url
    revision = "" if repo.type is BUCKET else f"/{commit}"
    token_url = f"{base}/api/{repo.type.plural}/{repo.id}/xet-read-token{revision}"
    info_url = f"{base}/v1/reconstructions/{name}"
    link = f'<{token_url}>; rel="xet-auth", <{info_url}>; rel="xet-reconstruction-info"'
    return [
        ("X-Linked-Size", str(entry.size)),
        ("X-Linked-Etag", etag),
        ("X-Xet-Hash", name),
        ("Link", link),
    ]


def make_disposition(path: str, as_attachment: bool) -> str:
    """Return a Content-Disposition field with the file's name, in any script."""
    name = path.rpartition("/")[2]
    plain = "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in name)
    kind = "attachment" if as_attachment else "inline"
    return f"{kind}; filename*=UTF-8''{quote(name, safe='')}; filename=\"{plain}\";"
