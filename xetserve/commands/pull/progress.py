"""How far something is: a line that is drawn again and again on a terminal, lines one below the
other elsewhere.
"""

import shutil
import time
from collections.abc import Callable
from typing import Final, TextIO

DRAW_INTERVAL: Final = 0.1  # seconds
RATE_SPAN: Final = 5.0  # seconds that the rate shown is taken over, about

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def format_size(size: float) -> str:
    """Write a number of bytes, with decimal units."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def format_seconds(seconds: float) -> str:
    """Write a time, to the second, or to the minute if it is long."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole // 60 % 60:02d}m"


def show(text: str) -> str:
    """Give text that others have chosen as it is, but for what could steer a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


class Progress:
    """Counts things and bytes that are done.

    Args:
        what: how the things are called; empty: they are not counted.
        num, size: of all; 0: not known.
        stream: where it is shown.
    """

    def __init__(
        self,
        what: str,
        num: int,
        size: int,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_done = 0
        self.size_done = 0
        self._what = what
        self._num = num
        self._size = size
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._drawn = ""
        self._last = self._mark = self._start = clock()
        self._mark_size = 0
        self._rate = 0.0  # bytes a second

    def add(self, size: int) -> None:
        """Count bytes; a part that turns out to be for nothing is taken back with a negative
        number.
        """
        self.size_done += size
        now = self._clock()
        if now - self._last >= DRAW_INTERVAL:
            self._last = now
            self._measure(now)
            self._draw()

    def finish(self, text: str) -> None:
        """Count a thing that is done, and say so where lines stay."""
        self.num_done += 1
        if not self._is_terminal:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        else:
            self._draw()

    def say(self, text: str) -> None:
        """Say something that is to stay."""
        self._clear()
        self._stream.write(f"{text}\n")
        self._draw()

    def close(self) -> None:
        """Take the line away."""
        self._clear()
        self._stream.flush()

    def _measure(self, now: float) -> None:
        passed = now - self._mark
        if passed >= RATE_SPAN / 10:
            latest = (self.size_done - self._mark_size) / passed
            weight = min(1.0, passed / min(RATE_SPAN, now - self._start))
            self._rate += (latest - self._rate) * weight
            self._mark, self._mark_size = now, self.size_done

    def describe(self) -> str:
        """Return how far it is: things, bytes, rate, and the time that the rest will take."""
        of_num = f"/{self._num}" if self._num else ""
        of_size = f" of {format_size(self._size)}" if self._size else ""
        parts = [f"{self.num_done}{of_num} {self._what}"] if self._what else []
        parts += [
            f"{format_size(self.size_done)}{of_size}",
            f"{format_size(self._rate)}/s",
        ]
        left = self._size - self.size_done
        if self._rate > 0 and left > 0:
            parts.append(f"{format_seconds(left / self._rate)} left")
        return ", ".join(parts)

    def _draw(self) -> None:
        if not self._is_terminal:
            return
        width = shutil.get_terminal_size().columns - 1
        line = self.describe()
        if self._size and width > len(line) + 24:
            filled = min(20, 20 * self.size_done // self._size)
            line = f"[{'#' * filled:.<20}] {line}"
        line = line[:width]
        self._stream.write(f"\r{line:<{len(self._drawn)}}")
        self._stream.flush()
        self._drawn = line

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write(f"\r{'':{len(self._drawn)}}\r")
            self._drawn = ""
