"""Decide whether a load balancer should send clients to this server."""

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from xetserve.errors import UpstreamError
from xetserve.metrics.catalogue import DRAINING, UPSTREAM_LAST_ANSWER

logger = logging.getLogger(__name__)

HUB: Final = "hub"
CACHE: Final = "cache"
FRESH: Final = 10.0  # seconds after an answer of the Hub in which it is not probed
REACHABLE: Final = 30.0  # seconds after an answer; then a failed probe makes the server unready
PROBE_TIMEOUT: Final = 2.0  # seconds; load balancers wait for 2 to 5
RESULT_TIME: Final = 5.0  # seconds that a result is reused

Probe = Callable[[], Awaitable[None]]


class Obstacle(NamedTuple):
    """The reason why no client should be sent here; cause is HUB or CACHE."""

    cause: str
    reason: str


class Readiness:
    """Obstacles to new clients. Draining is set from outside; Hub and cache are checked on request.

    Args:
        probe_hub: sends a small request to the Hub, within a timeout in seconds; raises
            UpstreamError if it fails. None: the Hub is not probed.
        check_cache: writes to the cache; raises OSError if that fails. None: there is no cache.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        *,
        probe_hub: Callable[[float], Awaitable[None]] | None = None,
        check_cache: Probe | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.probe_hub = probe_hub
        self.check_cache = check_cache
        self._clock = clock
        self._is_draining = False
        self._checking: asyncio.Task[Obstacle | None] | None = None
        self._checked_at = 0.0
        self._result: Obstacle | None = None

    @property
    def is_draining(self) -> bool:
        """Whether the server finishes its requests before it ends."""
        return self._is_draining

    @is_draining.setter
    def is_draining(self, value: bool) -> None:
        self._is_draining = value
        DRAINING.set(value)

    async def find_obstacle(self) -> Obstacle | None:
        """Check the Hub and the cache; None: both work.

        Concurrent callers share one check, and a result is reused for RESULT_TIME.
        """
        if self._checking is None:
            age = self._clock() - self._checked_at
            if 0 <= age < RESULT_TIME:
                return self._result
            self._checking = asyncio.get_running_loop().create_task(self._check())
        # Shielded, since other callers wait for the same check.
        return await asyncio.shield(self._checking)

    async def _check(self) -> Obstacle | None:
        try:
            self._result = await self._check_hub() or await self._check_disk()
            self._checked_at = self._clock()
            return self._result
        finally:
            self._checking = None

    async def _check_hub(self) -> Obstacle | None:
        if self.probe_hub is None or 0 <= self._hub_age() < FRESH:
            return None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await self.probe_hub(PROBE_TIMEOUT)
        except (UpstreamError, TimeoutError) as exc:
            reason = str(exc) or "the Hub did not answer in time"
            logger.info("ready: %s", reason)
            return None if 0 <= self._hub_age() < REACHABLE else Obstacle(HUB, reason)
        return None

    def _hub_age(self) -> float:
        """Return the seconds since the Hub last answered."""
        return self._clock() - UPSTREAM_LAST_ANSWER.get("hub")

    async def _check_disk(self) -> Obstacle | None:
        if self.check_cache is None:
            return None
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                await self.check_cache()
        except OSError as exc:  # TimeoutError is one
            logger.debug("ready: the cache keeps nothing: %s", exc.strerror or exc)
            is_full = exc.errno == errno.ENOSPC
            reason = "has no room" if is_full else "cannot be written to"
            return Obstacle(CACHE, f"the disk cache {reason}")
        return None
