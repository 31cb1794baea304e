"""A log in shared memory: one process appends records, all others read them; the oldest give way to
the newest.

    0    tail: where the oldest record begins        u64
    8    head: where the next one will begin         u64
    64   records, around a ring

Positions count bytes from the first record ever written, and are multiples of eight. A record:

    0    its position                                u64
    8    size of what it says, bytes                 u32
    12   CRC-32 of the above and what it says        u32
    16   what it says, filled up with zeros to a multiple of eight

There is no lock. The writer moves the tail before it overwrites anything and the head once a record
is whole, so one that was begun by a process that died is as if it had never been. A reader copies,
and then looks whether what it has copied was still there; the position and the checksum show what
was not all written, from wherever it is seen. Who comes too late has lost records, and knows.
Pure: the memory is given. Numbers are the machine's own.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

HEADER_SIZE: Final = 64  # bytes
_RECORD: Final = struct.Struct("=QII")
_PLACE: Final = struct.Struct("=QI")  # what is checked of that
_TAIL, _HEAD = 0, 1  # words


class Record(NamedTuple):
    """What somebody has written, and where."""

    position: int
    data: memoryview


def ring_size(capacity: int) -> int:
    """Bytes of memory for a ring of so many bytes of records."""
    return HEADER_SIZE + _round_up(capacity)


def _round_up(size: int) -> int:
    return -(-size // 8) * 8


class _Ring:
    """The memory. It begins as zeros."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:HEADER_SIZE].cast("Q")
        self._memory = memory[HEADER_SIZE : HEADER_SIZE + (len(memory) - HEADER_SIZE) // 8 * 8]
        self._capacity = len(self._memory)

    def _copy(self, start: int, end: int) -> bytes:
        """Return what lies between two positions."""
        first, size = start % self._capacity, end - start
        whole = self._memory[first : first + size].tobytes()
        return whole if len(whole) == size else whole + bytes(self._memory[: size - len(whole)])


class RingWriter(_Ring):
    """The one that appends. A new process in the place of one that died goes on behind its last
    whole record.
    """

    def append(self, data: bytes) -> bool:
        """Write a record; False: it is larger than the ring."""
        padded = _round_up(len(data))
        size = _RECORD.size + padded
        if size > self._capacity:
            return False
        head = self._words[_HEAD]
        self._make_room(head, size)
        record = (
            _RECORD.pack(head, len(data), _check(head, data)) + data + bytes(padded - len(data))
        )
        at = head % self._capacity
        first = min(size, self._capacity - at)
        self._memory[at : at + first] = record[:first]
        self._memory[: size - first] = record[first:]
        self._words[_HEAD] = head + size
        return True

    def _make_room(self, head: int, size: int) -> None:
        tail = self._words[_TAIL]
        while head + size - tail > self._capacity:
            position, length, _ = _RECORD.unpack(self._copy(tail, tail + _RECORD.size))
            # Anything else than a record here: somebody has written over our memory.
            tail = tail + _RECORD.size + _round_up(length) if position == tail < head else head
            tail = min(tail, head)
        self._words[_TAIL] = tail


class RingReader(_Ring):
    """One that reads, from the oldest record on.

    num_lost: how often records had gone before they were read.
    """

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self.num_lost = 0
        self._next = 0
        self._doubtful = -1  # where a record was seen that is none, the last time

    def read(self) -> Iterator[Record]:
        """Yield the records that are new."""
        head = self._words[_HEAD]
        if head == self._next:
            return
        tail = self._words[_TAIL]
        start = self._next
        if not tail <= start <= head:
            self.num_lost += start < tail
            start = min(tail, head)
        end = min(head, start + self._capacity)
        copy = self._copy(start, end)
        self._next = start
        while self._next < end:
            record = _parse(copy, self._next - start, self._next)
            if record is None or self._next < self._words[_TAIL]:
                self._stumble(end)
                return
            self._next += _RECORD.size + _round_up(len(record.data))
            yield record

    def find(self, position: int) -> Record | None:
        """Return the record at a position, if it is still there."""
        end = self._words[_HEAD]
        if not self._words[_TAIL] <= position <= end - _RECORD.size:
            return None
        _, size, _ = _RECORD.unpack(self._copy(position, position + _RECORD.size))
        size += _RECORD.size
        if size > min(self._capacity, end - position):
            return None
        return _parse(self._copy(position, position + size), 0, position)

    def _stumble(self, end: int) -> None:
        """Find another way on than by what is no record."""
        tail = self._words[_TAIL]
        if self._next < tail:  # overwritten meanwhile
            self.num_lost += 1
            self._next = tail
        elif self._doubtful == self._next:  # it stays so: it never will be one
            self.num_lost += 1
            self._next = end
        else:
            self._doubtful = self._next


def _check(position: int, data: bytes | memoryview) -> int:
    # Of zeros it is not zero: memory that was never written holds no records.
    return zlib.crc32(data, zlib.crc32(_PLACE.pack(position, len(data))))


def _parse(copy: bytes, at: int, position: int) -> Record | None:
    """Read the record that begins at a byte of a copy; None: there is none that is whole."""
    if at + _RECORD.size > len(copy):
        return None
    found, size, check = _RECORD.unpack_from(copy, at)
    begin = at + _RECORD.size
    if found != position or begin + size > len(copy):
        return None
    data = memoryview(copy)[begin : begin + size]
    return Record(position, data) if _check(position, data) == check else None
