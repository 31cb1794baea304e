"""How fast a client has to be, at least."""


class RateFloor:
    """Tells whether a client takes at least rate bytes a second, window by window.

    Args:
        rate: bytes a second, on the average of a window.
        window: seconds, of those in which the client was waited for.
    """

    def __init__(self, rate: float, window: float) -> None:
        self.rate = rate
        self._window = window
        self._waited = 0.0
        self._taken = 0

    def allows(self, seconds: float, num_bytes: int) -> bool:
        """Note a wait for the client, and the bytes that it took meanwhile; False: it is too
        slow.
        """
        self._waited += seconds
        self._taken += num_bytes
        if self._waited < self._window:
            return True
        is_enough = self._taken >= self.rate * self._waited
        self._waited = 0.0
        self._taken = 0
        return is_enough


class BodyDeadline:
    """How long a client may still take for the next data of a request's body.

    There are timeout seconds. Waiting uses them up, data earns them back at rate: whoever is faster
    than rate on the average has all of them for every pause, and whoever is slower has the sooner
    none, however often a byte comes. Bytes that are not data (chunk headers) earn nothing. Time in
    which nobody here wanted data is not counted.

    Args:
        timeout: seconds; 0: any number.
        rate: bytes a second; 0: any data earns all of them.
    """

    def __init__(self, timeout: float, rate: float) -> None:
        self._timeout = timeout
        self._rate = rate
        self._left = timeout

    @property
    def left(self) -> float | None:
        """Seconds; None: any number."""
        return max(0.0, self._left) if self._timeout else None

    def wait(self, seconds: float) -> None:
        """Note a wait for the client."""
        self._left -= seconds

    def note(self, num_bytes: int) -> None:
        """Note data."""
        earned = num_bytes / self._rate if self._rate else self._timeout
        self._left = min(self._timeout, self._left + earned)
