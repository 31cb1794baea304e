"""Memory that all workers see: a place for each, in which it keeps its figures for whoever is
asked.

Anonymous and shared, made before the workers are: it is nowhere on disk and gone with the last of
them. A worker that takes a dead one's place finds there what that one has left.
"""

import mmap
import os
import time
from pathlib import Path
from typing import Final

_PLACE_HEADER: Final = 64  # bytes; the first eight: process id, 0: nobody was here yet


class SharedMemory:
    """Places for num_places processes.

    Args:
        size: bytes of a place.

    started: when the server has, Unix seconds.
    number: of our place.
    is_heir: whether another process had our place before us.
    """

    def __init__(self, num_places: int, size: int) -> None:
        self.num_places = num_places
        stride = _PLACE_HEADER + -(-size // 64) * 64
        self.started = time.time()
        self.is_heir = False
        self.number = 0
        self._memory = memoryview(mmap.mmap(-1, num_places * stride))
        self._pids = []
        self.places = []
        for start in range(0, num_places * stride, stride):
            begin = start + _PLACE_HEADER
            self._pids.append(self._memory[start:begin].cast("Q"))
            self.places.append(self._memory[begin : begin + size])

    def take(self, number: int) -> memoryview:
        """Be the process at a place, counted from 0; gives what is there."""
        self.is_heir = self._pids[number][0] != 0
        self.number = number
        self._pids[number][0] = os.getpid()
        return self.own

    @property
    def own(self) -> memoryview:
        """The memory of this process."""
        return self.places[self.number]

    def is_alive(self, number: int) -> bool:
        """Return whether the process at a place runs."""
        pid = self._pids[number][0]
        return bool(pid) and Path(f"/proc/{pid}").exists()
