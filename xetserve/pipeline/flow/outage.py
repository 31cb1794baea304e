"""How long one response waits for upstreams that fail, and what the log says of it.

One failure says little, since connections break, and the next try mostly succeeds. So an outage
begins when a try fails that follows another failed one: one line in the log. It is over when all
that was tried has got bytes again: another line, not one for each try.
"""

import logging
import time
from collections.abc import Callable, Hashable

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.base.request_id import REQUEST_ID

logger = logging.getLogger(__name__)


class Outage:
    """The failures of the upstreams of one response; to be made in the task of its request.

    Args:
        get_patience: returns for how many seconds the response would still wait for bytes; 0: a
            failure ends it, for example because its client has no head yet.
    """

    def __init__(self, get_patience: Callable[[], float]) -> None:
        self.get_patience = get_patience
        self._request_id = REQUEST_ID.get()
        self._failing: dict[Hashable, int] = {}  # failed tries in a row, by what is tried
        self._began = 0.0  # of the first of them, seconds of the monotonic clock
        self._is_logged = False
        self._is_closed = False

    def note_failure(self, what: Hashable, error: Exception, *, num_tries: int = 1) -> None:
        """Record tries that failed and are followed by others.

        Args:
            what: identifies what is tried.
        """
        patience = self.get_patience()
        if self._is_closed or patience <= 0:
            return
        if not self._failing:
            self._began = time.monotonic()
        self._failing[what] = self._failing.get(what, 0) + num_tries
        if self._failing[what] > 1 and not self._is_logged:
            self._is_logged = True
            text = "request %s: the upstream fails, trying again for up to %.0f s: %s"
            request_id = self._request_id or "-"
            LOG_LIMIT.log(logger, logging.WARNING, error, text, request_id, patience, error)

    def note_success(self, what: Hashable) -> None:
        """Record that what was tried has got bytes, or is not needed any more."""
        if self._failing.pop(what, None) is None or self._failing or not self._is_logged:
            return
        self._is_logged = False
        if not self._is_closed:
            lasted = time.monotonic() - self._began
            text, request_id = "request %s: goes on after %.1f s", self._request_id or "-"
            LOG_LIMIT.log(logger, logging.WARNING, "goes on", text, request_id, lasted)

    def close(self) -> None:
        """Log nothing more: the response has ended."""
        self._is_closed = True
