"""Forward API requests to the Hub and return its answers, with our URLs in place of the Hub's."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol

from xetserve.app.download.body import hold_body, no_blocks, start_body
from xetserve.app.download.hub_answer import HubAnswer
from xetserve.app.download.service import STALE_FIELD, head_timeout
from xetserve.app.errors import add_note, note_missing_token
from xetserve.app.hub import event_streams
from xetserve.app.hub.json_bodies import (
    Page,
    Part,
    Pieces,
    find_following,
    join_pages,
    make_blocks,
    read_pieces,
)
from xetserve.app.hub.json_entry_filter import EntryFilter
from xetserve.app.hub.json_filter import MemberFilter, NullFilter
from xetserve.app.hub.llama_cpp import is_llama_cpp
from xetserve.app.hub.paths import (
    find_kept_question,
    is_about_bucket,
    is_lasting_question,
    normalize_tree,
)
from xetserve.errors import UpstreamRefused
from xetserve.http.conditions import Validators, Verdict, check_conditions
from xetserve.http.cors import add_vary
from xetserve.http.messages import Headers, Request, Response
from xetserve.http.relay import (
    move_page,
    select_answer_fields,
    select_request_fields,
)
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.answers.question import Question
from xetserve.upstream.answers.scope import get_scope
from xetserve.upstream.hub.cached_api import (
    ApiAnswer,
    ApiAnswers,
    NotKept,
    Opened,
    make_question,
    select_kept_fields,
)
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.hub.token_guard import TokenGuard, check_fields, may_be_json

Get = Callable[[str], Awaitable[ApiAnswer]]

MAX_QUESTION_SIZE: Final = 1024 * 1024  # bytes of a request body: a list of some ten thousand paths
HELD_SIZE: Final = 256 * 1024  # bytes; a smaller answer is sent as a whole, with its length
# Bytes of large cached answers that clients may be reading at a time. Above it, a request for
# another one is forwarded to the Hub.
MAX_LENT: Final = 32 * 1024 * 1024
_BUFFER_SIZE: Final = 64 * 1024
EXACT: Final = -2  # for native_above: the answer must not be changed
_XET_MEMBERS: Final = ("xetHash", "xetEnabled")


class PassThrough:
    """Passes requests on to the Hub.

    Args:
        limits: gap_timeout bounds the wait for the head, and for each piece of the body.
    """

    def __init__(self, hub: HubClient, limits: ReadLimits) -> None:
        self._hub = hub
        self._limits = limits
        self._known: ApiAnswers | None = None
        if hub.metadata is not None:
            self._known = ApiAnswers(hub.metadata, timeout=limits.gap_timeout)
        self._lent = 0  # bytes of large cached answers that are being sent

    async def answer(
        self,
        request: Request,
        token: str | None,
        *,
        native_above: int | None,
        joins_pages: bool = False,
        may_have_token: bool = False,
    ) -> Response:
        """Return the Hub's answer, from the cache if it is there.

        Args:
            native_above: bytes. JSON members about Xet are removed, except from entries of larger
                files; None: from all entries; another negative number than EXACT: from none. An
                "xetHash" that is no hash, empty or redacted, is removed in any case.
            joins_pages: join all pages of a list into one.
            may_have_token: the caller replaces the token for the CAS that the answer has.

        Raises:
            RequestError: 413, the body has more than MAX_QUESTION_SIZE bytes.
            UpstreamError: the Hub fails or does not answer, or answers with a token.
        """
        body = await request.body.read(MAX_QUESTION_SIZE) if request.method == "POST" else b""
        may_stream = event_streams.may_stream(request)
        timeout = event_streams.HEAD_TIMEOUT if may_stream else None
        # Events that are coded together would come late.
        coding = "identity" if may_stream else "gzip"
        fields = [*select_request_fields(request.headers), ("Accept-Encoding", coding)]
        hub = self._hub.on_behalf(request.headers, names_agent=True, timeout=timeout)
        with suppress(NotKept):
            return await self._answer_known(
                request, hub, token, body, native_above=native_above, joins_pages=joins_pages
            )
        async with head_timeout(self._limits, timeout):
            page = await _open(hub.forward(request.method, request.target, fields, token, body))
            del body
            request.body.release()
            status, headers = page.status, _make_fields(hub, request, page)
            guard = None if may_have_token else await _guard(page)
            if request.method == "HEAD" or status in (204, 304):
                await page.opened.__aexit__(None, None, None)
                # The length of our body is unknown: the Hub's length may be that of a coded body.
                return Response(status, headers, no_blocks())
            if event_streams.is_stream(page.headers):
                return await event_streams.make_stream(page, headers)
            members = _make_filter(request, page.headers, native_above)
            if joins_pages and status == 200 and page.following is not None:
                # These fields describe the first page only.
                headers = _drop_page_fields(headers)
                part = Part(read_pieces(page, self._limits.gap_timeout), page.following)
                get = self._make_get(request, hub, token)
                pieces = self._join(request, hub, part, get, token)
            else:
                pieces = read_pieces(page, self._limits.gap_timeout)
            return Response(
                status, headers, await hold_body(make_blocks(pieces, members, guard), HELD_SIZE)
            )

    async def _answer_known(
        self,
        request: Request,
        hub: HubClient,
        token: str | None,
        body: bytes,
        *,
        native_above: int | None,
        joins_pages: bool,
    ) -> Response:
        """Return a cached answer; ask the Hub and cache its answer if there is none.

        Raises:
            NotKept: answers to such requests are not cached, or this one cannot be sent from the
                cache.
            UpstreamError: the Hub fails or does not answer.
        """
        get = self._make_get(request, hub, token, body)
        known = await get(request.target)
        request.body.release()
        large = len(known.body) > HELD_SIZE
        self._check_room(known)
        headers = _make_fields(hub, request, known)
        if known.stale_age is not None:
            headers.append((STALE_FIELD, str(known.stale_age)))
        following = find_following(known.headers) if known.status == 200 else None
        if joins_pages and following is not None:
            headers = _drop_page_fields(headers)
            if request.method == "HEAD":
                return Response(200, headers, no_blocks())
            pieces = self._join(request, hub, Part(self._lend(known.body), following), get, token)
            members = _make_filter(request, known.headers, native_above)
            return Response(200, headers, await hold_body(make_blocks(pieces, members), HELD_SIZE))
        if known.status == 200 and _has_it(request, known.headers):
            return Response(304, [field for field in headers if field[0] != "Content-Type"])
        if request.method == "HEAD":
            return Response(known.status, headers, no_blocks())
        members = _make_filter(request, known.headers, native_above)
        if large:
            blocks = make_blocks(self._lend(known.body), members)
            return Response(known.status, headers, await start_body(blocks))
        content = bytes(known.body)
        if members is not None:
            content = members.feed(content) + members.finish()
        return Response(known.status, headers, content)

    def _check_room(self, known: ApiAnswer) -> None:
        """Check that a cached answer may be sent, beside those that clients are reading.

        Raises:
            NotKept: it is large, and they are many.
        """
        if len(known.body) > HELD_SIZE and self._lent > MAX_LENT and known.stale_age is None:
            raise NotKept

    async def _lend(self, body: memoryview) -> Pieces:
        """Yield a cached answer; its memory counts as lent until the iterator ends."""
        self._lent += len(body)
        try:
            for at in range(0, len(body), _BUFFER_SIZE):
                yield bytes(body[at : at + _BUFFER_SIZE])
        finally:
            self._lent -= len(body)

    def _make_get(
        self, request: Request, hub: HubClient, token: str | None, body: bytes = b""
    ) -> Get:
        """Return a function that gets the answer to the request, or to its next page, by target.

        It raises NotKept if answers to such requests are not cached, and UpstreamError.
        """

        async def get(target: str) -> ApiAnswer:
            repo = find_kept_question(request.raw_path)
            fields = select_kept_fields(select_request_fields(request.headers))
            if self._known is None or repo is None or fields is None:
                raise NotKept
            method = "POST" if request.method == "POST" else "GET"
            spelling = normalize_tree(target)
            was_stored = spelling != target  # by older versions, as the client wrote it
            if target.startswith("/v2/") and is_llama_cpp(request.headers):
                spelling += "#llama.cpp"  # its manifests are others
            is_lasting = is_lasting_question(target)

            def ask(patient: bool) -> Opened:
                sent = [*fields, ("Accept-Encoding", "gzip")]
                return hub.forward(method, target, sent, token, body, patient=patient)

            async def renew(data: bytes) -> float | None:
                return await hub.find_grant(repo, token) if is_lasting else None

            async def find_older(scope: str) -> Question | None:
                """Return the question in the client's spelling, as older versions stored it."""
                return make_question(scope, repo, method, target, fields, body)

            question = make_question(get_scope(token), repo, method, spelling, fields, body)
            async with head_timeout(self._limits):
                return await self._known.get(
                    question, ask, renew, find_older if was_stored else None
                )

        return get

    def _join(
        self, request: Request, hub: HubClient, part: Part, get: Get, token: str | None
    ) -> Pieces:
        """Join the pages of a list: cached ones, and others with the fields of the request.

        Conditions (If-...) are left out, since they are about the first page.
        """
        selected = select_request_fields(request.headers)
        fields = [field for field in selected if not field[0].startswith("If-")]
        fields.append(("Accept-Encoding", "gzip"))

        async def open_part(url: str) -> Part:
            target = move_page(url, request.raw_path, hub.bases, "")
            if not target.startswith("/"):
                raise UpstreamRefused("the Hub's list continues on another host")
            with suppress(NotKept):
                known = await get(target)
                self._check_room(known)
                _check_page(known.status)
                return Part(self._lend(known.body), find_following(known.headers))
            async with head_timeout(self._limits):
                page = await _open(hub.forward("GET", target, fields, token))
            try:
                _check_page(page.status)
            except UpstreamRefused:
                await page.opened.__aexit__(None, None, None)
                raise
            return Part(read_pieces(page, self._limits.gap_timeout), page.following)

        return join_pages(part, open_part)


def _check_page(status: int) -> None:
    if status != 200:
        raise UpstreamRefused(f"the Hub answered {status} in the middle of a list")


def _drop_page_fields(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the fields of a joined list, without those that describe the first page only."""
    return [field for field in headers if field[0] not in ("Link", "ETag")]


def make_answer_fields(hub: HubClient, request: Request, headers: Headers) -> list[tuple[str, str]]:
    """Return the header fields of the Hub's answer that go to the client."""
    fields = select_answer_fields(headers, hub.bases, request.base_url, request.raw_path)
    fields.append(hub.make_via(headers))
    vary = [name.strip() for value in headers.get_all("vary") for name in value.split(",")]
    fields = [field for field in fields if field[0] != "Vary"]
    # A 304 and the answer to a HEAD have the Vary of a 200, whose content may get a coding here.
    add_vary(fields, *vary, "Authorization", "Accept-Encoding")
    return fields


async def _open(opened: AbstractAsyncContextManager[HubAnswer]) -> Page:
    """Wait for the head of an answer."""
    return Page(opened, await opened.__aenter__())


async def _guard(page: Page) -> TokenGuard | None:
    """Check the fields of an answer, and return what checks its body; None: it is not JSON.

    Raises:
        UpstreamRefused: the fields hold a token; the page is closed.
    """
    try:
        check_fields(page.headers)
    except UpstreamRefused:
        await page.opened.__aexit__(None, None, None)
        raise
    return TokenGuard() if may_be_json(page.headers) else None


class _Answer(Protocol):
    """The head of an answer of the Hub, new or cached."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...


def _make_fields(hub: HubClient, request: Request, answer: _Answer) -> list[tuple[str, str]]:
    """Return the header fields for the client; caches must not store errors."""
    fields = make_answer_fields(hub, request, answer.headers)
    if answer.status >= 400:
        fields = [field for field in fields if field[0] != "Cache-Control"]
        fields.append(("Cache-Control", "no-store"))
        code = answer.headers.get("x-error-code")
        fields = add_note(fields, note_missing_token(request, answer.status, code))
    return fields


def _make_filter(
    request: Request, headers: Headers, native_above: int | None
) -> MemberFilter | EntryFilter | None:
    """Return the filter that removes members about Xet from an answer; None: they stay."""
    if not _is_json(headers):
        return None
    if is_about_bucket(request.raw_path):
        # Clients need the member in every entry. They read files without a hash over HTTP.
        return NullFilter(("xetHash",)) if native_above is None else None
    if native_above is None:
        return MemberFilter(_XET_MEMBERS)
    if native_above == EXACT:
        return None
    if native_above < 0:
        return MemberFilter(("xetHash",), spares_hashes=True)
    return EntryFilter(_XET_MEMBERS, native_above)


def _is_json(headers: Headers) -> bool:
    return "json" in (headers.get("content-type") or "").lower()


def _has_it(request: Request, headers: Headers) -> bool:
    """Return whether a condition of the request shows that the client has this answer."""
    etag = headers.get("etag")
    if etag is None or request.method == "POST":
        return False
    current = Validators((etag.removeprefix("W/"),), None)
    return check_conditions(request.headers, current, 0.0)[0] is Verdict.NOT_MODIFIED
