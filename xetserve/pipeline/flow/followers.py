"""Which responses read one file at the same time, and how far they are: who follows whom."""

from bisect import bisect_left, insort
from typing import Final

CLOSE_BEHIND: Final = (
    128 * 1024 * 1024
)  # decoded bytes within which a follower is worth waiting for


class FileTraffic:
    """Who reads one file, and where. Positions are decoded bytes.

    A position is where a reader's current window starts; just before it, if the reader has no
    leases for it yet.
    """

    def __init__(self) -> None:
        self._positions: list[int] = []  # sorted
        self._windows: dict[int, list[int]] = {}  # start of a window: asked ends

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads the file."""
        return not self._positions

    @property
    def is_alone(self) -> bool:
        """Whether only one reads it."""
        return len(self._positions) == 1

    def add_reader(self, position: int) -> None:
        """Tell that a reader has begun."""
        insort(self._positions, position)

    def remove_reader(self, position: int) -> None:
        """Tell that the reader at a position has ended."""
        del self._positions[bisect_left(self._positions, position)]

    def move_reader(self, position: int, to: int) -> None:
        """Tell that the reader at a position has gone on."""
        self.remove_reader(position)
        self.add_reader(to)

    def is_followed(self, position: int) -> bool:
        """Return whether a reader comes close behind a window that starts at position."""
        at = bisect_left(self._positions, position - CLOSE_BEHIND)
        return at < len(self._positions) and self._positions[at] < position

    def add_window(self, start: int, asked_end: int) -> None:
        """Tell that a window is planned."""
        self._windows.setdefault(start, []).append(asked_end)

    def remove_window(self, start: int, asked_end: int) -> None:
        """Tell that it is done."""
        ends = self._windows[start]
        ends.remove(asked_end)
        if not ends:
            del self._windows[start]

    def find_window(self, start: int) -> int | None:
        """Return the asked end of somebody's window that starts here."""
        ends = self._windows.get(start)
        return ends[-1] if ends else None
