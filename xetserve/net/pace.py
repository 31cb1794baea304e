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
        """Note a wait for the client, and the bytes that it took meanwhile; False: it is too slow."""
        self._waited += seconds
        self._taken += num_bytes
        if self._waited < self._window:
            return True
        is_enough = self._taken >= self.rate * self._waited
        self._waited = 0.0
        self._taken = 0
        return is_enough
