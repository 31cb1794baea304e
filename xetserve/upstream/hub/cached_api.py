"""Answers of the Hub's API that are kept: questions about a repository, and listings, up to a few
MiB each.
"""

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
from xetserve.upstream.answers.cache import AnswerCache, Renew
from xetserve.upstream.answers.question import Answer, Question, Verdict
from xetserve.upstream.hub.cached_entries import ABSENT_CODES
from xetserve.upstream.hub.entry import RepoRef
from xetserve.upstream.requests import naming_errors
from xetserve.upstream.slices import Slices

MAX_ANSWER_SIZE: Final = 4 * 1024 * 1024  # bytes; what is larger is passed on and not kept
MAX_COLLECTED: Final = 8 * MAX_ANSWER_SIZE  # bytes being received by all questions together
MAX_LARGE: Final = 1000  # questions whose answer was too large or a token, remembered
JSON_TYPE: Final = "application/json"
MAX_ACCEPT_SIZE: Final = 200  # characters of an Accept field; answers to a longer one are not kept
_BUFFER_SIZE: Final = 64 * 1024
# Fields that are about one connection or for one client, and never kept.
_NOT_KEPT: Final = frozenset(
    ("connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding",
     "set-cookie", "date", "via", "trailer")
)  # fmt: skip
# An answer with one of these holds a token for the CAS, whatever the path of the question looked
# like.
_TOKEN_FIELD: Final = "x-xet-access-token"
_TOKEN_MEMBERS: Final = (b'"accessToken"', b'"casUrl"')

# Of questions about one repository, as clients ask them before they download.
_PARAMETERS: Final = frozenset(("recursive", "expand", "blobs", "limit", "cursor"))


class ApiAnswer(NamedTuple):
    """An answer, its body decoded and in the memory of the cache. stale_age: see Answer."""

    status: int
    headers: Headers
    body: memoryview
    stale_age: int | None


class NotKept(Exception):
    """The answer is too large, a token, or nothing that is kept: it is to be asked for and passed
    on.
    """


Opened = AbstractAsyncContextManager[ClientResponse]
Open = Callable[[bool], Opened]


class ApiAnswers:
    """Asks, keeps, and gives again.

    Args:
        timeout: seconds without a byte.
    """

    def __init__(self, metadata: AnswerCache, *, timeout: float) -> None:
        self._metadata = metadata
        self._timeout = timeout
        self._large: LruDict[Question, None] = LruDict(max_num=MAX_LARGE)
        self._collected = 0

    async def get(self, question: Question, open_: Open, renew: Renew | None = None) -> ApiAnswer:
        """Return an answer.

        Args:
            open_: asks the Hub, patiently or not.

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

        return unpack_api(await self._metadata.get(question, ask, renew))

    async def _collect(self, question: Question, response: ClientResponse) -> Answer:
        """Receive an answer, as far as it may be kept."""
        status, headers = response.status, response.headers
        if status not in (200, 401, 403, 404, 410) or not _is_json(headers):
            raise NotKept
        if _TOKEN_FIELD in headers:
            self._large.put(question, None)
            raise NotKept
        body = bytearray()
        decoder = StreamDecoder(headers.get("content-encoding"))
        buffer = bytearray(_BUFFER_SIZE)
        slices = Slices()
        try:
            with naming_errors("the Hub"):
                while count := await response.receive_into(memoryview(buffer), self._timeout):
                    for piece in decoder.decode(bytes(memoryview(buffer)[:count])):
                        await slices.add(len(piece))
                        self._collected += len(piece)
                        body += piece
                        if len(body) > MAX_ANSWER_SIZE:
                            self._large.put(question, None)
                            raise NotKept
                        if self._collected > MAX_COLLECTED:
                            raise NotKept
            decoder.finish()
            if any(member in body for member in _TOKEN_MEMBERS):
                self._large.put(question, None)
                raise NotKept
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
    """Return what tells one question to the API from another.

    Args:
        target: path and query, encoded.
        fields: of the request, as far as they change the answer: select_kept_fields.
    """
    told = {name.lower(): value for name, value in fields}
    accept = told.get("accept", JSON_TYPE)
    # The last word was the language once, and stays so that what is stored is found.
    words = [method, target, "" if accept == JSON_TYPE else accept, ""]
    if body:
        words += [told.get("content-type", ""), sha256(body).hexdigest()]
    return Question(scope, "api", repo.name, "\0".join(words))


def select_kept_fields(fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """Return the fields of a request that may change the Hub's answer, for a question whose answer
    is kept.

    The API gives JSON in one language, and what others may get must not depend on what this client
    has already.
    None: the answer is not to be kept.
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
    """Return the commit that a revision was, as far as is known without asking."""
    for target in list_commit_targets(repo, revision):
        answer = await metadata.find_old(make_question(scope, repo, "GET", target))
        commit = None if answer is None else read_commit(answer)
        if commit is not None:
            return commit
    return None


def list_commit_targets(repo: RepoRef, revision: str) -> list[str]:
    """List the questions whose answers name the commit of a revision."""
    targets = [f"{repo.api_prefix}/revision/{quote(revision, safe='')}"]
    return [*targets, repo.api_prefix] if revision == "main" else targets


def read_commit(answer: Answer) -> str | None:
    """Return the commit that a kept answer about a revision names; None: it names none."""
    if answer.verdict is Verdict.GOOD:
        with suppress(FormatError, KeyError, TypeError, UpstreamError):
            return str(parse_json(bytes(unpack_api(answer).body))["sha"])
    return None


def _is_minor(question: Question) -> bool:
    """Return whether whoever asks can make up ever more of such questions: searches, lists of
    paths, unknown parameters.
    """
    method, _, target = question.name.partition("\0")
    query = target.partition("\0")[0].partition("?")[2]
    names = {part.partition("=")[0].removesuffix("[]") for part in query.split("&") if part}
    return method != "GET" or question.repo.endswith("/") or not names <= _PARAMETERS


def _is_json(headers: Headers) -> bool:
    # Refusals of the Hub may have no body, and so no type.
    return "json" in (headers.get("content-type") or "json").lower()


def _judge(status: int, headers: Headers) -> Verdict:
    if status == 200:
        return Verdict.GOOD
    if status in (404, 410):
        code = headers.get("x-error-code")
        # A 404 without a word may be about anything: it is kept, and proves nothing about the
        # repository.
        return Verdict.ABSENT if code is None or code in ABSENT_CODES else Verdict.REFUSED
    return Verdict.REFUSED


def _pack(status: int, headers: Sequence[tuple[str, str]] | Headers, body: bytearray) -> bytes:
    kept = [[name, value] for name, value in headers if name.lower() not in _NOT_KEPT]
    return json.dumps([status, kept]).encode() + b"\n" + body


def unpack_api(answer: Answer) -> ApiAnswer:
    """Read a kept answer.

    Raises:
        UpstreamError: it was written by another version, maybe.
    """
    try:
        end = answer.data.index(b"\n")
        status, fields = parse_json(answer.data[:end])
        headers = Headers([(name, value) for name, value in fields])
        body = memoryview(answer.data)[end + 1 :]
        return ApiAnswer(int(status), headers, body, answer.stale_age)
    except (FormatError, ValueError, TypeError) as exc:
        raise UpstreamError("a stored answer of the Hub cannot be read") from exc
