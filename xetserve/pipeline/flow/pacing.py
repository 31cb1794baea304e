"""Choose how much one response holds, and how far it fetches ahead.

Two measurements decide. The first is the rate at which the client takes bytes, over about the last
second. A response to a slow client then holds little, and a client whose kernel buffers the first
megabytes does not count as fast. The second is the share of the time that the response waits for
the upstream. Above a tenth, it fetches further ahead, over several connections.

Example. A client takes 8 MB/s. The upstream needs 50 ms to the first byte and gives 10 MB/s on a
connection, so the response waits 60 % of the time:

                  at first   later
    hold_limit    512 KiB    1.0 MB   8 MB/s for HOLD_SECONDS
    block_size     32 KiB     40 kB   8 MB/s for BLOCK_SECONDS
    ahead_limit   512 KiB     15 MB   twice 8 MB/s for 939 ms, the time of a window of 8 MiB:
                                      50 for the CAS, 50 to the first byte, 839 for the data
    window_size     1 MiB     2 MiB   so seven windows are fetched at the same time

Each window is a question to the CAS, whose signed URLs name whole ranges: a range cannot be fetched
in parts over several connections. So a far upstream costs fewer questions only if larger windows
are held side by side, and ahead_limit aims at the largest ones for which there is room.

Once such a client is the slow one (it blocks), ahead_limit shrinks. If one connection is as fast as
the client, a window then lasts WINDOW_SECONDS and is streamed, as from a near upstream.

With a near upstream the response does not wait: ahead_limit stays at 512 KiB, and one fetch at a
time is enough. Then window_size is 128 MiB: the client takes 136 MB in WINDOW_SECONDS. A larger
window than hold_limit is streamed, so it costs no more memory, and there are few questions to
the CAS.

Pure: the caller passes the time.
"""

from math import exp
from typing import Final

MIN_HOLD: Final = 512 * 1024
MAX_HOLD: Final = 8 * 1024 * 1024  # more helps only when the upstream is slow, see ahead_limit
MIN_WINDOW: Final = 1024 * 1024
MAX_WINDOW: Final = 128 * 1024 * 1024  # each costs a question to the CAS, and fetches
MAX_SHARED_WINDOW: Final = 8 * 1024 * 1024  # where other readers need the data
MIN_BLOCK: Final = 32 * 1024  # a slow client gets one chunk at a time
MAX_BLOCK: Final = 512 * 1024

JUDGED_SECONDS: Final = 0.1  # over a shorter time, the measurement is noise
MEMORY_SECONDS: Final = 1.0  # the time constant of the client's rate
HOLD_SECONDS: Final = 0.125  # the client takes hold_limit bytes in this time
BLOCK_SECONDS: Final = 0.005  # the client takes block_size bytes in this time
WINDOW_SECONDS: Final = 17.0  # the client takes a window in this time
WINDOW_GROWTH: Final = 4  # a window has at most this multiple of what the client has taken
WINDOWS_STORED: Final = 4  # windows that fit into the largest entry of the cache
MIN_WINDOW_SECONDS: Final = 0.015  # a window lasts this long at least, since it costs a request
PARALLEL_FETCHES: Final = 8  # windows in ahead_limit where the upstream is slow, if there is room
MIN_PARALLEL: Final = 6  # and at least, so that a moment of less room does not halve the windows
STARVED: Final = 0.1  # a response that waits this share of the time fetches further ahead
GROWTH: Final = 2.0  # a response that waits for the upstream aims at this multiple of its rate
SHRINKING: Final = 0.95  # ahead_limit decreases at most by this factor, after a slow moment
SLOW_FETCH_SECONDS: Final = 0.05  # a longer fetch is split into several parallel ones
# Per fetch. Parallel fetches share a line, so without it the upstream would look ever slower.
FADING: Final = 1.002
MIN_MEASURED: Final = 512 * 1024  # bytes; fewer may all have been in a buffer on the way
# Of the time of a fetch, the share of waiting for the data host from which its bandwidth is known.
# With less, the client or this process was the limit, and the next fetch may be much faster.
MIN_WAITED: Final = 0.5
ONE_IS_ENOUGH: Final = 0.8  # of its bandwidth: a client at most so fast needs one connection
BLOCKED: Final = 0.5  # a response whose client blocks this share of the time fetches less ahead


class Pacer:
    """The sizes for one response, in bytes.

    hold_limit: packed bytes to hold.
    ahead_limit: packed bytes to hold when the upstream is slow, in fetches ahead of the one that is
        being read.
    window_size: decoded bytes of the next window.
    block_size: decoded bytes of the next block.

    Args:
        max_hold: bytes that hold_limit and ahead_limit may reach; None: as many as are of use.
    """

    def __init__(self, max_hold: int | None = None) -> None:
        self._max_hold = max_hold
        self.hold_limit = MIN_HOLD
        self.ahead_limit = MIN_HOLD
        self.window_size = MIN_WINDOW
        self.block_size = MIN_BLOCK
        self._rate = 0.0  # bytes per second that the client takes, over about MEMORY_SECONDS
        # Since ahead_limit was adjusted the last time:
        self._starved = 0.0  # seconds of waiting for the upstream
        self._blocked = 0.0  # seconds of waiting for the client
        self._elapsed = 0.0  # seconds in all
        self._judged_size = 0  # bytes
        self._taken = 0  # bytes that the client has taken in all

    @property
    def early_limit(self) -> int:
        """The bytes still to come at which the next fetch starts, though it can only be streamed.

        0 for slow clients.
        """
        return self.hold_limit if self.hold_limit > MIN_HOLD else 0

    def note_block(self, size: int, blocked: float, elapsed: float) -> None:
        """Record a block of size bytes that the client has taken.

        Args:
            blocked: seconds of waiting for the client.
            elapsed: seconds since the client took the previous block.
        """
        self._rate = self._rate * exp(-elapsed / MEMORY_SECONDS) + size / MEMORY_SECONDS
        self._taken += size
        self._blocked += blocked
        self._elapsed += elapsed
        most = MAX_HOLD if self._max_hold is None else self._max_hold
        self.hold_limit = min(max(MIN_HOLD, int(self._rate * HOLD_SECONDS)), most)
        self.block_size = min(max(MIN_BLOCK, int(self._rate * BLOCK_SECONDS)), MAX_BLOCK)

    def note_starved(self, seconds: float) -> None:
        """Record the time that the response has waited for the upstream."""
        self._starved += seconds

    def note_window(
        self,
        size: int,
        share: int,
        host_speed: "HostSpeed",
        *,
        is_shared: bool = False,
        max_stored: int | None = None,
    ) -> None:
        """Set the sizes for the next window, after one of size bytes.

        Args:
            share: bytes that the budget would grant to this response.
            host_speed: the latency and bandwidth of the data host.
            is_shared: whether other readers follow in the file.
            max_stored: bytes of the largest fetch range that the cache stores; None: no cache.
        """
        self._judged_size += size
        if self._elapsed >= JUDGED_SECONDS:
            self._judge(share, host_speed)
        if self._max_hold is not None:
            share = min(share, self._max_hold)
        self.ahead_limit = max(MIN_HOLD, min(self.ahead_limit, share))
        wanted = min(int(self._rate * WINDOW_SECONDS), self._taken * WINDOW_GROWTH)
        wanted = min(wanted, MAX_SHARED_WINDOW if is_shared else MAX_WINDOW)
        if max_stored is not None:
            wanted = min(wanted, max_stored // WINDOWS_STORED)
        if self._needs_parallel(host_speed):
            # One connection is the limit: windows that are held whole, side by side.
            most = max(self.ahead_limit // MIN_PARALLEL, int(self._rate * MIN_WINDOW_SECONDS))
            wanted = min(wanted, most, MAX_SHARED_WINDOW)
        wanted = max(MIN_WINDOW, wanted)
        # A power of two, so that the windows of several readers match.
        self.window_size = 1 << (wanted.bit_length() - 1)

    def _needs_parallel(self, host_speed: "HostSpeed") -> bool:
        """Return whether one connection may be too slow for the client."""
        if host_speed.get_fetch_seconds(MAX_SHARED_WINDOW) <= SLOW_FETCH_SECONDS:
            return False
        return self.ahead_limit > MIN_HOLD or not self._is_slow_for(host_speed)

    def _is_slow_for(self, host_speed: "HostSpeed") -> bool:
        """Return whether the client takes less than one connection gives."""
        return self._rate <= host_speed.bandwidth * ONE_IS_ENOUGH

    def _judge(self, share: int, host_speed: "HostSpeed") -> None:
        """Adjust ahead_limit to the time that the last windows have waited."""
        starved, blocked = self._starved / self._elapsed, self._blocked / self._elapsed
        rate = self._judged_size / self._elapsed
        self._starved = self._blocked = self._elapsed = 0.0
        self._judged_size = 0
        if starved > STARVED:
            # The bytes in flight at twice the rate (Little's law). The waiting time alone would be
            # misleading: on a busy machine all responses wait, and holding more does not help.
            window = min(max(MIN_WINDOW, share // PARALLEL_FETCHES), MAX_SHARED_WINDOW)
            wanted = int(GROWTH * rate * host_speed.get_fetch_seconds(window))
            self.ahead_limit = max(int(self.ahead_limit * SHRINKING), wanted)
        elif blocked > BLOCKED:
            self.ahead_limit = 0 if self._is_slow_for(host_speed) else self.ahead_limit // 2


class HostSpeed:
    """The latency and bandwidth of the data host, without delays on our side.

    bandwidth: bytes per second of one connection, the most of the last fetches; 0: not known.
    """

    def __init__(self) -> None:
        self._latency = 0.0  # seconds to the first byte, the least of the last fetches
        self.bandwidth = 0.0

    def note_fetch(self, latency: float, size: int, seconds: float) -> None:
        """Record a fetch.

        Args:
            latency: seconds from the request to the first byte.
            size: bytes after the first read.
            seconds: the time that these bytes took; 0: it does not tell the bandwidth.
        """
        # The best values are those of the data host; our own machine causes the worse ones. The
        # best values decay, since routes change.
        self._latency = min(self._latency * FADING, latency) if self._latency else latency
        if size >= MIN_MEASURED and seconds > 0:
            self.bandwidth = max(self.bandwidth / FADING, size / seconds)

    def get_fetch_seconds(self, size: int) -> float:
        """Return the seconds that a window of size bytes takes: a CAS question and a fetch."""
        return 2 * self._latency + (size / self.bandwidth if self.bandwidth else 0.0)


class Stopwatch:
    """Measures one fetch.

    Args:
        started: seconds of the monotonic clock.
        busy: CPU seconds that the thread has used until now.
    """

    def __init__(self, started: float, busy: float) -> None:
        self._started = started
        self._busy = busy
        self._first_byte = 0.0
        self._size = 0  # bytes after the first read

    def note_bytes(self, count: int, now: float) -> None:
        """Count bytes that were received now."""
        if self._first_byte:
            self._size += count
        else:
            self._first_byte = now

    def record_in(self, host_speed: HostSpeed, now: float, busy: float, paused: float) -> None:
        """Record the fetch, which is complete, with its data host.

        Args:
            busy: CPU seconds that the thread has used until now.
            paused: seconds in which the fetch had no room for more.
        """
        latency, seconds = self._first_byte - self._started, now - self._first_byte
        waited = now - self._started - (busy - self._busy) - paused
        is_telling = waited >= MIN_WAITED * (now - self._started)
        host_speed.note_fetch(latency, self._size, seconds if is_telling else 0.0)
