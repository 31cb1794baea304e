"""Requests to the Hub. Redirects within the Hub are followed with the client's token, which is sent
nowhere else.

Each call tries once; the caller decides about retries.
"""

import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from xetserve.errors import UpstreamError, UpstreamRefused
from xetserve.http.encoding import ACCEPT_ENCODING
from xetserve.http.messages import Headers
from xetserve.http.relay import extend_agent, extend_via, has_passed, select_marks
from xetserve.net.client_connection import ClientResponse, RequestContent
from xetserve.net.pool import ConnectionPool
from xetserve.net.url import Origin, Url, parse_url
from xetserve.upstream.hub.entry import FileEntry, hub_error, make_entry
from xetserve.upstream.requests import (
    USER_AGENT,
    error_for_status,
    join_url,
    make_url,
    read_document,
    send_request,
)

MAX_REDIRECTS: Final = 5

# Token URLs name the public Hub, even if a mirror is configured in its place.
PUBLIC_HUB: Final = Origin("https", "huggingface.co", 443)
_OFF_THE_HUB: Final = (("User-Agent", USER_AGENT),)  # only the Hub learns who the client is


class HubLink:
    """Send requests to the Hub, with the fields that name the client.

    Args:
        hub_url: base URL without a slash at its end.
        timeout: seconds without a byte.
        instance: our name in the Via field; empty: no Via is sent.
    """

    def __init__(
        self, pool: ConnectionPool, hub_url: str, *, timeout: float, instance: str
    ) -> None:
        self._pool = pool
        self._base = hub_url
        self._origin = parse_url(hub_url).origin
        self.timeout = timeout
        self._instance = instance
        self._identity = self._describe(Headers(), names_agent=False)

    def _describe(self, headers: Headers, *, names_agent: bool) -> tuple[tuple[str, str], ...]:
        """Return the fields that name this server and the client."""
        agent = extend_agent(USER_AGENT, headers) if names_agent else USER_AGENT
        fields = [("User-Agent", agent), *select_marks(headers)]
        if self._instance:
            fields.append(self.make_via(headers))
        return tuple(fields)

    def make_via(self, headers: Headers) -> tuple[str, str]:
        """Return the Via field for a message that is forwarded."""
        return ("Via", extend_via(headers, self._instance or "xetserve"))

    def on_behalf(
        self, headers: Headers, *, names_agent: bool, timeout: float | None = None
    ) -> "HubLink":
        """Return a link whose requests carry the Via and the marks of a client's request.

        Args:
            headers: of the client's request.
            names_agent: send the client's User-Agent, too.
            timeout: seconds without a byte; None: as before.
        """
        link = copy.copy(self)
        link.timeout = timeout or self.timeout
        link._identity = self._describe(headers, names_agent=names_agent)
        return link

    def is_own(self, headers: Headers) -> bool:
        """Return whether this server sent the request that it received: it is its own Hub."""
        return bool(self._instance) and has_passed(headers, self._instance)

    @property
    def bases(self) -> tuple[str, ...]:
        """The start of the Hub's own URLs, without a slash at the end."""
        return (self._base, f"https://{PUBLIC_HUB.authority}")

    def make_url(self, target: str) -> Url:
        """Return the URL of a target: path and query, encoded.

        Raises:
            UpstreamRefused: no request can be sent to it; the target may have come from the Hub.
        """
        return make_url(self._base + target, "a URL of the Hub's")

    def find_on_hub(self, url: Url) -> Url | None:
        """Return where to request a URL of the Hub; None: it is not the Hub's."""
        if url.origin == PUBLIC_HUB:
            return self.make_url(url.target)
        return url if url.origin == self._origin else None

    async def head(self, url: Url, token: str | None) -> FileEntry:
        """Send a HEAD for a file; a redirect to another host is itself the answer.

        Raises:
            UpstreamError and its kinds, as the Hub answers.
        """
        fields = (("Accept-Encoding", "identity"), *self._headers(token))
        for _ in range(MAX_REDIRECTS + 1):
            async with send_request(
                self._pool, "the Hub", "HEAD", url, fields, self.timeout
            ) as response:
                status, headers = response.status, response.headers
                length = response.content_length
            if status in (200, 206):
                return make_entry(url, headers, length)
            location = headers.get("location")
            if status not in (301, 302, 303, 307, 308) or location is None:
                raise hub_error(status, headers)
            target = join_url(url, location, "the Hub's redirect")
            if target.origin != url.origin:
                return make_entry(url, headers, None)
            url = target
        raise UpstreamRefused("the Hub redirects in circles")

    async def probe(self, timeout: float) -> None:
        """Check whether the Hub answers at all; any answer will do.

        Raises:
            UpstreamError: it does not, or it fails.
        """
        async with send_request(
            self._pool, "the Hub", "HEAD", self.make_url("/"), self._identity, timeout
        ) as response:
            if response.status >= 500:
                raise error_for_status("the Hub", response.status, response.headers)

    @asynccontextmanager
    async def open(
        self,
        url: Url,
        token: str | None,
        fields: Sequence[tuple[str, str]],
        *,
        may_leave: bool = True,
    ) -> AsyncIterator[ClientResponse]:
        """Send a GET and follow redirects; the token is sent as long as they stay on the Hub.

        Once a redirect has left the Hub, no further request carries the token, even if one leads
        back: another host chose its URL.

        Args:
            may_leave: follow redirects off the Hub, too; not for answers that must be the Hub's
                own.
        """
        is_hub = True
        for _ in range(MAX_REDIRECTS + 1):
            is_hub = is_hub and url.origin == self._origin
            sent = (*fields, *(self._headers(token) if is_hub else _OFF_THE_HUB))
            async with send_request(
                self._pool,
                "the Hub",
                "GET",
                url,
                sent,
                self.timeout,
                kind="hub" if is_hub else "data",
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
                    raise hub_error(response.status, response.headers)
                # A refusal by another host says nothing about the client's token.
                raise error_for_status("the Hub's storage", response.status, response.headers)
        raise UpstreamRefused("the Hub redirects in circles")

    async def ask(self, url: Url, token: str | None, limit: int) -> tuple[bytes, Headers]:
        """Get a JSON document of at most limit bytes, and its header fields.

        Raises:
            UpstreamError and its kinds, as the Hub answers.
        """
        fields = (("Accept", "application/json"), ("Accept-Encoding", ACCEPT_ENCODING))
        async with self.open(url, token, fields, may_leave=False) as response:
            if response.status != 200:
                raise UpstreamError(f"the Hub answered {response.status} to a question")
            return await read_document(response, "the Hub", limit, self.timeout), response.headers

    @asynccontextmanager
    async def forward(
        self,
        method: str,
        url: Url,
        fields: Sequence[tuple[str, str]],
        token: str | None,
        body: RequestContent,
        *,
        follows_redirects: bool = True,
    ) -> AsyncIterator[ClientResponse]:
        """Forward a request and return the Hub's answer, errors included.

        Args:
            follows_redirects: follow redirects within the Hub, unless the body is streamed.

        Raises:
            UpstreamBusy, UpstreamTimeout, UpstreamError: the Hub fails.
        """
        sent = (*fields, *self._headers(token))
        # Other redirects may turn the method into GET.
        followed: Sequence[int] = ()
        if follows_redirects and isinstance(body, bytes):
            followed = (301, 302, 303, 307, 308) if method in ("GET", "HEAD") else (307, 308)
        for _ in range(MAX_REDIRECTS + 1):
            async with send_request(
                self._pool, "the Hub", method, url, sent, self.timeout, body
            ) as response:
                status, headers = response.status, response.headers
                if status in (408, 429) or (status >= 500 and status != 501):
                    raise error_for_status("the Hub", status, headers)
                location = headers.get("location")
                target = None
                if status in followed and location is not None:
                    target = self.find_on_hub(join_url(url, location, "the Hub's redirect"))
                if target is None:
                    del body  # it need not stay in memory while the answer is read
                    yield response
                    return
                url = target
        raise UpstreamRefused("the Hub redirects in circles")

    def _headers(self, token: str | None) -> tuple[tuple[str, str], ...]:
        bearer = () if token is None else (("Authorization", f"Bearer {token}"),)
        return (*self._identity, *bearer)
