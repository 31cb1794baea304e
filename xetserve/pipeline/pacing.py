"""How much one response may hold, and how far it looks ahead. Pure: the caller tells the time.

Two things are learnt while a response runs. How fast its client takes bytes, over about the last second: that sizes
what is held, so that a slow client holds little, and a client whose kernel swallows the first megabytes is not taken
for a fast one. And whether it waits for the upstream: then more is fetched ahead, in smaller windows, over more
connections, as long as that helps.
"""

from math import exp
from typing import Final

MIN_HOLD: Final = 512 * 1024
MAX_HOLD: Final = 8 * 1024 * 1024  # more only helps when the upstream is slow, see ahead_limit
MIN_WINDOW: Final = 1024 * 1024
MAX_WINDOW: Final = 8 * 1024 * 1024
MIN_BLOCK: Final = 64 * 1024
MAX_BLOCK: Final = 512 * 1024

JUDGED_SECONDS: Final = 0.1  # shorter than this, chance decides
MEMORY_SECONDS: Final = 1.0  # how long a byte that was taken counts
HOLD_SECONDS: Final = 0.125  # what is held should last a client
BLOCK_SECONDS: Final = 0.005
MIN_WINDOW_SECONDS: Final = 0.015  # planning a window costs a request: not more often than this
PARALLEL_FETCHES: Final = (
    8  # windows that fit into what is fetched ahead, when the upstream is slow
)
STARVED: Final = 0.1  # share of the time waiting for upstream above which more is fetched ahead
HUNGRY: Final = 0.5  # above which it is the upstream that everything waits for
WORTHWHILE: Final = 1.2  # how much faster things must have become for fetching still more ahead
BLOCKED: Final = 0.5  # share of the time waiting for the client above which less is


class Pacer:
    """The sizes for one response, in bytes.

    hold_limit: of packed bytes to hold. ahead_limit: of packed bytes to hold when the upstream is slow, in
    fetches beyond the one that is being used. window_size: of the next window. block_size: of the next block.
    """

    def __init__(self) -> None:
        self.hold_limit = MIN_HOLD
        self.ahead_limit = MIN_HOLD
        self.window_size = MIN_WINDOW
        self.block_size = MIN_BLOCK
        self._rate = 0.0  # bytes per second, over about MEMORY_SECONDS
        self._starved = 0.0
        self._blocked = 0.0
        self._elapsed = 0.0
        self._judged_size = 0  # bytes since the pace was last judged
        self._rate_before_growth = 0.0

    def note_block(self, size: int, blocked: float, elapsed: float) -> None:
        """Learn that the client took size bytes.

        Args:
            blocked: seconds that it took for it.
            elapsed: seconds since the block before was taken.
        """
        self._rate = self._rate * exp(-elapsed / MEMORY_SECONDS) + size / MEMORY_SECONDS
        self._blocked += blocked
        self._elapsed += elapsed
        self.hold_limit = min(max(MIN_HOLD, int(self._rate * HOLD_SECONDS)), MAX_HOLD)
        self.block_size = min(max(MIN_BLOCK, int(self._rate * BLOCK_SECONDS)), MAX_BLOCK)

    def note_starved(self, seconds: float) -> None:
        """Learn that the response waited so long for upstream bytes."""
        self._starved += seconds

    def note_window(self, size: int, share: int) -> None:
        """Set the sizes for what comes after a window of size bytes.

        Args:
            share: bytes that the budget would grant to this response.
        """
        self._judged_size += size
        if self._elapsed >= JUDGED_SECONDS:
            self._judge()
        second = int(self._rate * MEMORY_SECONDS)
        self.ahead_limit = max(MIN_HOLD, min(self.ahead_limit, share, second))
        most = MAX_WINDOW
        if self.ahead_limit > self.hold_limit:
            most = max(self.ahead_limit // PARALLEL_FETCHES, int(self._rate * MIN_WINDOW_SECONDS))
        wanted = max(MIN_WINDOW, min(self.hold_limit, most))
        self.window_size = 1 << (wanted.bit_length() - 1)  # a power of two: windows lie on a grid

    def _judge(self) -> None:
        """Fetch more ahead, or less, by how the last windows went."""
        starved, blocked = self._starved / self._elapsed, self._blocked / self._elapsed
        rate = self._judged_size / self._elapsed
        self._starved = self._blocked = self._elapsed = 0.0
        self._judged_size = 0
        # A little waiting is no reason, on a busy machine everybody waits: growing must have helped.
        if starved > HUNGRY or (starved > STARVED and rate > self._rate_before_growth * WORTHWHILE):
            self._rate_before_growth = rate
            self.ahead_limit *= 2
        elif blocked > BLOCKED:
            self.ahead_limit //= 2
