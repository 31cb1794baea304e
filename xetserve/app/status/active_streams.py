"""Table of running transfers in memory that other processes can read.

    0     number        f64, of the stream in its process; 0: the place is free
    8     started       f64, Unix seconds
    16    sent          f64, body bytes
    24    size          f64, body bytes to send; -1: not known
    32    stage         f64, see Stage
    40    text size     f64, bytes
    64    text          JSON: route, file, repository, client, request id

Each place has this layout. Only one process writes, without a lock. A reader that meets a place
while it changes finds text that is not JSON, or another number afterwards, and skips the stream.
"""

import json
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

NUM_PLACES: Final = 64  # of one process; further streams are counted in metrics, but not shown
_HEAD_SIZE: Final = 64  # bytes
_TEXT_SIZE: Final = 1984  # bytes
_STRIDE: Final = _HEAD_SIZE + _TEXT_SIZE
STREAMS_SIZE: Final = NUM_PLACES * _STRIDE
MAX_TEXT: Final = 160  # characters of each part of the text


class Stage(IntEnum):
    """The thing that a stream waits for."""

    READING = 0  # for data from upstream or from our disk
    SENDING = 1  # for its client


class StreamState(NamedTuple):
    """A stream at one moment.

    started: Unix seconds. sent, size: bytes; size None: unknown. text: see StreamTable.open.
    """

    number: int
    started: float
    sent: int
    size: int | None
    stage: Stage
    text: dict[str, str]


class Stream:
    """A body that is being sent."""

    def __init__(self, table: "StreamTable", place: int) -> None:
        self._table = table
        self._place = place
        self._head = table.heads[place]

    def note(self, sent: int, stage: Stage) -> None:
        """Record the bytes sent so far, and what the stream waits for."""
        self._head[2] = sent
        self._head[4] = stage

    def close(self) -> None:
        """Free the place of a stream that has ended."""
        self._head[0] = 0
        self._table.free.append(self._place)


class StreamTable:
    """The streams of this process. Making a table clears the places of an earlier process.

    Args:
        buffer: STREAMS_SIZE bytes of shared memory; None: private memory.
    """

    def __init__(self, buffer: memoryview | None = None) -> None:
        if buffer is None:
            buffer = memoryview(bytearray(STREAMS_SIZE))
        self.heads, self._texts = _split(buffer)
        for head in self.heads:
            head[0] = 0
        self.free = list(range(NUM_PLACES - 1, -1, -1))
        self._last_number = 0

    def open(self, text: dict[str, str], size: int | None, now: float) -> Stream | None:
        """Add a stream; None: the table is full.

        Args:
            text: its route, file, repository, client and request id; each value is cut to its last
                MAX_TEXT characters.
            size: bytes; None: unknown.
            now: Unix seconds.
        """
        if not self.free:
            return None
        short = {name: value[-MAX_TEXT:] for name, value in text.items()}
        data = json.dumps(short, ensure_ascii=False).encode(errors="backslashreplace")
        if len(data) > _TEXT_SIZE:
            data = b"{}"
        place = self.free.pop()
        self._texts[place][: len(data)] = data
        head = self.heads[place]
        head[1], head[2], head[3] = now, 0, -1 if size is None else size
        head[4], head[5] = Stage.SENDING, len(data)
        self._last_number += 1
        head[0] = self._last_number
        return Stream(self, place)


class StreamReader:
    """Reads the streams of a process, this one or another."""

    def __init__(self, buffer: memoryview) -> None:
        self._heads, self._texts = _split(buffer)

    def read(self) -> Iterable[StreamState]:
        """Yield the current streams."""
        for head, text in zip(self._heads, self._texts, strict=True):
            number, started, sent, size, stage, text_size = head.tolist()[:6]
            if not number:
                continue
            try:
                parts = json.loads(bytes(text[: int(text_size)]))
            except ValueError:
                continue
            if head[0] != number:
                continue
            yield StreamState(
                int(number),
                started,
                int(sent),
                None if size < 0 else int(size),
                Stage(int(stage)),
                parts,
            )

    def read_sent(self) -> dict[int, int]:
        """Return the bytes sent by the number of the stream."""
        return {int(head[0]): int(head[2]) for head in self._heads if head[0]}


def _split(
    buffer: memoryview,
) -> "tuple[list[memoryview[float]], list[memoryview[int]]]":
    starts = range(0, STREAMS_SIZE, _STRIDE)
    heads = [buffer[start : start + _HEAD_SIZE].cast("d") for start in starts]
    texts = [buffer[start + _HEAD_SIZE : start + _STRIDE] for start in starts]
    return heads, texts
