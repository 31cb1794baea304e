"""Shared memory of all workers, with one place for each worker.

A worker writes its metrics to its own place, and every worker can read all places. The memory is an
anonymous shared mapping, created before the workers are forked. It is not on disk, and it is freed
with the last process. A worker that replaces a dead one finds the data of its predecessor.
"""

import mmap
import os
import time
from pathlib import Path
from typing import Final

_PLACE_HEADER: Final = 64  # bytes; the first eight hold the process id, 0: never used


class SharedMemory:
    """The places of num_places processes.

    Args:
        size: bytes in a place.

    Attributes:
        started: the start time of the server in Unix seconds.
        number: the place of this process, counted from 0.
        is_replacement: whether another process used this place before.
    """

    def __init__(self, num_places: int, size: int) -> None:
        self.num_places = num_places
        stride = _PLACE_HEADER + -(-size // 64) * 64
        self.started = time.time()
        self.is_replacement = False
        self.number = 0
        self._memory = memoryview(mmap.mmap(-1, num_places * stride))
        self._pids = []
        self.places = []
        for start in range(0, num_places * stride, stride):
            begin = start + _PLACE_HEADER
            self._pids.append(self._memory[start:begin].cast("Q"))
            self.places.append(self._memory[begin : begin + size])

    def take(self, number: int) -> memoryview:
        """Take a place, counted from 0, for this process; return its memory."""
        self.is_replacement = self._pids[number][0] != 0
        self.number = number
        self._pids[number][0] = os.getpid()
        return self.own

    @property
    def own(self) -> memoryview:
        """Return the memory of this process's place."""
        return self.places[self.number]

    def is_alive(self, number: int) -> bool:
        """Return whether the process at a place is running."""
        pid = self._pids[number][0]
        return bool(pid) and Path(f"/proc/{pid}").exists()
