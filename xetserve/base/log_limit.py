"""One line of the log for each cause and minute, with the number of those left out.

A failing upstream fails for every request. The first line about a cause is written at once, and one
for all the others at the end of each minute:

    WARNING request 61c0…: the Hub answered 502
    WARNING 199 more within 60 s, the last: request 8a3e…: the Hub answered 502

At level debug, each of the others is a line of that level.
"""

import asyncio
import contextvars
import logging
import re
from dataclasses import dataclass
from functools import partial
from typing import Final

from xetserve.base.lru_dict import LruDict

INTERVAL: Final = 60.0  # seconds
MAX_CAUSES: Final = 100

# Hashes, sizes, ports: what differs between failures of one cause. A status does not.
_DETAILS: Final = re.compile(r"(?<!answered )(?<!status )\b(?:[0-9a-f]{16,}|[0-9]+)\b")


@dataclass(slots=True)
class _Repeats:
    """The lines about a cause that were left out since the last one."""

    timer: asyncio.TimerHandle
    count: int = 0
    last: str = ""


_Cause = tuple[logging.Logger, int, str]


class LogLimit:
    """The causes that were logged within the last interval; for the thread of an event loop.

    Without a running loop, every message is logged.

    Args:
        interval: in seconds.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self._causes: LruDict[_Cause, _Repeats] = LruDict(
            max_num=MAX_CAUSES, on_leave=self._write_rest
        )

    def log(
        self, logger: logging.Logger, level: int, cause: object, message: str, *args: object
    ) -> None:
        """Log a message, unless one of the same logger, level and cause was logged just now.

        Args:
            cause: an error, or its text; numbers and hashes in it make no difference.
        """
        key = (logger, level, find_cause(str(cause)))
        repeats = self._causes.get(key)
        if repeats is None:
            logger.log(level, message, *args)
            self._begin(key)
        else:
            repeats.count += 1
            repeats.last = message % args
            logger.debug(message, *args)

    def flush(self) -> None:
        """Log how many lines were left out, and forget all causes: before the process ends."""
        while (first := self._causes.peek_first()) is not None:
            self._causes.pop(first[0])

    def _begin(self, key: _Cause) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        end = partial(self._end_interval, key)
        # Without the context of the request, whose id would begin the line.
        timer = loop.call_later(self.interval, end, context=contextvars.Context())
        self._causes.put(key, _Repeats(timer))

    def _end_interval(self, key: _Cause) -> None:
        repeats = self._causes.pop(key)
        if repeats is not None and repeats.count:
            self._begin(key)

    def _write_rest(self, key: _Cause, repeats: _Repeats) -> None:
        repeats.timer.cancel()
        if repeats.count:
            logger, level, _ = key
            text = "%d more within %.0f s, the last: %s"
            logger.log(level, text, repeats.count, self.interval, repeats.last)


def find_cause(text: str) -> str:
    """Return the text without the numbers and hashes that differ between failures of one cause."""
    return _DETAILS.sub("#", text)


LOG_LIMIT: Final = LogLimit()  # of this process
