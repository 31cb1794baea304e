"""When to try again, and how long to wait. Pure: the caller passes the time."""

import random
from dataclasses import dataclass

from xetserve.errors import UpstreamBusy, UpstreamError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of retrying. Times are in seconds.

    first_delay: the upper bound of the first pause; it doubles with every failure.
    max_delay: the upper bound of every pause, except one that the upstream asks for.
    time_limit: counted from the first try; no try starts after it.
    """

    first_delay: float = 0.1
    max_delay: float = 2.0
    time_limit: float = 7.0


class RetryState:
    """The failures of one request so far.

    Args:
        now: the time of the first try, in seconds of any steady clock.
    """

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        self._policy = policy
        self._deadline = now + policy.time_limit
        self._num_failures = 0

    def note_progress(self, now: float) -> None:
        """Start over, because the upstream has sent data since the last failure."""
        self._num_failures = 0
        self._deadline = now + self._policy.time_limit

    def next_delay(self, error: UpstreamError, now: float, patience: float = 0.0) -> float | None:
        """Return the pause before the next try, in seconds; None: give up.

        A pause is drawn between half of its bound and all of it, so that clients that failed
        together do not retry together. Retry-After is honoured if it fits the time limit.

        Args:
            patience: seconds from now that somebody would wait, even past the time limit.
        """
        if not error.retriable:
            return None
        bound = min(self._policy.first_delay * 2**self._num_failures, self._policy.max_delay)
        self._num_failures += 1
        delay = random.uniform(bound / 2, bound)
        if isinstance(error, UpstreamBusy) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        return delay if now + delay < max(self._deadline, now + patience) else None
