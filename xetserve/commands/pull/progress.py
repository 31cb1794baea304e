"""Progress display: one line that is redrawn on a terminal, or separate lines elsewhere."""

import shutil
import time
from collections.abc import Callable
from typing import Final, TextIO

from xetserve.base.sizes import format_size

DRAW_INTERVAL: Final = 0.1  # seconds
RATE_SPAN: Final = 5.0  # seconds; time constant of the mean rate that is shown


def format_seconds(seconds: float) -> str:
    """Return a duration as text, rounded to seconds, or to minutes if it is long."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole // 60 % 60:02d}m"


def show(text: str) -> str:
    """Return text from another party without characters that could control a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


class Progress:
    """A progress display that counts items and bytes.

    Args:
        what: the name of the items; empty: count only bytes.
        num, size: the total of items and bytes; 0: unknown.
        stream: the stream to draw on.
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
        """Add bytes to the count; a negative size removes bytes that did not count after all."""
        self.size_done += size
        now = self._clock()
        if now - self._last >= DRAW_INTERVAL:
            self._last = now
            self._measure(now)
            self._draw()

    def finish(self, text: str) -> None:
        """Count a finished item; print the text unless the stream is a terminal."""
        self.num_done += 1
        if not self._is_terminal:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        else:
            self._draw()

    def print_line(self, text: str) -> None:
        """Print a line that stays on the terminal."""
        self._clear()
        self._stream.write(f"{text}\n")
        self._draw()

    def close(self) -> None:
        """Erase the progress line."""
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
        """Return the progress as text: items, bytes, rate and remaining time."""
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
