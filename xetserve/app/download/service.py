"""Serve files: /download by repository and path, /download-hash by Xet hash, and the Hub's URLs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from xetserve.app.download.checksums import answer_checksum, wants_checksum
from xetserve.app.download.content import BlobContent, Content, XetContent
from xetserve.app.download.representation import Representation, describe_entry, describe_hash
from xetserve.app.download.respond import FileAnswers, wants_part
from xetserve.app.download.sizes import FileSizes
from xetserve.app.download.xet_offer import answer_file_info, offer_xet, wants_file_info
from xetserve.app.download.zstd_body import Compressors
from xetserve.app.errors import from_error
from xetserve.app.paths import ResolvePath, check_query, get_revision, join_file_path, parse_repo
from xetserve.errors import RequestError, UpstreamError, UpstreamTimeout
from xetserve.http.conditions import has_conditions
from xetserve.http.messages import Request, Response
from xetserve.pipeline.cache.blobs import BlobCache
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.upstream.hub.client import FileEntry, HubClient, ReadAccess, RepoRef
from xetserve.xet.hashes import parse_hash

# Query parameters of /download. "download" is in links that were copied from the Hub's pages.
_PARAMETERS: Final = ("revision", "type", "checksum", "length", "download")
STALE_FIELD: Final = "X-Xetserve-Stale"  # age in seconds of the Hub's answer that is used


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The clients and engines that serving a file needs.

    engine: reads Xet files.
    hash_repo: owner/name of the repository whose read token is used for files that are requested by
        hash alone.
    blob_cache: the disk cache of plain files; None: there is no disk cache.
    datasets_server: asks the Hub's host for parts of datasets; None: there is none.
    """

    hub: HubClient
    engine: Engine
    hash_repo: str
    blob_cache: BlobCache | None = None
    datasets_server: HubClient | None = None


class FileService:
    """Serves files.

    Args:
        compression: compress files with zstd for clients that accept it.
        download_length: send downloads with Content-Length, unless a request has ?length=0.
    """

    def __init__(
        self, upstreams: Upstreams, *, compression: bool = True, download_length: bool = False
    ) -> None:
        self._up = upstreams
        self._engine = upstreams.engine
        self._limits = upstreams.engine.limits
        self._sizes = FileSizes(upstreams.engine.source)
        self._answers = FileAnswers(Compressors() if compression else None)
        # Hub clients compare lengths and resume broken transfers, so they get no content coding,
        # and a Content-Length whenever the size is known.
        self._hub_answers = FileAnswers(None, with_length=True)
        self._download_length = download_length

    async def get_file(
        self,
        request: Request,
        kind: str | None,
        owner: str,
        name: str,
        path: list[str],
        token: str | None,
    ) -> Response:
        """Answer GET and HEAD for a file of a repository.

        Args:
            kind: of the repository, from the path; None: ?type= names it.

        Raises:
            RequestError: the path or the query is not valid, or a condition or range fails.
            UpstreamError: the Hub or the CAS fails or refuses.
            IntegrityError: the data is damaged.
        """
        check_query(request, _PARAMETERS)
        given = request.query.get("type", kind or "model")
        if kind is not None and given != kind:
            raise RequestError(400, f"the path names a {kind}, but ?type= a {given}")
        repo = parse_repo(f"{owner}/{name}", given)
        file_path = join_file_path(path)
        revision = get_revision(request)
        is_for_checksum = wants_checksum(request)
        with_length = self._wants_length(request)
        request.record.repo, request.record.file = repo.id, file_path
        hub = self._up.hub.on_behalf(request.headers)
        async with head_timeout(self._limits):
            entry = await hub.resolve(repo, revision, file_path, token)
            file = describe_entry(
                entry, file_path, revision, is_public=token is None, now=time.time()
            )
            content = self._make_content(hub, entry, repo, revision, token, request)
            if is_for_checksum:
                return _mark_stale(await answer_checksum(file, content), entry)
            answers = self._choose_answers(with_length=with_length)
            return _mark_stale(await self._answer(answers, request, file, content), entry)

    async def get_resolved(
        self,
        request: Request,
        wanted: ResolvePath,
        token: str | None,
        *,
        native_above: int | None,
    ) -> Response:
        """Answer GET and HEAD for a file as the Hub does, but with the bytes, never a redirect.

        Args:
            native_above: bytes; the client is told that a larger file is Xet. None: it is told of
                no file.

        Raises:
            RequestError, UpstreamError, IntegrityError: as get_file.
        """
        repo, revision, file_path = wanted
        request.record.repo, request.record.file = repo.id, file_path
        hub = self._up.hub.on_behalf(request.headers, names_agent=True)
        async with head_timeout(self._limits):
            entry = await hub.resolve(repo, revision, file_path, token)
            is_native = native_above is not None and (entry.size or 0) > native_above
            file = replace(
                describe_entry(
                    entry, file_path, revision, is_public=token is None, now=time.time()
                ),
                is_hub=True,
                is_attached=request.query.get("download", "").lower() in ("1", "true"),
                hides_xet=True,
            )
            if is_native and entry.file_hash is not None:
                file = offer_xet(request, file, repo, entry, revision)
                if wants_file_info(request):
                    return answer_file_info(request, file, repo, entry, revision)
            return await self.get_described(request, hub, entry, file, repo, revision, token)

    async def get_described(
        self,
        request: Request,
        hub: HubClient,
        entry: FileEntry,
        file: Representation,
        repo: RepoRef,
        revision: str,
        token: str | None,
    ) -> Response:
        """Answer GET and HEAD, as the Hub does, for a file whose entry is known.

        Raises:
            RequestError, UpstreamError, IntegrityError: as get_file.
        """
        content = self._make_content(hub, entry, repo, revision, token, request)
        return _mark_stale(await self._answer(self._hub_answers, request, file, content), entry)

    async def get_by_hash(self, request: Request, text: str, token: str | None) -> Response:
        """Answer GET and HEAD for a file by its Xet hash.

        A GET of the whole file needs no size; it becomes known while the file is read.

        Raises:
            RequestError: 400, the hash is malformed; 404, the client asks for a checksum.
            UpstreamError: the Hub or the CAS fails or refuses.
            IntegrityError: the data is damaged.
        """
        try:
            file_hash = parse_hash(text.lower())
        except ValueError as exc:
            raise RequestError(400, str(exc)) from None
        if wants_checksum(request):
            raise RequestError(404, "the CAS names no sha256; ask for the file by its repository")
        repo = parse_repo(
            request.query.get("repo", self._up.hash_repo), request.query.get("type", "model")
        )
        request.record.file = text.lower()
        hub = self._up.hub.on_behalf(request.headers)
        with_length = self._wants_length(request)
        async with head_timeout(self._limits):
            size = None
            if (known := await hub.find_read(token, file_hash)) is not None:
                repo, size = known
            access = ReadAccess(hub, repo, get_revision(request), token)
            is_head = request.method == "HEAD"
            if size is None and (is_head or wants_part(request) or with_length):
                size = await self._sizes.get(access, file_hash)
            elif is_head or has_conditions(request.headers):
                await self._sizes.check_exists(access, file_hash)
            file = describe_hash(file_hash, size, is_public=token is None)
            client = _name_client(request)
            content = XetContent(
                self._engine, access, file_hash, size, request.record, client=client
            )
            answers = self._choose_answers(with_length=with_length)
            return await self._answer(answers, request, file, content)

    def refuse_hash(self, error: UpstreamError, request: Request) -> Response:
        """Answer an error of get_by_hash, and name the repository, which the request does not."""
        advice = (
            f"; the read token was that of {self._up.hash_repo} (hash_repo): name another "
            "repository with ?repo=OWNER/NAME"
        )
        response = from_error(error, request, advice)
        response.headers.append(("Cache-Control", "no-store"))
        return response

    def _wants_length(self, request: Request) -> bool:
        """Return whether a download is to have a Content-Length where its size is known.

        aria2 always gets one: `aria2c -c` takes any beginning of a file of unknown length for all
        of it, and ends with 0.

        Raises:
            RequestError: 400, ?length= is neither 0 nor 1.
        """
        value = request.query.get("length")
        if value is None:
            is_aria2 = (request.headers.get("user-agent") or "").startswith("aria2/")
            return self._download_length or is_aria2
        if value not in ("0", "1"):
            raise RequestError(400, f"length must be 0 or 1, not {value!r}")
        return value == "1"

    def _choose_answers(self, *, with_length: bool) -> FileAnswers:
        return self._hub_answers if with_length else self._answers

    async def _answer(
        self, answers: FileAnswers, request: Request, file: Representation, content: Content
    ) -> Response:
        """Check the conditions, then answer HEAD or GET."""
        file = self._mark(file, request)
        response = answers.check(request, file)
        if response is not None:
            return response
        if request.method == "HEAD":
            return answers.answer_head(request, file)
        needs_proof = file.is_suspect and file.size is not None and wants_part(request)
        if needs_proof and isinstance(content, XetContent):
            seconds = content.prove()
            file = replace(file, retry_after=None if file.client_was_cut else seconds)
        return await answers.answer_get(request, file, content)

    def _mark(self, file: Representation, request: Request) -> Representation:
        """Return a file with the flags that tell whether its transfers were cut."""
        if file.file_hash is None:
            return file
        client_was_cut = self._engine.was_client_cut(file.file_hash, _name_client(request))
        return replace(
            file,
            was_cut=self._engine.was_cut(file.file_hash),
            client_was_cut=client_was_cut,
            is_suspect=client_was_cut or self._engine.is_suspect(file.file_hash),
        )

    def _make_content(
        self,
        hub: HubClient,
        entry: FileEntry,
        repo: RepoRef,
        revision: str,
        token: str | None,
        request: Request,
    ) -> Content:
        if entry.file_hash is None:
            return BlobContent(
                hub,
                entry,
                token,
                self._limits.gap_timeout,
                self._limits.outage_patience,
                self._up.blob_cache,
                request.record,
                self._engine.budget,
            )
        access = ReadAccess(
            hub, repo, entry.commit or revision, token, entry.token_url, is_granted=True
        )
        on_open = partial(hub.note_read, repo, token, entry.file_hash, entry.size)
        return XetContent(
            self._engine,
            access,
            entry.file_hash,
            entry.size,
            request.record,
            on_open,
            client=_name_client(request),
        )


def _name_client(request: Request) -> str:
    """Return a name for whoever keeps what is sent: the address together with the token."""
    return f"{request.client} {request.record.token}"


def _mark_stale(response: Response, entry: FileEntry) -> Response:
    """Add the age of an old cached entry, which was used because the Hub did not answer."""
    if entry.stale_age is not None:
        response.headers.append((STALE_FIELD, str(entry.stale_age)))
    return response


@asynccontextmanager
async def head_timeout(limits: ReadLimits, longer: float | None = None) -> AsyncIterator[None]:
    """Bound the time until the head is sent, since clients give up after 10 s without an answer.

    Args:
        longer: seconds in place of gap_timeout, for clients that wait for longer.

    Raises:
        UpstreamTimeout: gap_timeout seconds have passed.
    """
    timeout = longer or limits.gap_timeout
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise UpstreamTimeout(f"the upstream has not answered within {timeout:g} seconds") from None
