"""The Hub: from (repo, revision, path) to a file entry, and read tokens for the CAS.

Redirects within the Hub are followed, with the client's token; an answer that points to another host
is itself the answer, since it carries the headers that matter. The client's token goes nowhere else.

Source: huggingface_hub file_download.py and utils/_xet.py; hub-docs xet/auth.md.
"""

import copy
import json
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

from xetserve.errors import UpstreamDenied, UpstreamError, UpstreamMissing, UpstreamRefused
from xetserve.http.encoding import ACCEPT_ENCODING
from xetserve.http.forwarding import extend_agent, extend_via, has_passed
from xetserve.http.messages import Headers
from xetserve.net.client import ClientResponse
from xetserve.net.pool import ConnectionPool
from xetserve.net.url import Origin, Url, parse_url
from xetserve.upstream.exchange import (
    USER_AGENT,
    error_for_status,
    join_url,
    make_url,
    read_document,
    retrying,
    send_request,
)
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.hashes import parse_hash

MAX_REDIRECTS: Final = 5
MAX_DOCUMENT_SIZE: Final = 1024 * 1024
MAX_TOKENS: Final = 1000
RENEW_BEFORE: Final = 60.0  # seconds before its expiry a read token is replaced

# Token URLs name the public Hub even where a mirror stands in for it.
_PUBLIC_HUB: Final = Origin("https", "huggingface.co", 443)
_LINK: Final = re.compile(r'<([^<>]*)>\s*;\s*rel="?([^",;]+)"?')
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OFF_THE_HUB: Final = (("User-Agent", USER_AGENT),)  # who asked us is between us and the Hub
_SIZE: Final = re.compile(r"[0-9]{1,18}")
_TOKEN: Final = re.compile(r"[!-~]+")


class RepoRef(NamedTuple):
    """A repository: kind ("model", "dataset" or "space") and id, usually owner/name."""

    kind: str
    id: str

    @property
    def url_prefix(self) -> str:
        """What stands before /resolve/ in a file URL."""
        path = quote(self.id, safe="/")
        return f"/{path}" if self.kind == "model" else f"/{self.kind}s/{path}"

    @property
    def api_prefix(self) -> str:
        """What API URLs of the repository start with."""
        return f"/api/{self.kind}s/{quote(self.id, safe='/')}"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What the Hub says of one file.

    size: bytes, where known. etag: without quotes; sha256: hex, where the Hub names it.
    file_hash: 32 raw bytes; None for a file that is not Xet.
    token_url: where the Hub says a read token is to be had; None: at its usual place.
    url: the last URL asked on the Hub; a plain file is fetched from there.
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


class CasToken(NamedTuple):
    """A read token: the CAS it is for, the bearer, and its expiry in Unix seconds."""

    cas_url: str
    access_token: str
    expires: float

    def __repr__(self) -> str:
        return f"CasToken(cas_url={self.cas_url!r}, expires={self.expires})"


class HubClient:
    """Asks the Hub, on behalf of whoever's token is passed.

    Args:
        hub_url: base URL without a slash at its end.
        timeout: seconds without a byte.
        instance: what we call ourselves in Via; empty: nothing.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        hub_url: str,
        *,
        timeout: float,
        policy: RetryPolicy,
        instance: str = "",
    ) -> None:
        self._pool = pool
        self._base = hub_url
        self._origin = parse_url(hub_url).origin
        self._timeout = timeout
        self._policy = policy
        self._tokens: OrderedDict[tuple[str, bytes], CasToken] = OrderedDict()
        self._instance = instance
        self._identity = self._describe(Headers(), names_agent=False)

    def _describe(self, headers: Headers, *, names_agent: bool) -> tuple[tuple[str, str], ...]:
        """Give the fields that say who asks the Hub, and for whom."""
        agent = extend_agent(USER_AGENT, headers) if names_agent else USER_AGENT
        fields = [("User-Agent", agent)]
        if self._instance:
            fields.append(self.make_via(headers))
        return tuple(fields)

    def make_via(self, headers: Headers) -> tuple[str, str]:
        """Give the Via field of a message that we pass on."""
        return ("Via", extend_via(headers, self._instance or "xetserve"))

    def on_behalf(self, headers: Headers, *, names_agent: bool = False) -> "HubClient":
        """Give a client that tells the Hub by which way we were asked; it shares all else with this one.

        Args:
            headers: of the request that is served.
            names_agent: tell the User-Agent that asked us, too.
        """
        client = copy.copy(self)
        client._identity = self._describe(headers, names_agent=names_agent)
        return client

    def is_own(self, headers: Headers) -> bool:
        """Tell whether a request is one that we sent: this server is its own Hub, by some way."""
        return bool(self._instance) and has_passed(headers, self._instance)

    async def resolve(
        self, repo: RepoRef, revision: str, path: str, token: str | None
    ) -> FileEntry:
        """Look a file up.

        Args:
            revision: branch, tag, commit id or refs/pr/N, not encoded.
            path: decoded, with "/" between folders.
            token: the client's Hub token.

        Raises:
            UpstreamDenied, UpstreamMissing, UpstreamBusy: as the Hub says.
            UpstreamError: the Hub is in trouble.
        """
        target = f"{repo.url_prefix}/resolve/{quote(revision, safe='')}/{quote(path, safe='/')}"
        return await self.look_up(target, token)

    async def look_up(self, target: str, token: str | None) -> FileEntry:
        """Look up a file that the Hub has at another URL of its own.

        Args:
            target: path and query, encoded.

        Raises:
            UpstreamError and its kinds, as resolve.
        """
        url = parse_url(self._base + target)
        return await retrying(lambda: self._head(url, token), self._policy, "hub")

    async def ask(self, target: str, token: str | None, limit: int) -> tuple[bytes, Headers]:
        """Get a JSON document, and the fields that came with it.

        Args:
            target: path and query, encoded.
            limit: bytes.

        Raises:
            UpstreamError and its kinds, as resolve; or it is longer.
        """
        url = parse_url(self._base + target)
        return await retrying(lambda: self._ask(url, token, limit), self._policy, "hub")

    async def _ask(self, url: Url, token: str | None, limit: int) -> tuple[bytes, Headers]:
        fields = (("Accept", "application/json"), ("Accept-Encoding", ACCEPT_ENCODING))
        async with self._open(url, token, fields, may_leave=False) as response:
            if response.status != 200:
                raise UpstreamError(f"the Hub answered {response.status} to a question")
            body = await read_document(response, "the Hub", limit, self._timeout)
            return body, response.headers

    async def _head(self, url: Url, token: str | None) -> FileEntry:
        fields = (("Accept-Encoding", "identity"), *self._headers(token))
        for _ in range(MAX_REDIRECTS + 1):
            async with send_request(
                self._pool, "the Hub", "HEAD", url, fields, self._timeout
            ) as response:
                status, headers = response.status, response.headers
                length = response.content_length
            if status in (200, 206):
                return _make_entry(url, headers, length)
            location = headers.get("location")
            if status not in (301, 302, 303, 307, 308) or location is None:
                raise _hub_error(status, headers)
            target = join_url(url, location, "the Hub's redirect")
            if target.origin != url.origin:
                return _make_entry(url, headers, None)
            url = target
        raise UpstreamRefused("the Hub redirects in circles")

    async def get_read_token(
        self, repo: RepoRef, revision: str, token: str | None, token_url: str | None = None
    ) -> CasToken:
        """Give a read token for the CAS, a remembered one while it is good for a minute more."""
        url = self._token_url(repo, revision, token_url)
        key = _token_key(url, token)
        known = self._tokens.get(key)
        if known is not None and known.expires - time.time() > RENEW_BEFORE:
            self._tokens.move_to_end(key)
            return known
        return await self.renew_read_token(repo, revision, token, token_url)

    async def renew_read_token(
        self, repo: RepoRef, revision: str, token: str | None, token_url: str | None = None
    ) -> CasToken:
        """Give a new read token.

        Raises:
            UpstreamDenied, UpstreamMissing, UpstreamBusy: as the Hub says.
            UpstreamError: the Hub is in trouble.
        """
        url = self._token_url(repo, revision, token_url)
        fresh = await retrying(lambda: self._ask_token(url, token), self._policy, "hub")
        self._tokens[_token_key(url, token)] = fresh
        while len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return fresh

    def _token_url(self, repo: RepoRef, revision: str, token_url: str | None) -> Url:
        """Choose where to ask; the client's token must not follow a URL off the Hub."""
        if token_url is not None:
            url = self._find_on_hub(make_url(token_url, "the Hub's token URL"))
            if url is not None:
                return url
        path = f"{repo.api_prefix}/xet-read-token/{quote(revision, safe='')}"
        return parse_url(self._base + path)

    async def _ask_token(self, url: Url, token: str | None) -> CasToken:
        fields = (("Accept", "application/json"), ("Accept-Encoding", ACCEPT_ENCODING))
        async with self._open(url, token, fields, may_leave=False) as response:
            if response.status != 200:
                raise UpstreamError(f"the Hub answered {response.status} to a question for a token")
            body = await read_document(response, "the Hub", MAX_DOCUMENT_SIZE, self._timeout)
        return parse_cas_token(body)

    @asynccontextmanager
    async def open_plain(
        self, entry: FileEntry, token: str | None, byte_range: str | None = None
    ) -> AsyncIterator[ClientResponse]:
        """Open a file that is not Xet: a git file, or LFS content behind a redirect.

        Args:
            byte_range: the value of a Range header.

        Raises:
            UpstreamError and its kinds, as resolve.
        """
        fields = [("Accept-Encoding", "identity")]
        if byte_range is not None:
            fields.append(("Range", byte_range))
        async with AsyncExitStack() as opened:
            yield await retrying(
                lambda: opened.enter_async_context(self._open(entry.url, token, fields)),
                self._policy,
                "hub",
            )

    @property
    def bases(self) -> tuple[str, ...]:
        """What the Hub's own URLs start with, without a slash at the end."""
        return (self._base, f"https://{_PUBLIC_HUB.authority}")

    @asynccontextmanager
    async def forward(
        self,
        method: str,
        target: str,
        fields: Sequence[tuple[str, str]],
        token: str | None,
        body: bytes = b"",
        *,
        once: bool = False,
    ) -> AsyncIterator[ClientResponse]:
        """Pass a request on, and give what the Hub answers, errors included.

        Redirects within the Hub are followed; one to another host is itself the answer.

        Args:
            target: path and query, encoded.
            fields: besides those that tell who asks.
            once: it changes something, and must not happen twice.

        Raises:
            UpstreamBusy, UpstreamTimeout, UpstreamError: the Hub is in trouble, for longer than we retry.
        """
        url = parse_url(self._base + target)
        sent = (*fields, *self._headers(token))
        async with AsyncExitStack() as opened:

            async def attempt() -> ClientResponse:
                return await opened.enter_async_context(self._forward(method, url, sent, body))

            yield await (attempt() if once else retrying(attempt, self._policy, "hub"))

    @asynccontextmanager
    async def _forward(
        self, method: str, url: Url, fields: tuple[tuple[str, str], ...], body: bytes
    ) -> AsyncIterator[ClientResponse]:
        # The others may turn the method into GET.
        followed = (301, 302, 303, 307, 308) if method in ("GET", "HEAD") else (307, 308)
        for _ in range(MAX_REDIRECTS + 1):
            async with send_request(
                self._pool, "the Hub", method, url, fields, self._timeout, body
            ) as response:
                status, headers = response.status, response.headers
                if status in (408, 429) or (status >= 500 and status != 501):
                    raise error_for_status("the Hub", status, headers)
                location = headers.get("location")
                target = None
                if status in followed and location is not None:
                    target = self._find_on_hub(join_url(url, location, "the Hub's redirect"))
                if target is None:
                    yield response
                    return
                url = target
        raise UpstreamRefused("the Hub redirects in circles")

    def _find_on_hub(self, url: Url) -> Url | None:
        """Give where a URL is to be asked for; None: it is not the Hub's."""
        if url.origin == _PUBLIC_HUB:
            return parse_url(self._base + url.target)
        return url if url.origin == self._origin else None

    @asynccontextmanager
    async def _open(
        self,
        url: Url,
        token: str | None,
        fields: Sequence[tuple[str, str]],
        *,
        may_leave: bool = True,
    ) -> AsyncIterator[ClientResponse]:
        """Send a GET and follow redirects; the token goes along as long as they stay on the Hub.

        Args:
            may_leave: follow redirects off the Hub, too; not for answers that have to be the Hub's own.
        """
        for _ in range(MAX_REDIRECTS + 1):
            is_hub = url.origin == self._origin
            sent = (*fields, *(self._headers(token) if is_hub else _OFF_THE_HUB))
            async with send_request(
                self._pool, "the Hub", "GET", url, sent, self._timeout
            ) as response:
                if response.status in (200, 206, 416):
                    yield response
                    return
                location = response.headers.get("location")
                if response.status in (301, 302, 303, 307, 308) and location is not None:
                    url = join_url(url, location, "the Hub's redirect")
                    if not may_leave and url.origin != self._origin:
                        raise UpstreamRefused("the Hub redirects to another host")
                    continue
                if is_hub:
                    raise _hub_error(response.status, response.headers)
                # What another host says of its own URL is no verdict on the client's token.
                raise error_for_status("the Hub's storage", response.status, response.headers)
        raise UpstreamRefused("the Hub redirects in circles")

    def _headers(self, token: str | None) -> tuple[tuple[str, str], ...]:
        return (*self._identity, *_authorization(token))


class ReadAccess:
    """One client's right to read one repository from the CAS; renews its token by itself."""

    def __init__(
        self,
        hub: HubClient,
        repo: RepoRef,
        revision: str,
        token: str | None,
        token_url: str | None = None,
    ) -> None:
        self._hub = hub
        self._arguments = (repo, revision, token, token_url)

    async def get_token(self) -> CasToken:
        """Give a token that is good for a while."""
        return await self._hub.get_read_token(*self._arguments)

    async def renew_token(self) -> CasToken:
        """Give another token, after the CAS has refused the last one."""
        return await self._hub.renew_read_token(*self._arguments)


def parse_cas_token(body: bytes) -> CasToken:
    """Read the JSON of a token answer.

    Raises:
        UpstreamError: it is not what it should be.
    """
    try:
        answer = json.loads(body)
        fresh = CasToken(
            str(answer["casUrl"]).rstrip("/"), answer["accessToken"], float(answer["exp"])
        )
        is_bearer = _TOKEN.fullmatch(fresh.access_token) is not None  # it goes into a header
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        is_bearer = False
    if not is_bearer:
        raise UpstreamError("the Hub's token answer is not what it should be")
    make_url(fresh.cas_url, "the Hub's CAS URL")
    return fresh


def _authorization(token: str | None) -> list[tuple[str, str]]:
    return [] if token is None else [("Authorization", f"Bearer {token}")]


def _token_key(url: Url, token: str | None) -> tuple[str, bytes]:
    """Key of the token cache; the client's token itself is not kept."""
    return f"{url.origin}{url.target}", sha256((token or "").encode()).digest()


def _make_entry(url: Url, headers: Headers, length: int | None) -> FileEntry:
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


def _strip_etag(value: str | None) -> str | None:
    if value is None:
        return None
    return value.removeprefix("W/").strip('"') or None


def _hub_error(status: int, headers: Headers) -> UpstreamError:
    """Give the error for a Hub answer; the Hub's own code and message go along."""
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
