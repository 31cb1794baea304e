"""Heartbeats of a server's processes, in shared memory.

Each process writes a heartbeat to its own place from its event loop. The process that talks to the
service manager reads all places. A stuck loop writes no heartbeat, and its age shows this. The
processes exchange no messages, so no message can be lost or queue up. The supervisor clears the
place of a dead process.

Layout of a place, native 64-bit words:

    0   1: in use, 0: free
    1   time of the last heartbeat, ns of CLOCK_MONOTONIC; a starting process gets a time in the
        future
    2   time since when there is no connection, ns of CLOCK_MONOTONIC; 0: there are connections
"""

import mmap
import time
from collections.abc import Iterator
from typing import Final

_WORDS: Final = 3


class Heartbeats:
    """The places of num_processes processes; create it before the fork.

    Attributes:
        own: the place of this process.
    """

    def __init__(self, num_processes: int) -> None:
        self._words = memoryview(mmap.mmap(-1, num_processes * _WORDS * 8)).cast("Q")
        self._num_processes = num_processes
        self.own = 0

    def begin(self, place: int, grace: float) -> None:
        """Mark a place as in use; count the process as alive for grace seconds."""
        now = time.monotonic_ns()
        self._put(place, (1, now + int(grace * 1e9), now))

    def end(self, place: int) -> None:
        """Clear the place of a process that has ended."""
        self._put(place, (0,) * _WORDS)

    def write(self, idle_since: float | None) -> None:
        """Write a heartbeat of this process.

        Args:
            idle_since: when the last connection ended, in seconds of the monotonic clock; None:
                there are connections.
        """
        since = 0 if idle_since is None else max(1, int(idle_since * 1e9))
        self._put(self.own, (1, time.monotonic_ns(), since))

    def silence(self) -> float:
        """Return the age of the oldest heartbeat in seconds; 0 without processes."""
        now = time.monotonic_ns()
        return max((now - words[1] for words in self._present()), default=0) / 1e9

    def idle_time(self) -> float:
        """Return the seconds since the last connection of any process ended.

        Returns 0 if a process has connections, or without processes.
        """
        since = [words[2] for words in self._present()]
        if not since or 0 in since:
            return 0.0
        return max(0, time.monotonic_ns() - max(since)) / 1e9

    def _present(self) -> Iterator[tuple[int, ...]]:
        for place in range(self._num_processes):
            words = self._get(place)
            if words[0]:
                yield words

    def _get(self, place: int) -> tuple[int, ...]:
        return tuple(self._words[place * _WORDS : (place + 1) * _WORDS])

    def _put(self, place: int, values: tuple[int, ...]) -> None:
        # Each 64-bit word is written atomically.
        for offset, value in enumerate(values, place * _WORDS):
            self._words[offset] = value
