"""A log in shared memory: one process appends records, other processes read them.

New records overwrite the oldest ones. Layout, native byte order:

    0    tail: the position of the oldest record     u64
    8    head: the position of the next record       u64
    64   records, around a ring

Positions count bytes from the first record ever written, and are multiples of eight. A record:

    0    its position                                u64
    8    size of the data, bytes                     u32
    12   CRC-32 of the above and the data            u32
    16   data, padded with zeros to a multiple of eight

There is no lock. The writer moves the tail before it overwrites records, and moves the head once a
record is complete. A record that a dying process has left incomplete is never visible. A reader
copies records and then checks that the tail has not passed them. Position and checksum reveal a
record that the reader's CPU sees only in part. A reader that is too slow misses records, and counts
how often.

Pure: the caller passes the memory.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

HEADER_SIZE: Final = 64  # bytes
_RECORD: Final = struct.Struct("=QII")
_PLACE: Final = struct.Struct("=QI")  # the part of it that the checksum covers
_TAIL, _HEAD = 0, 1  # words


class Record(NamedTuple):
    """One record: its position and its data."""

    position: int
    data: memoryview


def ring_size(capacity: int) -> int:
    """Return the bytes of memory for a ring with capacity bytes of records."""
    return HEADER_SIZE + _round_up(capacity)


def _round_up(size: int) -> int:
    return -(-size // 8) * 8


class _Ring:
    """The memory of a ring, initially zeros."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:HEADER_SIZE].cast("Q")
        self._memory = memory[HEADER_SIZE : HEADER_SIZE + (len(memory) - HEADER_SIZE) // 8 * 8]
        self._capacity = len(self._memory)

    def _copy(self, start: int, end: int) -> bytes:
        """Return a copy of the bytes between two positions."""
        first, size = start % self._capacity, end - start
        whole = self._memory[first : first + size].tobytes()
        return whole if len(whole) == size else whole + bytes(self._memory[: size - len(whole)])


class RingWriter(_Ring):
    """Appends records. After a restart, it goes on behind the last complete record."""

    def append(self, data: bytes) -> bool:
        """Append a record; return False if it is larger than the ring."""
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
            # If there is no record here, the memory was overwritten: drop everything.
            tail = tail + _RECORD.size + _round_up(length) if position == tail < head else head
            tail = min(tail, head)
        self._words[_TAIL] = tail


class RingReader(_Ring):
    """Reads records, from the oldest one on.

    num_lost: how often records were overwritten before they were read.
    """

    def __init__(self, memory: memoryview) -> None:
        super().__init__(memory)
        self.num_lost = 0
        self._next = 0
        self._doubtful = -1  # the position where the last read found no valid record

    def read(self) -> Iterator[Record]:
        """Yield the new records."""
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
        """Return the record at a position; None if it was overwritten."""
        end = self._words[_HEAD]
        if not self._words[_TAIL] <= position <= end - _RECORD.size:
            return None
        _, size, _ = _RECORD.unpack(self._copy(position, position + _RECORD.size))
        size += _RECORD.size
        if size > min(self._capacity, end - position):
            return None
        return _parse(self._copy(position, position + size), 0, position)

    def _stumble(self, end: int) -> None:
        """Choose where to go on, when there is no valid record at the next position."""
        tail = self._words[_TAIL]
        if self._next < tail:  # it was overwritten meanwhile
            self.num_lost += 1
            self._next = tail
        elif self._doubtful == self._next:  # invalid for the second time: skip it
            self.num_lost += 1
            self._next = end
        else:
            self._doubtful = self._next


def _check(position: int, data: bytes | memoryview) -> int:
    # Never zero for zeros, so memory that was never written holds no valid record.
    return zlib.crc32(data, zlib.crc32(_PLACE.pack(position, len(data))))


def _parse(copy: bytes, at: int, position: int) -> Record | None:
    """Parse the record that starts at a byte of a copy; None if it is incomplete or invalid."""
    if at + _RECORD.size > len(copy):
        return None
    found, size, check = _RECORD.unpack_from(copy, at)
    begin = at + _RECORD.size
    if found != position or begin + size > len(copy):
        return None
    data = memoryview(copy)[begin : begin + size]
    return Record(position, data) if _check(position, data) == check else None
