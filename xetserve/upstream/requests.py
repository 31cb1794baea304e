"""One request to the Hub, the CAS or a data host: named errors, retries, small documents."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final, TypeVar

from xetserve import __version__
from xetserve.errors import (
    BrokenStream,
    FormatError,
    UpstreamBusy,
    UpstreamError,
    UpstreamLoop,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUntrusted,
)
from xetserve.http.encoding import ACCEPT_ENCODING, decode_pieces
from xetserve.http.messages import Headers
from xetserve.metrics.catalogue import (
    UPSTREAM_BYTES,
    UPSTREAM_FAILURES,
    UPSTREAM_LAST_ANSWER,
    UPSTREAM_REQUESTS,
    UPSTREAM_RETRIES,
    UPSTREAM_THROTTLED,
)
from xetserve.net.client_connection import ClientResponse, RequestContent
from xetserve.net.pool import ConnectionPool
from xetserve.net.url import Origin, Url, parse_url
from xetserve.upstream.health import HEALTH
from xetserve.upstream.retry import RetryPolicy, RetryState
from xetserve.upstream.slices import Slices

logger = logging.getLogger(__name__)

USER_AGENT: Final = f"xetserve/{__version__}"
JSON_HEADERS: Final = (
    ("User-Agent", USER_AGENT),
    ("Accept", "application/json"),
    ("Accept-Encoding", ACCEPT_ENCODING),
)

# Names in metrics.
_KINDS: Final = {"the Hub": "hub", "the CAS": "cas", "the data host": "data"}

T = TypeVar("T")


def make_url(text: str, what: str) -> Url:
    """Parse a URL that an upstream sent.

    Args:
        what: names the URL in the message of an error.

    Raises:
        UpstreamRefused: no request can be sent to it.
    """
    try:
        return parse_url(text)
    except ValueError as exc:
        raise UpstreamRefused(f"{what}: {exc}") from None


def join_url(base: Url, reference: str, what: str) -> Url:
    """Resolve the URL of a Location field.

    Raises:
        UpstreamRefused: see make_url.
    """
    try:
        return base.join(reference)
    except ValueError as exc:
        raise UpstreamRefused(f"{what}: {exc}") from None


@contextmanager
def naming_errors(who: str):  # type: ignore[no-untyped-def]
    """Turn a broken or silent connection into an UpstreamError that names the upstream."""
    try:
        yield
    except BrokenStream as exc:
        raise UpstreamError(f"{who}: {exc}") from exc
    except TimeoutError as exc:
        raise UpstreamTimeout(f"{who} did not answer in time") from exc


@asynccontextmanager
async def send_request(
    pool: ConnectionPool,
    who: str,
    method: str,
    url: Url,
    headers: tuple[tuple[str, str], ...],
    timeout: float,
    body: RequestContent = b"",
    *,
    kind: str | None = None,
) -> AsyncIterator[ClientResponse]:
    """Send a request. Failures of the connection, until the block ends, become UpstreamErrors.

    Args:
        who: the upstream, for messages.
        kind: the upstream, for metrics; by default it follows from who.
    """
    kind = kind or _KINDS[who]
    UPSTREAM_REQUESTS.add(kind)
    started = time.monotonic()
    with naming_errors(who):
        try:
            async with pool.request(method, url, headers, body=body, timeout=timeout) as response:
                _note_answer(kind, url.origin, response.status)
                _log(who, method, url, headers, response.status, started)
                response.meter = partial(_count_bytes, kind)
                del body  # it need not stay in memory while the answer is read
                yield response
        except (BrokenStream, TimeoutError, UpstreamUntrusted) as exc:
            UPSTREAM_FAILURES.add(kind)
            HEALTH.note_failure(kind, url.origin, str(exc) or "no answer in time")
            _log(who, method, url, headers, str(exc) or "timed out", started)
            raise


def _log(
    who: str,
    method: str,
    url: Url,
    headers: Iterable[tuple[str, str]],
    end: int | str,
    started: float,
) -> None:
    """Log how a request ended: with a status or an error; without the query, which may sign it."""
    if logger.isEnabledFor(logging.DEBUG):
        asked = next((f" {value}" for name, value in headers if name == "Range"), "")
        took = (time.monotonic() - started) * 1000
        logger.debug("%s: %s %s%s: %s after %.0f ms", who, method, url, asked, end, took)


def _note_answer(kind: str, origin: Origin, status: int) -> None:
    if status == 429 or status >= 500:
        UPSTREAM_FAILURES.add(kind)
    if status == 429:
        UPSTREAM_THROTTLED.add(kind)
    if status < 500:
        UPSTREAM_LAST_ANSWER.set(time.time(), kind)
        HEALTH.note_answer(kind, origin)
    elif status not in (501, 508):  # these are about the request
        HEALTH.note_failure(kind, origin, f"status {status}")


def _count_bytes(kind: str, count: int) -> None:
    UPSTREAM_BYTES.add(kind, amount=count)


def error_for_status(who: str, status: int, headers: Headers) -> UpstreamError:
    """Return the error for a status that is neither a success nor handled by the caller."""
    if status in (429, 503):
        return UpstreamBusy(
            f"{who} answered {status}",
            status=status,
            retry_after=parse_retry_after(headers.get("retry-after")),
            headers=[
                (name, value)
                for name, value in headers
                if name.lower() in ("ratelimit", "ratelimit-policy")
            ],
        )
    if status in (408, 504):
        return UpstreamTimeout(f"{who} answered {status}")
    if status == 508:
        return UpstreamLoop(f"{who} answered 508")
    if status >= 500 and status != 501:
        return UpstreamError(f"{who} answered {status}")
    return UpstreamRefused(f"{who} answered {status}")


def parse_retry_after(value: str | None) -> float | None:
    """Parse Retry-After in seconds; these upstreams do not use its date form."""
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 9:
        return None
    return float(value)


async def read_document(response: ClientResponse, who: str, limit: int, timeout: float) -> bytes:
    """Read a small body and undo its content coding.

    Raises:
        UpstreamError: it is too large or damaged.
    """
    with naming_errors(who):
        data = await response.read(limit, timeout)
    slices = Slices()
    parts = []
    try:
        for piece in decode_pieces(response.headers.get("content-encoding"), data, limit):
            parts.append(piece)
            await slices.add(len(piece))
        return b"".join(parts)
    except FormatError as exc:
        raise UpstreamError(f"{who}: {exc}") from None


async def retrying(attempt: Callable[[], Awaitable[T]], policy: RetryPolicy, who: str) -> T:
    """Call attempt until it succeeds, fails for good, or the policy's time limit is reached."""
    state = RetryState(policy, time.monotonic())
    while True:
        try:
            return await attempt()
        except UpstreamError as exc:
            delay = state.next_delay(exc, time.monotonic())
            if delay is None:
                raise
            UPSTREAM_RETRIES.add(who, type(exc).__name__)
            logger.debug("%s: asking again in %.2f s: %s", who, delay, exc)
            await asyncio.sleep(delay)
