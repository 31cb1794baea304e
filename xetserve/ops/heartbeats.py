"""Signs of life of a server's processes, in memory that they share.

Every process writes into a place of its own, from its event loop, and the one that talks to the
service manager reads them all. A loop that is stuck writes nothing, and that is how it shows:
nobody has to answer anything, no message can be lost or pile up, and a process that dies leaves
nothing half said but a place that its supervisor clears.

A place, native 64-bit words:

    0   1: somebody is here, 0: nobody
    1   when it was last written, ns of CLOCK_MONOTONIC; a process that starts is given time in
        advance
    2   since when there is no connection, ns of CLOCK_MONOTONIC; 0: there are some
"""

import mmap
import time
from collections.abc import Iterator
from typing import Final

_WORDS: Final = 3


class Heartbeats:
    """The places of num_processes processes; made before they are forked.

    Attributes:
        own: the place of this process.
    """

    def __init__(self, num_processes: int) -> None:
        self._words = memoryview(mmap.mmap(-1, num_processes * _WORDS * 8)).cast("Q")
        self._num_processes = num_processes
        self.own = 0

    def begin(self, place: int, patience: float) -> None:
        """A process is about to begin, and counts as alive for so many seconds without having
        written.
        """
        now = time.monotonic_ns()
        self._put(place, (1, now + int(patience * 1e9), now))

    def end(self, place: int) -> None:
        """A process has ended."""
        self._put(place, (0,) * _WORDS)

    def write(self, idle_since: float | None) -> None:
        """Say how this process is; idle_since in seconds of the monotonic clock, None: it is not
        idle.
        """
        since = 0 if idle_since is None else max(1, int(idle_since * 1e9))
        self._put(self.own, (1, time.monotonic_ns(), since))

    def silence(self) -> float:
        """Seconds that the process has said nothing which has been silent for longest; 0 with
        none.
        """
        now = time.monotonic_ns()
        return max((now - words[1] for words in self._present()), default=0) / 1e9

    def idle_time(self) -> float:
        """Seconds that nobody has been connected to any process; 0: somebody is, or there is
        none.
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
        # Word by word: none is ever seen half written.
        for offset, value in enumerate(values, place * _WORDS):
            self._words[offset] = value
