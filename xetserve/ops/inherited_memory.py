"""Shared memory of all workers of a server, which the next generation of the server inherits.

While one generation drains and another one accepts the clients, the workers of both write to this
memory and read it. It is an anonymous file (memfd_create), whose descriptor is handed over. Layout,
native byte order:

    0       layout of the records in the places      u64
    8       bytes in a place                         u64
    16      number of places                         u64
    PAGE    places

Each place:

    0       id of the main process of its owner, 0: none     u64
    8       id of the worker that writes to it, 0: none      u64
    PAGE    its memory, in whole pages

Each worker writes to one place. A generation takes places whose processes have ended, with the data
in them, and adds places at the end if there are not enough. Others map new places when they next
count them. A place is never removed. So a server that is upgraded again and again has as many
places as it had workers at the same time, a few more after failed upgrades.
"""

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, overload

from xetserve.errors import ConfigError

_PAGE: Final = mmap.PAGESIZE
_LAYOUT, _SIZE, _COUNT = 0, 1, 2  # words of the file
_MAIN, _WORKER = 0, 1  # words of a place


class InheritedMemory(Sequence[memoryview]):
    """The memory of each place. Its length grows when another generation adds places.

    Args:
        size: bytes in a place.
        layout: a number that differs between versions which cannot read each other's records.
        descriptor: of the memory of the former generation; None: create new memory.

    Attributes:
        descriptor: of the memory.

    Raises:
        ConfigError: the former generation has another layout.
    """

    def __init__(self, size: int, layout: int, descriptor: int | None = None) -> None:
        self._size = size
        self._stride = _PAGE + -(-size // _PAGE) * _PAGE
        is_new = descriptor is None
        if descriptor is None:
            descriptor = os.memfd_create("xetserve-ledgers")
            os.ftruncate(descriptor, _PAGE)
        self.descriptor = descriptor
        self._words = memoryview(mmap.mmap(descriptor, _PAGE)).cast("Q")
        if is_new:
            self._words[_LAYOUT], self._words[_SIZE] = layout, size
        elif (self._words[_LAYOUT], self._words[_SIZE]) != (layout, size):
            raise ConfigError(
                "this version cannot read the records of damaged files that the running server "
                "has: stop that server and start this one, instead of an upgrade"
            )
        self._heads: list[memoryview] = []
        self._places: list[memoryview] = []
        self._own: list[int] = []

    def claim(self, num: int) -> None:
        """Claim places for num workers that will be forked from this process."""
        count = len(self)
        free = [number for number in range(count) if not self._is_in_use(number)]
        new = range(count, count + max(0, num - len(free)))
        if new:
            os.ftruncate(self.descriptor, _PAGE + new.stop * self._stride)
            self._words[_COUNT] = new.stop
            self._map(new.stop)
        self._own = [*free, *new][:num]
        for number in self._own:
            self._heads[number][_MAIN] = os.getpid()

    def take(self, number: int) -> int:
        """Take a claimed place for this process; return its index.

        Args:
            number: of the worker, counted from 0.
        """
        place = self._own[number]
        self._heads[place][_WORKER] = os.getpid()
        return place

    def __len__(self) -> int:
        count = self._words[_COUNT]
        if count > len(self._places):
            self._map(count)
        return count

    @overload
    def __getitem__(self, at: int) -> memoryview: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[memoryview]: ...
    def __getitem__(self, at: int | slice) -> memoryview | Sequence[memoryview]:
        return self._places[at]

    def _map(self, count: int) -> None:
        known = len(self._places)
        size = (count - known) * self._stride
        memory = memoryview(mmap.mmap(self.descriptor, size, offset=_PAGE + known * self._stride))
        for start in range(0, size, self._stride):
            begin = start + _PAGE
            self._heads.append(memory[start:begin].cast("Q"))
            self._places.append(memory[begin : begin + self._size])

    def _is_in_use(self, number: int) -> bool:
        head = self._heads[number]
        return any(pid and Path(f"/proc/{pid}").exists() for pid in head[: _WORKER + 1])
