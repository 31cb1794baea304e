"""When an upstream is not asked: after a 429 until the time that it names, and shortly after other
failures.

Each record is for one token and one kind of question, because that token or that question may be
the cause.
"""

import re
from collections.abc import Callable
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import UpstreamBusy, UpstreamError

MAX_PAUSE: Final = 60.0  # seconds that a 429 counts at most
MAX_FAILURES: Final = 10_000  # records of each kind
DOWN_TIME: Final = 5.0  # seconds after a failure in which old answers are used at once

_Key = tuple[str, str]  # scope and kind

_RESET: Final = re.compile(r";\s*t=(\d{1,6})\b")


class Backoff:
    """Record failures for as long as they count.

    Args:
        pause: seconds that a 429 counts if it names no time.
        clock: returns Unix seconds.
    """

    def __init__(self, pause: float, clock: Callable[[], float]) -> None:
        self._pause = pause
        self._clock = clock
        # Errors are kept as copies without a traceback.
        self._pauses: LruDict[_Key, tuple[float, UpstreamBusy]] = LruDict(max_num=MAX_FAILURES)
        self._down_until: LruDict[_Key, float] = LruDict(max_num=MAX_FAILURES)

    def find(self, scope: str, kind: str) -> UpstreamError | None:
        """Return the error that forbids asking now; after a 429 it has the time that is left."""
        now = self._clock()
        until, busy = self._pauses.peek((scope, kind)) or (0.0, None)
        if busy is not None and now < until:
            return _copy(busy, until - now)
        if now < (self._down_until.peek((scope, kind)) or 0.0):
            return UpstreamError("the upstream failed a moment ago")
        return None

    def note_down(self, scope: str, kind: str) -> None:
        """Record that the upstream failed while an old answer was at hand."""
        now = self._clock()
        while (first := self._down_until.peek_first()) is not None and first[1] <= now:
            self._down_until.pop(first[0])
        self._down_until.put((scope, kind), now + DOWN_TIME)

    def note_up(self, scope: str, kind: str) -> None:
        """Record that the upstream answered."""
        self._down_until.pop((scope, kind))

    def note_busy(self, scope: str, kind: str, busy: UpstreamBusy) -> None:
        """Record a 429: this token asks nothing of this kind for a while."""
        delay = busy.retry_after
        if delay is None:  # the Hub may name it in RateLimit only
            found = [
                _RESET.search(value) for name, value in busy.headers if name.lower() == "ratelimit"
            ]
            delay = next((float(match[1]) for match in found if match), self._pause)
        delay = min(delay, MAX_PAUSE)
        now = self._clock()
        while (first := self._pauses.peek_first()) is not None and first[1][0] <= now:
            self._pauses.pop(first[0])
        self._pauses.put((scope, kind), (now + delay, _copy(busy, delay)))


def _copy(busy: UpstreamBusy, retry_after: float) -> UpstreamBusy:
    return UpstreamBusy(
        str(busy), status=busy.status, retry_after=retry_after, headers=busy.headers
    )
