"""Limits on active requests, and rates of requests and bytes for each token and each address.

A request beyond a limit is refused (503 or 429) with the time to wait. Bytes are paced: the next
block of a body is asked for only once the blocks before it are paid for, so nothing is fetched or
held in between. Tokens appear here as fingerprints only.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from xetserve.app.auth import fingerprint, get_token
from xetserve.app.errors import is_hub_client_download
from xetserve.app.middleware.token_bucket import Bucket, BucketTable
from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response, error_response
from xetserve.metrics.catalogue import REQUESTS_REFUSED

TICK: Final = 0.001  # seconds; shorter waits are skipped
MAX_KEYS: Final = 10_000  # tokens, and as many addresses, with a bucket; some hundred bytes each


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The limits of admission; 0: no limit.

    max_active: active requests, as the operator set it.
    max_with_files: active requests, as the number of files allows that the process may open.
    token_requests, address_requests: requests a second.
    token_bytes, address_bytes: bytes of bodies a second.
    burst: seconds of a rate that may be used at once.
    """

    max_active: int = 0
    max_with_files: int = 0
    token_requests: float = 0.0
    address_requests: float = 0.0
    token_bytes: float = 0.0
    address_bytes: float = 0.0
    burst: float = 10.0


class Admission:
    """Decides which requests are answered now.

    Args:
        clock: seconds, monotonic.
        sleep: waits for some seconds of that clock.
    """

    def __init__(
        self,
        limits: AdmissionLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._limits: AdmissionLimits | None = None
        self.num_active = 0
        self.clock = clock
        self.sleep = sleep
        self.configure(limits)

    def configure(self, limits: AdmissionLimits) -> None:
        """Change the limits. Buckets are full then. Bodies under way keep their old buckets."""
        if limits == self._limits:
            return

        def make_table(rate: float) -> BucketTable | None:
            return BucketTable(rate, limits.burst, MAX_KEYS) if rate else None

        self._limits = limits
        self._max_active = limits.max_active
        self._max_with_files = limits.max_with_files
        self._requests = (make_table(limits.token_requests), make_table(limits.address_requests))
        self._bytes = (make_table(limits.token_bytes), make_table(limits.address_bytes))

    def admit(self, request: Request) -> "Admitted | Response":
        """Return an admitted request, which counts until it leaves, or a refusal."""
        if self._max_active and self.num_active >= self._max_active:
            text = "the server has reached its limit of active requests"
            return _refuse("active", _choose_status(request), text, 1)
        if self._max_with_files and self.num_active >= self._max_with_files:
            text = "the server has no free file descriptors"
            return _refuse("files", _choose_status(request), text, 1)
        keys = _keys(request)
        now = self.clock()
        buckets = _buckets(self._requests, keys, now)
        wait = max((bucket.wait_time(1, now) for bucket in buckets), default=0.0)
        if wait > 0:
            return _refuse("rate", 429, "too many requests from this client", wait)
        for bucket in buckets:
            bucket.take(1, now)
        self.num_active += 1
        return Admitted(self, _buckets(self._bytes, keys, now))


class Admitted:
    """An admitted request, and the buckets that pay for its body."""

    def __init__(self, admission: Admission, buckets: list[Bucket]) -> None:
        self._admission = admission
        self._buckets = buckets

    @property
    def is_paced(self) -> bool:
        """Whether a rate limits its bytes."""
        return bool(self._buckets)

    async def pay(self) -> None:
        """Wait until no bucket is in debt. Other bodies may take from the same buckets."""
        while True:
            now = self._admission.clock()
            wait = max((bucket.wait_time(0, now) for bucket in self._buckets), default=0.0)
            if wait < TICK:
                return
            await self._admission.sleep(wait)

    def charge(self, size: int) -> None:
        """Take bytes of the body from the buckets."""
        if self._buckets:
            now = self._admission.clock()
            for bucket in self._buckets:
                bucket.take(size, now)

    def leave(self) -> None:
        """Count the request no more."""
        self._admission.num_active -= 1


def _keys(request: Request) -> tuple[str | None, str | None]:
    """Return the keys of the request's token and address; None: it has none."""
    try:
        token = get_token(request, required=False, takes_basic=True)
    except RequestError:  # the handler refuses it
        token = None
    return None if token is None else fingerprint(token, 16), request.client or None


def _buckets(
    tables: tuple[BucketTable | None, ...], keys: tuple[str | None, ...], now: float
) -> list[Bucket]:
    return [
        table.get(key, now)
        for table, key in zip(tables, keys, strict=True)
        if table is not None and key is not None
    ]


def _choose_status(request: Request) -> int:
    return 429 if is_hub_client_download(request) else 503


def _refuse(limit: str, status: int, message: str, wait: float) -> Response:
    REQUESTS_REFUSED.add(limit)
    return error_response(status, message, [("Retry-After", str(max(1, math.ceil(wait))))])
