"""When an upstream is left alone: after a 429 until the time that it names, and for a while after other trouble.

What is noted holds for one token and one kind of question: it may be that question, or that token, that is the trouble.
"""

import re
from collections.abc import Callable
from typing import Final

from xetserve.errors import UpstreamBusy, UpstreamError

MAX_PAUSE: Final = 60.0  # seconds that a 429 counts for, whatever it says
DOWN_TIME: Final = 5.0  # seconds after trouble in which old answers are given without asking

_RESET: Final = re.compile(r";\s*t=(\d{1,6})\b")


class Troubles:
    """Remembers trouble for as long as it counts.

    Args:
        pause: seconds that a 429 counts for which names no time.
        clock: Unix seconds.
    """

    def __init__(self, pause: float, clock: Callable[[], float]) -> None:
        self._pause = pause
        self._clock = clock
        # By scope and kind.
        self._pauses: dict[tuple[str, str], tuple[float, UpstreamBusy]] = {}
        self._down_until: dict[tuple[str, str], float] = {}

    def find(self, scope: str, kind: str) -> UpstreamError | None:
        """Give what speaks against asking now: after a 429 UpstreamBusy with the time that is left."""
        now = self._clock()
        until, busy = self._pauses.get((scope, kind), (0.0, None))
        if busy is not None and now < until:
            return UpstreamBusy(
                str(busy), status=busy.status, retry_after=until - now, headers=busy.headers
            )
        if now < self._down_until.get((scope, kind), 0.0):
            return UpstreamError("the upstream was in trouble shortly before")
        return None

    def note_down(self, scope: str, kind: str) -> None:
        """Note that there was trouble where an old answer does."""
        now = self._clock()
        self._down_until = {key: until for key, until in self._down_until.items() if until > now}
        self._down_until[scope, kind] = now + DOWN_TIME

    def note_up(self, scope: str, kind: str) -> None:
        """Note that there was an answer."""
        self._down_until.pop((scope, kind), None)

    def note_busy(self, scope: str, kind: str, busy: UpstreamBusy) -> None:
        """Note a 429: nothing is to be asked in this name for a while."""
        now = self._clock()
        self._pauses = {key: value for key, value in self._pauses.items() if value[0] > now}
        delay = busy.retry_after
        if delay is None:  # the Hub may tell it in RateLimit only
            found = [
                _RESET.search(value) for name, value in busy.headers if name.lower() == "ratelimit"
            ]
            delay = next((float(match[1]) for match in found if match), self._pause)
        self._pauses[scope, kind] = (now + min(delay, MAX_PAUSE), busy)
