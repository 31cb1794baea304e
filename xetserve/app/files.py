"""Files: /download by repository and path, /download-hash by Xet hash."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from mimetypes import MimeTypes
from typing import Final
from urllib.parse import quote

from xetserve.app.bodies import ContentDigest, plain_blocks, start_body
from xetserve.app.router import get_revision, join_file_path, parse_repo
from xetserve.errors import RangeUnsatisfiable, RequestError, UpstreamRefused, UpstreamTimeout
from xetserve.http.messages import Block, Request, Response
from xetserve.http.ranges import (
    Span,
    UnsatisfiableRange,
    format_content_range,
    format_unsatisfied_range,
    parse_content_range,
    parse_range,
)
from xetserve.pipeline.budget import ByteBudget
from xetserve.pipeline.reader import FileReader, ReadLimits
from xetserve.pipeline.source import CasSource
from xetserve.pipeline.tickets import FetchTable
from xetserve.upstream.hub import FileEntry, HubClient, ReadAccess
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ByteRange

# Built in, so that the answer does not depend on what the machine has in /etc.
_MEDIA_TYPES: Final = MimeTypes(filenames=())


@dataclass(frozen=True, slots=True)
class Upstreams:
    """All that serving a file needs."""

    hub: HubClient
    cas: CasSource
    budget: ByteBudget
    limits: ReadLimits
    policy: RetryPolicy
    hash_repo: str


class FileService:
    """Answers for files."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._up = upstreams
        self._fetches = FetchTable(
            upstreams.cas,
            upstreams.budget,
            policy=upstreams.policy,
            stall_timeout=upstreams.limits.stall_timeout,
        )

    async def get_file(
        self, request: Request, owner: str, name: str, path: list[str], token: str | None
    ) -> Response:
        """Answer GET and HEAD for a file of a repository.

        Raises:
            RequestError: the request names no file that could be.
            UpstreamError, IntegrityError: it cannot be had.
        """
        repo = parse_repo(f"{owner}/{name}", request.query.get("type", "model"))
        file_path = join_file_path(path)
        revision = get_revision(request)
        async with _head_timeout(self._up.limits):
            entry = await self._up.hub.resolve(repo, revision, file_path, token)
            headers = _file_headers(entry, file_path)
            span = _requested_span(request, entry)
            if request.method == "HEAD":
                return Response(200, headers, _no_blocks(), length=entry.size, chunked=True)
            if entry.file_hash is None:
                return await self._get_plain(entry, span, headers, token)
            access = ReadAccess(
                self._up.hub, repo, entry.commit or revision, token, entry.token_url
            )
            return await self._get_xet(access, entry.file_hash, entry.size, span, headers)

    async def get_by_hash(self, request: Request, text: str, token: str | None) -> Response:
        """Answer GET and HEAD for a file by its Xet hash; its size comes out while it is read.

        Raises:
            RequestError: 400, not a hash.
            UpstreamError, IntegrityError: it cannot be had.
        """
        try:
            file_hash = parse_hash(text.lower())
        except ValueError as exc:
            raise RequestError(400, str(exc)) from None
        query = request.query
        repo = parse_repo(query.get("repo", self._up.hash_repo), query.get("type", "model"))
        access = ReadAccess(self._up.hub, repo, get_revision(request), token)
        name = format_hash(file_hash)
        headers = [
            ("Content-Type", "application/octet-stream"),
            ("Content-Disposition", _content_disposition(name)),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Xet-Hash", name),
            ("ETag", f'"{name}"'),
        ]
        async with _head_timeout(self._up.limits):
            if request.method == "HEAD":
                await self._check_exists(access, file_hash)
                return Response(200, headers, _no_blocks())
            return await self._get_xet(access, file_hash, None, None, headers)

    async def _check_exists(self, access: ReadAccess, file_hash: bytes) -> None:
        try:
            await self._up.cas.fetch_reconstruction(access, file_hash, ByteRange(0, 1))
        except RangeUnsatisfiable:
            return  # an empty file is one, too

    async def _get_xet(
        self,
        access: ReadAccess,
        file_hash: bytes,
        size: int | None,
        span: Span | None,
        headers: list[tuple[str, str]],
    ) -> Response:
        if size == 0:
            return Response(200, headers, b"")
        reader = FileReader(
            self._fetches,
            access,
            file_hash,
            start=span.start if span else 0,
            end=span.end if span else None,
            size=size,
            gap_timeout=self._up.limits.gap_timeout,
        )
        body = await start_body(reader.blocks())
        if span is None or size is None:
            return Response(200, headers, body, length=size, chunked=True)
        headers.append(("Content-Range", format_content_range(span, size)))
        return Response(206, headers, body, length=span.size)

    async def _get_plain(
        self,
        entry: FileEntry,
        span: Span | None,
        headers: list[tuple[str, str]],
        token: str | None,
    ) -> Response:
        wanted = None if span is None else ByteRange(*span).to_header()
        opened = self._up.hub.open_plain(entry, token, wanted)
        source = await opened.__aenter__()
        is_part = source.status == 206
        digest = None if is_part else ContentDigest.of(entry)
        # From here on the body owns the connection, and leaves it on every way out.
        blocks = plain_blocks(opened, source, digest, self._up.limits.gap_timeout)
        body = await start_body(blocks)
        length = source.content_length
        coding = source.headers.get("content-encoding", "identity")
        expected = span.size if is_part and span is not None else entry.size
        if (
            coding != "identity"
            or source.status == 416
            or (is_part and not _is_range(source.headers.get("content-range"), span))
            or (length is not None and expected is not None and length != expected)
        ):
            await body.aclose()
            raise UpstreamRefused("the Hub sent something else than the file it described")
        if is_part and span is not None and entry.size is not None:
            headers.append(("Content-Range", format_content_range(span, entry.size)))
            return Response(206, headers, body, length=span.size)
        return Response(200, headers, body, length=expected if length is None else length)


def _is_range(content_range: str | None, span: Span | None) -> bool:
    """Tell whether a 206 answer is for the part that was asked for."""
    parsed = parse_content_range(content_range or "")
    return parsed is not None and parsed[0] == span


@asynccontextmanager
async def _head_timeout(limits: ReadLimits) -> AsyncIterator[None]:
    """Bound all that comes before the head: clients give up on a server that says nothing for 10 s."""
    try:
        async with asyncio.timeout(limits.gap_timeout):
            yield
    except TimeoutError:
        raise UpstreamTimeout(
            f"the upstream has not answered within {limits.gap_timeout:g} seconds"
        ) from None


async def _no_blocks() -> AsyncGenerator[Block, None]:
    """The body of a HEAD answer whose length is not known."""
    return
    yield []


def _requested_span(request: Request, entry: FileEntry) -> Span | None:
    """Give the part that is asked for; None: the whole.

    Raises:
        RequestError: 416.
    """
    value = request.headers.get("range")
    if value is None or request.method != "GET" or entry.size is None:
        return None
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != _etag(entry):
        return None  # the client has a part of something else (RFC 9110, 13.1.5)
    try:
        return parse_range(value, entry.size)
    except UnsatisfiableRange:
        raise RequestError(
            416,
            f"the file has {entry.size} bytes",
            [("Content-Range", format_unsatisfied_range(entry.size))],
        ) from None


def _etag(entry: FileEntry) -> str | None:
    value = entry.sha256 or entry.etag
    if value is None and entry.file_hash is not None:
        value = format_hash(entry.file_hash)
    return None if value is None else f'"{value}"'


def _file_headers(entry: FileEntry, path: str) -> list[tuple[str, str]]:
    name = path.rpartition("/")[2]
    media_type, coding = _MEDIA_TYPES.guess_type(name, strict=False)
    if media_type is None or coding is not None:
        media_type = "application/octet-stream"
    headers = [
        ("Content-Type", media_type),
        ("Content-Disposition", _content_disposition(name)),
        # Files of strangers, served from our host: nothing may run in a browser.
        ("X-Content-Type-Options", "nosniff"),
    ]
    optional = (
        ("ETag", _etag(entry)),
        ("Last-Modified", entry.last_modified),
        ("Accept-Ranges", None if entry.size is None else "bytes"),
        ("X-Repo-Commit", entry.commit),
        ("X-Linked-Size", None if entry.size is None else str(entry.size)),
        ("X-Xet-Hash", None if entry.file_hash is None else format_hash(entry.file_hash)),
    )
    headers += [(key, value) for key, value in optional if value is not None]
    return headers


def _content_disposition(name: str) -> str:
    """Name the file, for old clients in ASCII and for all others as it is (RFC 6266, 4.3)."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name)
    value = f'attachment; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=UTF-8''{quote(name, safe='')}"
