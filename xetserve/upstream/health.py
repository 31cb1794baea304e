"""Whether upstreams answer: one line in the log when that changes.

A single failure says little, because connections break and hosts restart. So an upstream counts as
failing after FAILURES_IN_A_ROW requests without an answer in between. One that changes all the time
is logged once in a minute: an outage that begins within PAUSE seconds after the last line about one
has lines only if it lasts longer.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.net.url import Origin

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW: Final = 3
PAUSE: Final = 60.0  # seconds
MAX_UPSTREAMS: Final = 100  # origins that are remembered; data hosts come and go
NAMES: Final = {"hub": "the Hub", "cas": "the CAS", "data": "the data host"}


@dataclass(slots=True)
class _Upstream:
    """An upstream that fails, or did within PAUSE. Times are in seconds of the monotonic clock.

    count: failures in a row; 0: the last request was answered.
    since: time of the first of them.
    logged: time of the last line that said that it fails.
    left_out: outages since then without a line.
    """

    count: int = 0
    since: float = 0.0
    is_logged: bool = False
    logged: float = -PAUSE
    left_out: int = 0


class UpstreamHealth:
    """The upstreams that have failed lately.

    Args:
        clock: returns seconds of a steady clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._upstreams: LruDict[tuple[str, Origin], _Upstream] = LruDict(max_num=MAX_UPSTREAMS)

    def note_failure(self, kind: str, origin: Origin, reason: str) -> None:
        """Record that a request got no answer, or one that says that the upstream is broken."""
        now = self._clock()
        upstream = self._upstreams.get((kind, origin))
        if upstream is None:
            upstream = _Upstream(logged=now - PAUSE)
            self._upstreams.put((kind, origin), upstream)
        upstream.count += 1
        if upstream.count == 1:
            upstream.since = now
        if upstream.count < FAILURES_IN_A_ROW or upstream.is_logged:
            return
        if now - upstream.logged < PAUSE:
            upstream.left_out += upstream.count == FAILURES_IN_A_ROW
            return
        again = f", {upstream.left_out} times since the last such line" if upstream.left_out else ""
        logger.warning("%s at %s fails%s: %s", NAMES[kind], origin.authority, again, reason)
        upstream.is_logged, upstream.logged, upstream.left_out = True, now, 0

    def note_answer(self, kind: str, origin: Origin) -> None:
        """Record that an upstream answered."""
        upstream = self._upstreams.peek((kind, origin))
        if upstream is None:
            return
        now = self._clock()
        if upstream.is_logged:
            upstream.is_logged = False
            lasted = now - upstream.since
            logger.warning(
                "%s at %s answers again, after %.0f s", NAMES[kind], origin.authority, lasted
            )
        upstream.count = 0
        if now - upstream.logged >= PAUSE:
            self._upstreams.pop((kind, origin))


HEALTH: Final = UpstreamHealth()  # of this process
