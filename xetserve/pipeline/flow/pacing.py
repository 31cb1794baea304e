"""How much one response may hold, and how far it looks ahead. Pure: the caller tells the time.

Two things are learnt while a response runs. How fast its client takes bytes, over about the last
second: that sizes what is held, so that a slow client holds little, and a client whose kernel
swallows the first megabytes is not taken for a fast one. And whether it waits for the upstream:
then more is fetched ahead, in smaller windows, over more connections, as long as that helps.
"""

from math import exp
from typing import Final

MIN_HOLD: Final = 512 * 1024
MAX_HOLD: Final = 8 * 1024 * 1024  # more only helps when the upstream is slow, see ahead_limit
MIN_WINDOW: Final = 1024 * 1024
MAX_WINDOW: Final = 32 * 1024 * 1024  # each costs two requests
MAX_SHARED_WINDOW: Final = 8 * 1024 * 1024  # where others want what is used up
MIN_BLOCK: Final = 32 * 1024  # a slow client gets one chunk at a time
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
GROWTH: Final = 2.0  # how much faster a response that waits for the upstream may become at a time
SHRINKING: Final = 0.95  # a slow moment is no reason to fetch much less ahead
FAR_SECONDS: Final = 0.05  # a fetch that takes longer is better cut into several, side by side
FADING: Final = (
    1.002  # a fetch; fetches side by side share a line, and would make it look ever slower
)
MIN_MEASURED: Final = 128 * 1024  # bytes; less says nothing of bandwidth
BLOCKED: Final = 0.5  # share of the time waiting for the client above which less is


class Pacer:
    """The sizes for one response, in bytes.

    hold_limit: of packed bytes to hold. ahead_limit: of packed bytes to hold when the upstream is
    slow, in fetches beyond the one that is being used. window_size: of the next window. block_size:
    of the next block.
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

    @property
    def early_limit(self) -> int:
        """Bytes still to come at which the next fetch is begun, though it can only be streamed; 0
        for slow clients.
        """
        return self.hold_limit if self.hold_limit > MIN_HOLD else 0

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

    def note_window(
        self, size: int, share: int, far: "FarSide", *, may_be_large: bool = True
    ) -> None:
        """Set the sizes for what comes after a window of size bytes.

        Args:
            share: bytes that the budget would grant to this response.
            far: how far away the data is.
            may_be_large: nobody else reads the file, and what is fetched is not stored, as fast as
                a disk can.
        """
        self._judged_size += size
        if self._elapsed >= JUDGED_SECONDS:
            self._judge(far)
        self.ahead_limit = max(MIN_HOLD, min(self.ahead_limit, share))
        most = MAX_SHARED_WINDOW
        if far.get_fetch_seconds(MAX_SHARED_WINDOW) > FAR_SECONDS:
            most = max(self.ahead_limit // PARALLEL_FETCHES, int(self._rate * MIN_WINDOW_SECONDS))
        elif may_be_large and self.hold_limit == MAX_HOLD:
            most = MAX_WINDOW  # more than is held: its fetches are streamed
        wanted = most if most == MAX_WINDOW else max(MIN_WINDOW, min(self.hold_limit, most))
        self.window_size = 1 << (wanted.bit_length() - 1)  # a power of two: windows lie on a grid

    def _judge(self, far: "FarSide") -> None:
        """Fetch more ahead, or less, by how the last windows went."""
        starved, blocked = self._starved / self._elapsed, self._blocked / self._elapsed
        rate = self._judged_size / self._elapsed
        self._starved = self._blocked = self._elapsed = 0.0
        self._judged_size = 0
        if starved > STARVED:
            # What would be on its way at twice the rate (Little's law). Waiting alone is no
            # measure: on a busy machine everybody waits, and holding more makes nothing faster.
            window = min(self.window_size, MAX_SHARED_WINDOW)
            wanted = int(GROWTH * rate * far.get_fetch_seconds(window))
            self.ahead_limit = max(int(self.ahead_limit * SHRINKING), wanted)
        elif blocked > BLOCKED:
            self.ahead_limit //= 2


class FarSide:
    """How far away the data is: how long a fetch takes when nothing on our side holds it up."""

    def __init__(self) -> None:
        self._latency = 0.0  # seconds to the first byte, the least of late
        self._bandwidth = 0.0  # bytes per second of one connection, the most of late

    def note_fetch(self, latency: float, size: int, seconds: float) -> None:
        """Learn from a fetch that was received without a pause.

        Args:
            latency: seconds from the request to the first byte.
            size, seconds: bytes after the first ones, and what they took.
        """
        # The extremes are the far side's own doing; what is worse is our machine's. They fade, as
        # routes change.
        self._latency = min(self._latency * FADING, latency) if self._latency else latency
        if size >= MIN_MEASURED and seconds > 0:
            self._bandwidth = max(self._bandwidth / FADING, size / seconds)

    def get_fetch_seconds(self, size: int) -> float:
        """Return the time from asking for a window to its last byte: a question to the CAS, and a
        fetch.
        """
        return 2 * self._latency + (size / self._bandwidth if self._bandwidth else 0.0)


class Stopwatch:
    """Times one fetch for the far side's record; started: seconds, of the monotonic clock."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._first_byte = 0.0
        self._size = 0  # bytes after the first read

    def note_bytes(self, count: int, now: float) -> None:
        """Count bytes that came now."""
        if self._first_byte:
            self._size += count
        else:
            self._first_byte = now

    def tell(self, far_side: FarSide, now: float) -> None:
        """Report a fetch that is complete."""
        latency = self._first_byte - self._started
        far_side.note_fetch(latency, self._size, now - self._first_byte)
