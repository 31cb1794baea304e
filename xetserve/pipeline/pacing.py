"""How far to look ahead for one response. Pure: the caller tells the time that things took.

Two things are learnt while a response runs. How fast its client takes bytes: that sizes windows and blocks, so that a
slow client holds little. And whether it waits for the upstream: then more is fetched ahead, in smaller windows, over
more connections, as long as that helps.
"""

from typing import Final

MIN_WINDOW: Final = 1024 * 1024
MAX_WINDOW: Final = 16 * 1024 * 1024
MIN_BLOCK: Final = 64 * 1024
MAX_BLOCK: Final = 512 * 1024

WINDOW_SECONDS: Final = 0.25  # what a window should last a client
BLOCK_SECONDS: Final = 0.005
PARALLEL_FETCHES: Final = (
    8  # windows that fit into what is fetched ahead, when the upstream is slow
)
STARVED: Final = 0.1  # share of the time waiting for upstream above which more is fetched ahead
BLOCKED: Final = 0.5  # share of the time waiting for the client above which less is
SMOOTHING: Final = 0.3


class Pacer:
    """The sizes for one response, in bytes.

    window_size: of the next window. block_size: of the next block. ahead_limit: packed bytes to fetch
    ahead of the client.
    """

    def __init__(self) -> None:
        self.window_size = MIN_WINDOW
        self.block_size = MIN_BLOCK
        self.ahead_limit = MIN_WINDOW
        self._rate = 0.0  # bytes per second, smoothed
        self._starved = 0.0
        self._blocked = 0.0
        self._elapsed = 0.0
        self._is_starving = False

    def note_block(self, size: int, blocked: float) -> None:
        """Learn that the client took size bytes in `blocked` seconds."""
        self._blocked += blocked
        if blocked * MAX_BLOCK > BLOCK_SECONDS * size:
            self.block_size = max(
                MIN_BLOCK, min(self.block_size, int(size / blocked * BLOCK_SECONDS))
            )
        self.block_size = min(MAX_BLOCK, max(MIN_BLOCK, self.block_size))

    def note_starved(self, seconds: float) -> None:
        """Learn that the response waited so long for upstream bytes."""
        self._starved += seconds

    def note_window(self, size: int, elapsed: float) -> None:
        """Learn that a window of size bytes has passed in `elapsed` seconds, and set the sizes anew."""
        elapsed = max(elapsed, 1e-6)
        rate = size / elapsed
        self._rate = rate if not self._rate else self._rate + SMOOTHING * (rate - self._rate)
        starved, blocked = self._starved / elapsed, self._blocked / elapsed
        self._starved = self._blocked = 0.0
        self._is_starving = starved > STARVED
        if self._is_starving:
            self.ahead_limit *= 2
        elif blocked > BLOCKED:
            self.ahead_limit = max(MIN_WINDOW, self.ahead_limit // 2)
        most = MAX_WINDOW
        if self._is_starving:
            most = max(MIN_WINDOW, min(MAX_WINDOW, self.ahead_limit // PARALLEL_FETCHES))
        wanted = int(self._rate * WINDOW_SECONDS)
        self.window_size = max(MIN_WINDOW, min(wanted, self.window_size * 2, most))
        if blocked <= BLOCKED:
            self.block_size = min(MAX_BLOCK, self.block_size * 2)

    def cap_ahead(self, limit: int) -> None:
        """Keep what is fetched ahead within what the budget would grant."""
        self.ahead_limit = max(MIN_WINDOW, min(self.ahead_limit, limit))
