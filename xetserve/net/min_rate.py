"""Minimum rates: how fast a client must read a response and send a request body."""


class RateFloor:
    """A check that a client reads at least rate bytes a second, window by window.

    Args:
        rate: the required mean rate of a window, in bytes a second.
        window: seconds; only time in which the server waited for the client counts.
    """

    def __init__(self, rate: float, window: float) -> None:
        self.rate = rate
        self._window = window
        self._waited = 0.0
        self._taken = 0

    def allows(self, seconds: float, num_bytes: int) -> bool:
        """Record seconds of waiting and the bytes read meanwhile; return False if too slow."""
        self._waited += seconds
        self._taken += num_bytes
        if self._waited < self._window:
            return True
        is_enough = self._taken >= self.rate * self._waited
        self._waited = 0.0
        self._taken = 0
        return is_enough


class BodyDeadline:
    """The time that a client has left to send the next data of a request body.

    The client starts with timeout seconds. Waiting uses them up, and data earns them back: n bytes
    earn n / rate seconds, up to timeout in total. A client with a mean rate above rate has the full
    timeout for each pause. A slower client runs out of time, even if a byte arrives every second.
    Framing such as chunk headers earns nothing. Time in which the server does not read is not
    counted.

    Args:
        timeout: seconds; 0: no limit.
        rate: bytes a second; 0: any data earns the full timeout.
    """

    def __init__(self, timeout: float, rate: float) -> None:
        self._timeout = timeout
        self._rate = rate
        self._left = timeout

    @property
    def left(self) -> float | None:
        """Return the seconds left; None: no limit."""
        return max(0.0, self._left) if self._timeout else None

    def wait(self, seconds: float) -> None:
        """Record seconds of waiting for the client."""
        self._left -= seconds

    def note(self, num_bytes: int) -> None:
        """Record received data."""
        earned = num_bytes / self._rate if self._rate else self._timeout
        self._left = min(self._timeout, self._left + earned)
