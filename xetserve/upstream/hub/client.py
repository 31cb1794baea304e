"""The Hub: file entries by (repository, revision, path), read tokens for the CAS, forwarded
requests.

Failures that may pass are retried, within the retry policy.

Source: huggingface_hub file_download.py and utils/_xet.py; hub-docs xet/auth.md.
"""

import copy
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace

from xetserve.errors import FormatError, UpstreamDenied, UpstreamError, UpstreamMissing
from xetserve.http.messages import Headers
from xetserve.net.client_connection import ClientResponse, RequestContent
from xetserve.net.pool import ConnectionPool
from xetserve.upstream.answers.cache import AnswerCache
from xetserve.upstream.answers.question import Answer, Question, Verdict, make_holder
from xetserve.upstream.answers.scope import get_scope
from xetserve.upstream.hub.cached_api import find_commit
from xetserve.upstream.hub.cached_entries import (
    ABSENT_CODES,
    is_lasting,
    make_file_question,
    pack_entry,
    pack_holder,
    pack_missing,
    unpack_entry,
    unpack_holder,
)
from xetserve.upstream.hub.entry import BUCKET, FileEntry, RepoRef, describe_bucket_file
from xetserve.upstream.hub.link import HubLink
from xetserve.upstream.hub.read_tokens import CasToken, ReadTokens, choose_token_url
from xetserve.upstream.requests import retrying
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.hashes import format_hash

__all__ = ["CasToken", "FileEntry", "HubClient", "ReadAccess", "RepoRef"]


class HubClient:
    """Ask the Hub, with the token of the client that is served.

    Args:
        hub_url: base URL without a slash at its end.
        timeout: seconds without a byte.
        instance: our name in the Via field; empty: no Via is sent.
        metadata: caches the Hub's answers; None: the Hub is asked every time.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        hub_url: str,
        *,
        timeout: float,
        policy: RetryPolicy,
        instance: str = "",
        metadata: AnswerCache | None = None,
    ) -> None:
        self._link = HubLink(pool, hub_url, timeout=timeout, instance=instance)
        self._policy = policy
        self._one_try = replace(policy, time_limit=0.0)
        self._tokens = ReadTokens(policy)
        self.metadata = metadata

    def make_via(self, headers: Headers) -> tuple[str, str]:
        """Return the Via field for a message that is forwarded."""
        return self._link.make_via(headers)

    def on_behalf(
        self, headers: Headers, *, names_agent: bool = False, timeout: float | None = None
    ) -> "HubClient":
        """Return a client whose requests carry the Via and the marks of a client's request.

        All else is shared.

        Args:
            headers: of the client's request.
            names_agent: send the client's User-Agent, too.
            timeout: seconds without a byte; None: as before.
        """
        client = copy.copy(self)
        client._link = self._link.on_behalf(headers, names_agent=names_agent, timeout=timeout)
        return client

    def is_own(self, headers: Headers) -> bool:
        """Return whether this server sent the request that it received: it is its own Hub."""
        return self._link.is_own(headers)

    @property
    def bases(self) -> tuple[str, ...]:
        """The start of the Hub's own URLs, without a slash at the end."""
        return self._link.bases

    async def resolve(
        self, repo: RepoRef, revision: str, path: str, token: str | None
    ) -> FileEntry:
        """Look up a file.

        Args:
            revision: branch, tag, commit id or refs/pr/N, not encoded; "" in a bucket.
            path: decoded, with "/" between folders.
            token: the client's Hub token.

        Raises:
            UpstreamDenied, UpstreamMissing, UpstreamBusy: as the Hub answers.
            UpstreamError: the Hub fails.
        """
        url = self._link.make_url(repo.make_file_path(revision, path))

        async def ask(patient: bool) -> FileEntry:
            policy = self._policy if patient else self._one_try
            return await retrying(lambda: self._link.head(url, token), policy, "hub")

        if repo.kind == BUCKET:  # a name may mean another file at any time
            return describe_bucket_file(await ask(True))
        if self.metadata is None:
            return await ask(True)

        async def ask_to_keep(patient: bool) -> Answer:
            try:
                return pack_entry(await ask(patient))
            except UpstreamMissing as exc:
                return pack_missing(exc)

        async def renew(data: bytes) -> float | None:
            is_old = is_lasting(data, revision, self._link.find_on_hub)
            return await self.find_grant(repo, token) if is_old else None

        metadata = self.metadata

        async def find_other(scope: str) -> Question | None:
            commit = await find_commit(metadata, scope, repo, revision)
            return None if commit is None else make_file_question(scope, repo, commit, path)

        question = make_file_question(get_scope(token), repo, revision, path)
        entry = unpack_entry(await metadata.get(question, ask_to_keep, renew, find_other))
        if self._link.find_on_hub(entry.url) is None:
            raise UpstreamError("a stored answer names a URL that is not the Hub's")
        return entry

    async def look_up(self, target: str, token: str | None) -> FileEntry:
        """Look up a file at another URL of the Hub.

        Args:
            target: path and query, encoded.

        Raises:
            UpstreamError and its kinds, as resolve.
        """
        url = self._link.make_url(target)
        return await retrying(lambda: self._link.head(url, token), self._policy, "hub")

    async def probe(self, timeout: float) -> None:
        """Check whether the Hub answers at all; any answer will do.

        Raises:
            UpstreamError: it does not, or it fails.
        """
        await self._link.probe(timeout)

    async def ask(self, target: str, token: str | None, limit: int) -> tuple[bytes, Headers]:
        """Get a JSON document and its header fields.

        Args:
            target: path and query, encoded.
            limit: bytes.

        Raises:
            UpstreamError and its kinds, as resolve; also if the document is longer.
        """
        url = self._link.make_url(target)
        return await retrying(lambda: self._link.ask(url, token, limit), self._policy, "hub")

    async def find_grant(self, repo: RepoRef, token: str | None) -> float | None:
        """Return when the Hub last let a token read all of a repository; None: it does not say.

        One question serves all files of the repository.
        """
        if self.metadata is None:
            return None
        target = f"{repo.api_prefix}/auth-check"

        async def ask(patient: bool) -> Answer:
            url = self._link.make_url(target)
            async with self._link.forward("GET", url, (), token, b"") as response:
                is_granted = response.status == 200
            return Answer(b"yes") if is_granted else Answer(b"no", Verdict.ABSENT)

        question = Question(get_scope(token), "grant", repo.name, "")
        try:
            answer = await self.metadata.get(question, ask)
        except UpstreamError:
            return None  # the actual request will show why
        is_positive = answer.verdict is Verdict.GOOD and answer.stale_age is None
        return answer.answered_at if is_positive else None

    def note_read(
        self, repo: RepoRef, token: str | None, file_hash: bytes, size: int | None
    ) -> None:
        """Record that a token has read a Xet file, for requests by its hash while offline."""
        if self.metadata is not None and size is not None:
            holder = make_holder(get_scope(token), format_hash(file_hash))
            self.metadata.note_read(holder, pack_holder(repo, size))

    async def find_read(self, token: str | None, file_hash: bytes) -> tuple[RepoRef, int] | None:
        """Return where a token, or a client without one, has read a file, and its size in bytes.

        None: it is not known, or the server is online, so that the CAS can be asked.
        """
        if self.metadata is None or not self.metadata.policy.is_offline:
            return None
        holder = make_holder(get_scope(token), format_hash(file_hash))
        answer = await self.metadata.find_old(holder)
        with suppress(FormatError):
            return None if answer is None else unpack_holder(answer.data)
        return None

    async def get_read_token(
        self,
        repo: RepoRef,
        revision: str,
        token: str | None,
        token_url: str | None = None,
        *,
        is_granted: bool = True,
    ) -> CasToken:
        """Return a read token for the CAS: a cached one while it is valid for a minute more.

        Args:
            is_granted: the client is known to be allowed to read. If not, the token must be as new
                as a cached answer must be.

        Raises:
            UpstreamError and its kinds, as resolve.
        """
        url = choose_token_url(self._link, repo, revision, token_url)
        max_age = None if is_granted or self.metadata is None else self.metadata.policy.ttl
        with self._noting_refusals(repo, token):
            return await self._tokens.get(self._link, url, token, max_age)

    async def renew_read_token(
        self, repo: RepoRef, revision: str, token: str | None, token_url: str | None = None
    ) -> CasToken:
        """Return a new read token.

        Raises:
            UpstreamError and its kinds, as resolve.
        """
        url = choose_token_url(self._link, repo, revision, token_url)
        with self._noting_refusals(repo, token):
            return await self._tokens.renew(self._link, url, token)

    @contextmanager
    def _noting_refusals(self, repo: RepoRef, token: str | None) -> Iterator[None]:
        """Invalidate older answers about a repository when a read token for it is refused."""
        try:
            yield
        except (UpstreamDenied, UpstreamMissing) as exc:
            if self.metadata is not None and exc.code not in ABSENT_CODES:
                self.metadata.refuse(get_scope(token), repo.name)
            raise

    @asynccontextmanager
    async def open_plain(
        self,
        entry: FileEntry,
        token: str | None,
        byte_range: str | None = None,
        *,
        patient: bool = True,
    ) -> AsyncIterator[ClientResponse]:
        """Open a file that is not Xet: a git file, or LFS content behind a redirect.

        Args:
            byte_range: the value of a Range header.
            patient: retry failures that may pass.

        Raises:
            UpstreamError and its kinds, as resolve.
        """
        fields = [("Accept-Encoding", "identity")]
        if byte_range is not None:
            fields.append(("Range", byte_range))
        async with AsyncExitStack() as opened:
            yield await retrying(
                lambda: opened.enter_async_context(self._link.open(entry.url, token, fields)),
                self._policy if patient else self._one_try,
                "hub",
            )

    @asynccontextmanager
    async def forward(
        self,
        method: str,
        target: str,
        fields: Sequence[tuple[str, str]],
        token: str | None,
        body: RequestContent = b"",
        *,
        patient: bool = True,
        once: bool = False,
        follows_redirects: bool = True,
    ) -> AsyncIterator[ClientResponse]:
        """Forward a request and return the Hub's answer, errors included.

        Redirects within the Hub are followed; one to another host is itself the answer.

        Args:
            target: path and query, encoded.
            fields: header fields, besides those that name the client.
            body: a streamed one is sent once, too.
            patient: retry failures that may pass.
            once: the request changes something, and must not be sent twice.
            follows_redirects: if not, a redirect within the Hub is itself the answer, too.

        Raises:
            UpstreamBusy, UpstreamTimeout, UpstreamError: the Hub fails for longer than the retries
                last.
        """
        url = self._link.make_url(target)
        async with AsyncExitStack() as opened:

            async def attempt() -> ClientResponse:
                forwarded = self._link.forward(
                    method, url, fields, token, body, follows_redirects=follows_redirects
                )
                return await opened.enter_async_context(forwarded)

            policy = self._policy if patient else self._one_try
            once = once or not isinstance(body, bytes)
            response = await (attempt() if once else retrying(attempt, policy, "hub"))
            body = b""  # it need not stay in memory while the answer is read
            yield response


class ReadAccess:
    """One client's right to read one repository from the CAS; it renews its token by itself.

    Args:
        is_granted: the Hub has just allowed the client to read it.

    scope, repo_name: whose right it is, and to which repository; see CachedReconstructions.
    """

    def __init__(
        self,
        hub: HubClient,
        repo: RepoRef,
        revision: str,
        token: str | None,
        token_url: str | None = None,
        *,
        is_granted: bool = False,
    ) -> None:
        self._hub = hub
        self._arguments = (repo, revision, token, token_url)
        self._is_granted = is_granted
        self.scope = get_scope(token)
        self.repo_name = repo.name

    async def get_token(self) -> CasToken:
        """Return a token that stays valid for a while; the Hub gave the first one recently."""
        given = await self._hub.get_read_token(*self._arguments, is_granted=self._is_granted)
        self._is_granted = True
        return given

    async def renew_token(self) -> CasToken:
        """Return a new token, after the CAS has refused the last one."""
        return await self._hub.renew_read_token(*self._arguments)
