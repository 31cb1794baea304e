"""Cached answers of the Hub's API: about a repository, and listings, up to a few MiB each."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

from xetserve.base.json_text import parse_json
from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError, UpstreamError
from xetserve.http.encoding import StreamDecoder
from xetserve.http.messages import Headers
from xetserve.net.client_connection import ClientResponse
from xetserve.upstream.answers.cache import AnswerCache, FindOther, Renew
from xetserve.upstream.answers.question import Answer, Question, Verdict
from xetserve.upstream.hub.cached_entries import ABSENT_CODES
from xetserve.upstream.hub.entry import RepoRef
from xetserve.upstream.hub.token_guard import TokenGuard, has_token_fields, may_be_json
from xetserve.upstream.requests import naming_errors
from xetserve.upstream.slices import Slices

MAX_ANSWER_SIZE: Final = 4 * 1024 * 1024  # bytes; a larger answer is passed on and not cached
MAX_COLLECTED: Final = 8 * MAX_ANSWER_SIZE  # bytes that all questions together may be receiving
MAX_LARGE: Final = 1000  # remembered questions whose answer was too large or held a token
JSON_TYPE: Final = "application/json"
MAX_ACCEPT_SIZE: Final = 200  # characters; answers to a longer Accept field are not cached
_BUFFER_SIZE: Final = 64 * 1024
# Fields about one connection or for one client, which are never cached.
_NOT_KEPT: Final = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding",
     "set-cookie", "date", "via", "trailer")
)  # fmt: skip

# Paths that clients request before they download.
_PARAMETERS: Final = frozenset(("recursive", "expand", "blobs", "limit", "cursor"))


class ApiAnswer(NamedTuple):
    """An answer with its body decoded; the cache keeps it in memory. stale_age: see Answer."""

    status: int
    headers: Headers
    body: memoryview
    stale_age: int | None


class NotKept(Exception):
    """The answer is too large, holds a token, or may not be cached: ask again and pass it on."""


Opened = AbstractAsyncContextManager[ClientResponse]
Open = Callable[[bool], Opened]


class ApiAnswers:
    """Ask the Hub's API, or use a cached answer.

    Args:
        timeout: seconds without a byte.
    """

    def __init__(self, metadata: AnswerCache, *, timeout: float) -> None:
        self._metadata = metadata
        self._timeout = timeout
        self._large: LruDict[Question, None] = LruDict(max_num=MAX_LARGE)
        self._collected = 0

    async def get(
        self,
        question: Question,
        open_: Open,
        renew: Renew | None = None,
        find_other: FindOther | None = None,
    ) -> ApiAnswer:
        """Return an answer.

        Args:
            open_: sends the request; its argument is whether to retry.
            renew, find_other: as AnswerCache.get.

        Raises:
            NotKept: see there.
            UpstreamError and its kinds: as AnswerCache.get.
        """
        if not question.is_kept:
            raise NotKept
        if question in self._large and not self._metadata.policy.is_offline:
            raise NotKept

        async def ask(patient: bool) -> Answer:
            async with open_(patient) as response:
                return await self._collect(question, response)

        return unpack_api(await self._metadata.get(question, ask, renew, find_other))

    async def _collect(self, question: Question, response: ClientResponse) -> Answer:
        """Receive an answer, if it may be cached."""
        status, headers = response.status, response.headers
        if status not in (200, 401, 403, 404, 410) or not may_be_json(headers):
            raise NotKept
        if has_token_fields(headers):
            self._large.put(question, None)
            raise NotKept
        body = bytearray()
        decoder = StreamDecoder(headers.get("content-encoding"))
        buffer = bytearray(_BUFFER_SIZE)
        slices = Slices()
        guard = TokenGuard()
        try:
            with naming_errors("the Hub"):
                while count := await response.receive_into(memoryview(buffer), self._timeout):
                    for piece in decoder.decode(bytes(memoryview(buffer)[:count])):
                        await slices.add(len(piece))
                        self._collected += len(piece)
                        body += piece
                        if len(body) > MAX_ANSWER_SIZE or guard.finds_token(piece):
                            self._large.put(question, None)
                            raise NotKept
                        if self._collected > MAX_COLLECTED:
                            raise NotKept
            decoder.finish()
        except FormatError as exc:
            raise UpstreamError(f"the Hub: {exc}") from exc
        finally:
            self._collected -= len(body)
        verdict = _judge(status, headers)
        return Answer(_pack(status, headers, body), verdict, is_minor=_is_minor(question))


def make_question(
    scope: str,
    repo: RepoRef,
    method: str,
    target: str,
    fields: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
) -> Question:
    """Return the question of a request to the API.

    Args:
        target: path and query, encoded.
        fields: the request's fields that may change the answer; see select_kept_fields.
    """
    told = {name.lower(): value for name, value in fields}
    accept = told.get("accept", JSON_TYPE)
    # The last part was the language once. It stays, so that older stored answers are found.
    words = [method, target, "" if accept == JSON_TYPE else accept, ""]
    if body:
        words += [told.get("content-type", ""), sha256(body).hexdigest()]
    return Question(scope, "api", repo.name, "\0".join(words))


def select_kept_fields(fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """Return the fields of a request that may change the answer: Accept and Content-Type.

    None: the answer must not be cached. The client's language is left out, because the API's JSON
    has one language, and so are conditions: a cached answer is for other clients, too.
    """
    kept = []
    for name, told in fields:
        value = told
        if name.lower() == "accept":
            if "*/*" in value or JSON_TYPE in value:
                value = JSON_TYPE
            if len(value) > MAX_ACCEPT_SIZE:
                return None
        if name.lower() in ("accept", "content-type"):
            kept.append((name, value))
    return kept


async def find_commit(
    metadata: AnswerCache, scope: str, repo: RepoRef, revision: str
) -> str | None:
    """Return the last known commit of a revision, without asking."""
    for target in list_commit_targets(repo, revision):
        answer = await metadata.find_old(make_question(scope, repo, "GET", target))
        commit = None if answer is None else read_commit(answer)
        if commit is not None:
            return commit
    return None


def list_commit_targets(repo: RepoRef, revision: str) -> list[str]:
    """Return the targets whose answers name the commit of a revision."""
    targets = [f"{repo.api_prefix}/revision/{quote(revision, safe='')}"]
    return [*targets, repo.api_prefix] if revision == "main" else targets


def read_commit(answer: Answer) -> str | None:
    """Return the commit that a cached answer about a revision names; None: it names none."""
    if answer.verdict is Verdict.GOOD:
        with suppress(FormatError, KeyError, TypeError, UpstreamError):
            return str(parse_json(bytes(unpack_api(answer).body))["sha"])
    return None


def _is_minor(question: Question) -> bool:
    """Return whether clients can invent any number of such questions, such as searches."""
    method, _, target = question.name.partition("\0")
    query = target.partition("\0")[0].partition("?")[2]
    names = {part.partition("=")[0].removesuffix("[]") for part in query.split("&") if part}
    return method != "GET" or question.repo.endswith("/") or not names <= _PARAMETERS


def _judge(status: int, headers: Headers) -> Verdict:
    if status == 200:
        return Verdict.GOOD
    if status in (404, 410):
        code = headers.get("x-error-code")
        # A 404 without a code may mean anything: it is cached, and says nothing about the
        # repository.
        return Verdict.ABSENT if code is None or code in ABSENT_CODES else Verdict.REFUSED
    return Verdict.REFUSED


def _pack(status: int, headers: Sequence[tuple[str, str]] | Headers, body: bytearray) -> bytes:
    kept = [[name, value] for name, value in headers if name.lower() not in _NOT_KEPT]
    return json.dumps([status, kept]).encode() + b"\n" + body


def unpack_api(answer: Answer) -> ApiAnswer:
    """Decode a cached answer.

    Raises:
        UpstreamError: it cannot be read; another version may have written it.
    """
    try:
        end = answer.data.index(b"\n")
        status, fields = parse_json(answer.data[:end])
        headers = Headers([(name, value) for name, value in fields])
        body = memoryview(answer.data)[end + 1 :]
        return ApiAnswer(int(status), headers, body, answer.stale_age)
    except (FormatError, ValueError, TypeError) as exc:
        raise UpstreamError("a stored answer of the Hub cannot be read") from exc
