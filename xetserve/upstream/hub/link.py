"""Requests to the Hub: redirects within it are followed, with the client's token, which goes
nowhere else.

One try each; whoever asks decides about others.
"""

import copy
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from xetserve.errors import UpstreamError, UpstreamRefused
from xetserve.http.encoding import ACCEPT_ENCODING
from xetserve.http.messages import Headers
from xetserve.http.relay import extend_agent, extend_via, has_passed
from xetserve.net.client_connection import ClientResponse
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

# Token URLs name the public Hub even where a mirror stands in for it.
PUBLIC_HUB: Final = Origin("https", "huggingface.co", 443)
_OFF_THE_HUB: Final = (("User-Agent", USER_AGENT),)  # who asked us is between us and the Hub


class HubLink:
    """Reaches the Hub, and says who asks.

    Args:
        hub_url: base URL without a slash at its end.
        timeout: seconds without a byte.
        instance: what we call ourselves in Via; empty: nothing.
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
        """Return the fields that say who asks the Hub, and for whom."""
        agent = extend_agent(USER_AGENT, headers) if names_agent else USER_AGENT
        fields = [("User-Agent", agent)]
        if self._instance:
            fields.append(self.make_via(headers))
        return tuple(fields)

    def make_via(self, headers: Headers) -> tuple[str, str]:
        """Return the Via field of a message that we pass on."""
        return ("Via", extend_via(headers, self._instance or "xetserve"))

    def on_behalf(self, headers: Headers, *, names_agent: bool) -> "HubLink":
        """Return a link that tells the Hub by which way we were asked.

        Args:
            headers: of the request that is served.
            names_agent: tell the User-Agent that asked us, too.
        """
        link = copy.copy(self)
        link._identity = self._describe(headers, names_agent=names_agent)
        return link

    def is_own(self, headers: Headers) -> bool:
        """Return whether a request is one that we sent: this server is its own Hub, by some way."""
        return bool(self._instance) and has_passed(headers, self._instance)

    @property
    def bases(self) -> tuple[str, ...]:
        """What the Hub's own URLs start with, without a slash at the end."""
        return (self._base, f"https://{PUBLIC_HUB.authority}")

    def make_url(self, target: str) -> Url:
        """Return the URL of a target, path and query encoded.

        Raises:
            UpstreamRefused: it cannot be requested; the Hub may have given it.
        """
        return make_url(self._base + target, "a URL of the Hub's")

    def find_on_hub(self, url: Url) -> Url | None:
        """Return where a URL is to be asked for; None: it is not the Hub's."""
        if url.origin == PUBLIC_HUB:
            return self.make_url(url.target)
        return url if url.origin == self._origin else None

    async def head(self, url: Url, token: str | None) -> FileEntry:
        """Ask about a file; an answer that points to another host is itself the answer.

        Raises:
            UpstreamError and its kinds, as the Hub says.
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
        """Check whether the Hub answers at all; what it answers does not matter.

        Raises:
            UpstreamError: it does not, or is in trouble.
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
        """Send a GET and follow redirects; the token goes along as long as they stay on the Hub.

        Once one has left the Hub, no further request carries the token, even if it leads back:
        another host chose its URL.

        Args:
            may_leave: follow redirects off the Hub, too; not for answers that have to be the Hub's
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
                # What another host says of its own URL is no verdict on the client's token.
                raise error_for_status("the Hub's storage", response.status, response.headers)
        raise UpstreamRefused("the Hub redirects in circles")

    async def ask(self, url: Url, token: str | None, limit: int) -> tuple[bytes, Headers]:
        """Get a JSON document of at most limit bytes, and the fields that came with it.

        Raises:
            UpstreamError and its kinds, as the Hub says.
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
        body: bytes,
    ) -> AsyncIterator[ClientResponse]:
        """Pass a request on, and give what the Hub answers, errors included.

        Raises:
            UpstreamBusy, UpstreamTimeout, UpstreamError: the Hub is in trouble.
        """
        sent = (*fields, *self._headers(token))
        # The others may turn the method into GET.
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
                    del body  # not kept while the answer is read
                    yield response
                    return
                url = target
        raise UpstreamRefused("the Hub redirects in circles")

    def _headers(self, token: str | None) -> tuple[tuple[str, str], ...]:
        bearer = () if token is None else (("Authorization", f"Bearer {token}"),)
        return (*self._identity, *bearer)
