"""Track which responses read one file at the same time, and at which positions."""

from bisect import bisect_left, insort
from typing import Final

CLOSE_BEHIND: Final = 128 * 1024 * 1024  # decoded bytes; data is kept for a reader this close


class FileTraffic:
    """The readers of one file. Positions are decoded bytes.

    The position of a reader is the start of its current window, or one byte before it while the
    reader has no leases for this window.
    """

    def __init__(self) -> None:
        self._positions: list[int] = []  # sorted
        self._windows: dict[int, list[int]] = {}  # start of a window -> asked ends

    @property
    def is_idle(self) -> bool:
        """Whether the file has no reader."""
        return not self._positions

    @property
    def is_alone(self) -> bool:
        """Whether the file has one reader."""
        return len(self._positions) == 1

    def add_reader(self, position: int) -> None:
        """Add a reader at a position."""
        insort(self._positions, position)

    def remove_reader(self, position: int) -> None:
        """Remove the reader at a position."""
        del self._positions[bisect_left(self._positions, position)]

    def move_reader(self, position: int, to: int) -> None:
        """Move the reader at a position to another one."""
        self.remove_reader(position)
        self.add_reader(to)

    def is_followed(self, position: int) -> bool:
        """Return whether a reader is close behind a window that starts at position."""
        at = bisect_left(self._positions, position - CLOSE_BEHIND)
        return at < len(self._positions) and self._positions[at] < position

    def add_window(self, start: int, asked_end: int) -> None:
        """Add a planned window."""
        self._windows.setdefault(start, []).append(asked_end)

    def remove_window(self, start: int, asked_end: int) -> None:
        """Remove a window that has been read or dropped."""
        ends = self._windows[start]
        ends.remove(asked_end)
        if not ends:
            del self._windows[start]

    def find_window(self, start: int) -> int | None:
        """Return the asked end of a window that starts here; None if there is none."""
        ends = self._windows.get(start)
        return ends[-1] if ends else None
