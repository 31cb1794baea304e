"""Whether upstreams answer: one line in the log when that changes.

A single failure says little, because connections break and hosts restart. So an upstream counts as
failing after FAILURES_IN_A_ROW requests without an answer in between.
"""

import logging
import time
from dataclasses import dataclass
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.net.url import Origin

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW: Final = 3
MAX_UPSTREAMS: Final = 100  # origins that are remembered; data hosts come and go
NAMES: Final = {"hub": "the Hub", "cas": "the CAS", "data": "the data host"}


@dataclass(slots=True)
class _Failing:
    """Failures in a row, and the time of the first, in seconds of the monotonic clock."""

    since: float
    count: int = 0


class UpstreamHealth:
    """The upstreams that have failed since their last answer."""

    def __init__(self) -> None:
        self._failing: LruDict[tuple[str, Origin], _Failing] = LruDict(max_num=MAX_UPSTREAMS)

    def note_failure(self, kind: str, origin: Origin, reason: str) -> None:
        """Record that a request got no answer, or one that says that the upstream is broken."""
        failing = self._failing.get((kind, origin))
        if failing is None:
            failing = _Failing(time.monotonic())
            self._failing.put((kind, origin), failing)
        failing.count += 1
        if failing.count == FAILURES_IN_A_ROW:
            logger.warning("%s at %s fails: %s", NAMES[kind], origin.authority, reason)

    def note_answer(self, kind: str, origin: Origin) -> None:
        """Record that an upstream answered."""
        failing = self._failing.pop((kind, origin))
        if failing is not None and failing.count >= FAILURES_IN_A_ROW:
            lasted = time.monotonic() - failing.since
            logger.warning(
                "%s at %s answers again, after %.0f s", NAMES[kind], origin.authority, lasted
            )


HEALTH: Final = UpstreamHealth()  # of this process
