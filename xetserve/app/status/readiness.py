"""Decide whether a load balancer should send clients to this server.

The Hub and the disk are shared by all instances of a fleet, or fail on all of them at about the
same time. If each instance turned clients away then, no instance would be left, though all of them
can serve what they have stored. So the server is unready only because of a cause that it cannot do
without; because of another one it is degraded, and still takes clients.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from xetserve.errors import UpstreamError
from xetserve.metrics.catalogue import DEGRADED, DRAINING, UPSTREAM_LAST_ANSWER

logger = logging.getLogger(__name__)

HUB: Final = "hub"
CACHE: Final = "cache"
CERTIFICATE: Final = "certificate"
FRESH: Final = 10.0  # seconds after an answer of the Hub in which it is not probed
REACHABLE: Final = 30.0  # seconds after an answer; then a failed probe makes the server unready
PROBE_TIMEOUT: Final = 2.0  # seconds
RESULT_TIME: Final = 5.0  # seconds that a result is reused
PATIENCE: Final = 0.5  # seconds; kubelets and HAProxy's checks wait for 1

Probe = Callable[[], Awaitable[None]]


class Obstacle(NamedTuple):
    """Something that does not work; cause is HUB, CACHE or CERTIFICATE."""

    cause: str
    reason: str


class Readiness:
    """Obstacles to new clients. Draining is set from outside; Hub and cache are checked on request.

    Args:
        probe_hub: sends a small request to the Hub, within a timeout in seconds; raises
            UpstreamError if it fails. None: the Hub is not probed.
        check_cache: writes to the cache; raises OSError if that fails. None: there is no cache.
        has_certificate: returns whether TLS has a certificate; true without TLS.
        can_do_without: causes that leave something to serve.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        *,
        probe_hub: Callable[[float], Awaitable[None]] | None = None,
        check_cache: Probe | None = None,
        has_certificate: Callable[[], bool] = lambda: True,
        can_do_without: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.probe_hub = probe_hub
        self.check_cache = check_cache
        self.has_certificate = has_certificate
        self.can_do_without = can_do_without
        self._clock = clock
        self._is_draining = False
        self._is_wanted = False
        self._checking: asyncio.Task[None] | None = None
        self._checked_at: float | None = None
        self._result: tuple[Obstacle, ...] = ()

    @property
    def is_draining(self) -> bool:
        """Whether the server finishes its requests before it ends."""
        return self._is_draining

    @is_draining.setter
    def is_draining(self, value: bool) -> None:
        self._is_draining = value
        DRAINING.set(value)

    async def find_obstacles(self) -> tuple[Obstacle, ...]:
        """Check certificate, Hub and cache; those that the server cannot do without come first.

        Concurrent callers share one check, and a result is reused for RESULT_TIME. If a new check
        takes longer than PATIENCE, the previous result is returned.
        """
        if not self.has_certificate():
            return (Obstacle(CERTIFICATE, "there is no TLS certificate yet"), *self._result)
        if self._checking is None and not self._is_fresh():
            self._checking = asyncio.get_running_loop().create_task(self._check())
        if self._checking is not None:
            patience = None if self._checked_at is None else PATIENCE
            # wait() never cancels the check, for which other callers wait, too.
            done, _ = await asyncio.wait({self._checking}, timeout=patience)
            for check in done:
                check.result()
        return self._result

    def expect(self) -> None:
        """Ask watch() to check soon, because somebody looks at the gauges."""
        self._is_wanted = True

    async def watch(self) -> None:
        """Check again every RESULT_TIME while something fails or a check is expected; never return.

        Without this, the gauge of a worker would keep a failure until a client happens to ask the
        same worker again.
        """
        for cause in (HUB, CACHE):
            DEGRADED.set(0, cause)  # panels and alerts need a series before anything fails
        while True:
            await asyncio.sleep(RESULT_TIME)
            if self._result or self._is_wanted:
                self._is_wanted = False
                await self.find_obstacles()

    def _is_fresh(self) -> bool:
        return self._checked_at is not None and 0 <= self._clock() - self._checked_at < RESULT_TIME

    async def _check(self) -> None:
        try:
            checked = await asyncio.gather(self._check_hub(), self._check_disk())
            found = [each for each in checked if each is not None]
            found.sort(key=lambda each: each.cause in self.can_do_without)
            self._result = tuple(found)
            self._checked_at = self._clock()
            causes = {each.cause for each in found}
            for cause in (HUB, CACHE):
                DEGRADED.set(cause in causes, cause)
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
            logger.debug("ready: %s", reason)
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
