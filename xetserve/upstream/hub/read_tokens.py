"""Read tokens for the CAS: requested from the Hub with the client's token, and cached until shortly
before they expire.

Source: huggingface_hub utils/_xet.py; hub-docs xet/auth.md.
"""

import re
import time
from hashlib import sha256
from typing import Any, Final, NamedTuple

from xetserve.base.json_text import parse_json
from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError, UpstreamDenied, UpstreamError, UpstreamMissing
from xetserve.http.encoding import ACCEPT_ENCODING
from xetserve.net.url import Url
from xetserve.upstream.answers.singleflight import SingleFlight
from xetserve.upstream.hub.entry import RepoRef
from xetserve.upstream.hub.link import HubLink
from xetserve.upstream.requests import make_url, read_document, retrying
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.shapes import check_time, check_url

MAX_DOCUMENT_SIZE: Final = 1024 * 1024
MAX_TOKENS: Final = 1000
MAX_TOKENS_SIZE: Final = 8 * 1024 * 1024  # bytes, with their URLs
RENEW_BEFORE: Final = 60.0  # seconds before its expiry a read token is replaced

_TOKEN: Final = re.compile(r"[!-~]+")


class CasToken(NamedTuple):
    """A read token: the CAS it is for, the bearer, and its expiry in Unix seconds."""

    cas_url: str
    access_token: str
    expires: float

    def __repr__(self) -> str:
        return f"CasToken(cas_url={self.cas_url!r}, expires={self.expires})"


class _Given(NamedTuple):
    """A token, and when the Hub gave it, in Unix seconds."""

    token: CasToken
    given: float


_Key = tuple[str, bytes]


class ReadTokens:
    """Request read tokens, and cache the latest ones."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._tokens: LruDict[_Key, _Given] = LruDict(max_num=MAX_TOKENS, max_cost=MAX_TOKENS_SIZE)
        self._flights: SingleFlight[_Key, CasToken] = SingleFlight()

    async def get(
        self, link: HubLink, url: Url, token: str | None, max_age: float | None = None
    ) -> CasToken:
        """Return a read token: a cached one while it is valid for a minute more.

        Args:
            max_age: the largest age of a cached token in seconds; None: any.

        Raises:
            UpstreamError and its kinds: as renew.
        """
        key = _token_key(url, token)
        known = self._tokens.peek(key)
        now = time.time()
        is_good = known is not None and known.token.expires - now > RENEW_BEFORE
        if known is not None and is_good and (max_age is None or 0 <= now - known.given < max_age):
            self._tokens.get(key)  # marks it as used
            return known.token
        if max_age == 0:
            return await self.renew(link, url, token)
        return await self._flights.share(key, lambda: self.renew(link, url, token))

    async def renew(self, link: HubLink, url: Url, token: str | None) -> CasToken:
        """Return a new read token.

        Raises:
            UpstreamDenied, UpstreamMissing, UpstreamBusy: as the Hub answers.
            UpstreamError: the Hub fails.
        """
        try:
            fresh = await retrying(lambda: _ask(link, url, token), self._policy, "hub")
        except (UpstreamDenied, UpstreamMissing):
            self._tokens.pop(_token_key(url, token))
            raise
        key = _token_key(url, token)
        size = len(key[0]) + len(fresh.cas_url) + len(fresh.access_token)
        self._tokens.put(key, _Given(fresh, time.time()), size)
        return fresh


def choose_token_url(link: HubLink, repo: RepoRef, revision: str, token_url: str | None) -> Url:
    """Return the URL to request a read token from; the client's token must not leave the Hub.

    Args:
        token_url: as the Hub names it. If it is None or off the Hub, the usual place is used.
    """
    if token_url is not None:
        url = link.find_on_hub(make_url(token_url, "the Hub's token URL"))
        if url is not None:
            return url
    return link.make_url(repo.make_token_path(revision))


async def _ask(link: HubLink, url: Url, token: str | None) -> CasToken:
    fields = (("Accept", "application/json"), ("Accept-Encoding", ACCEPT_ENCODING))
    async with link.open(url, token, fields, may_leave=False) as response:
        if response.status != 200:
            raise UpstreamError(f"the Hub answered {response.status} to a question for a token")
        body = await read_document(response, "the Hub", MAX_DOCUMENT_SIZE, link.timeout)
    return parse_cas_token(body)


def parse_cas_token(body: bytes) -> CasToken:
    """Parse the JSON of a token answer.

    Raises:
        UpstreamError: it does not hold a token.
    """
    try:
        answer = parse_json(body)
        values = answer["casUrl"], answer["accessToken"], float(answer["exp"])
    except (FormatError, ValueError, KeyError, TypeError):
        values = None
    token = None if values is None else make_cas_token(values)
    if token is None:
        raise UpstreamError("the Hub's token answer has no valid token")
    return token


def make_cas_token(values: Any) -> CasToken | None:
    """Return the token made of CAS URL, bearer and expiry; None: the values are of other kinds."""
    try:
        cas_url, access_token, expires = values
        if _TOKEN.fullmatch(access_token) is None:  # it goes into a header
            return None
        return CasToken(check_url(cas_url).rstrip("/"), access_token, check_time(expires))
    except (FormatError, ValueError, TypeError):
        return None


def _token_key(url: Url, token: str | None) -> _Key:
    """Return the key of a token in the cache; it does not hold the client's token itself."""
    return f"{url.origin}{url.target}", sha256((token or "").encode()).digest()
