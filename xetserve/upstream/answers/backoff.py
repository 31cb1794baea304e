"""When an upstream is left alone: after a 429 until the time that it names, and for a while after
other trouble.

What is noted holds for one token and one kind of question: it may be that question, or that token,
that is the trouble.
"""

import re
from collections.abc import Callable
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import UpstreamBusy, UpstreamError

MAX_PAUSE: Final = 60.0  # seconds that a 429 counts for, whatever it says
MAX_TROUBLES: Final = 10_000  # of each kind, remembered
DOWN_TIME: Final = 5.0  # seconds after trouble in which old answers are given without asking

_Key = tuple[str, str]  # scope and kind

_RESET: Final = re.compile(r";\s*t=(\d{1,6})\b")


class Backoff:
    """Remembers trouble for as long as it counts.

    Args:
        pause: seconds that a 429 counts for which names no time.
        clock: Unix seconds.
    """

    def __init__(self, pause: float, clock: Callable[[], float]) -> None:
        self._pause = pause
        self._clock = clock
        # An error is kept as a copy of its own, which holds no traceback.
        self._pauses: LruDict[_Key, tuple[float, UpstreamBusy]] = LruDict(max_num=MAX_TROUBLES)
        self._down_until: LruDict[_Key, float] = LruDict(max_num=MAX_TROUBLES)

    def find(self, scope: str, kind: str) -> UpstreamError | None:
        """Return what speaks against asking now: after a 429 UpstreamBusy with the time that is
        left.
        """
        now = self._clock()
        until, busy = self._pauses.peek((scope, kind)) or (0.0, None)
        if busy is not None and now < until:
            return _copy(busy, until - now)
        if now < (self._down_until.peek((scope, kind)) or 0.0):
            return UpstreamError("the upstream was in trouble shortly before")
        return None

    def note_down(self, scope: str, kind: str) -> None:
        """Note that there was trouble where an old answer does."""
        now = self._clock()
        while (first := self._down_until.peek_first()) is not None and first[1] <= now:
            self._down_until.pop(first[0])
        self._down_until.put((scope, kind), now + DOWN_TIME)

    def note_up(self, scope: str, kind: str) -> None:
        """Note that there was an answer."""
        self._down_until.pop((scope, kind))

    def note_busy(self, scope: str, kind: str, busy: UpstreamBusy) -> None:
        """Note a 429: nothing is to be asked in this name for a while."""
        delay = busy.retry_after
        if delay is None:  # the Hub may tell it in RateLimit only
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
