"""Event loop turns: limit the work in one turn and share turns fairly among clients.

If a thousand requests arrive at once, a thousand tasks are ready and one turn of the loop runs them
all. A request that needs ten turns, or three for /health, then waits for thousands of other tasks.
Each piece of work therefore takes a place in a turn first. Pieces of work are a TLS handshake, the
parsing of a request's head, the start of a request and the next block of a body.

A turn has as many places as fit into about TARGET seconds; further work waits for a later turn.
Waiting clients get places in rotation. Within one client, new and continued work alternate. Many
downloads of one client thus hardly delay a small request of another.

If no work waits, taking a place costs only a counter.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

TARGET: Final = 0.01  # seconds that a turn of the loop should last at most
MAX_PLACES: Final = 32  # the most places in one turn

_Place = asyncio.Future[None]


class _Line:
    """The queue of places that one client waits for: new work and continued work."""

    def __init__(self) -> None:
        self._kinds: tuple[deque[_Place], deque[_Place]] = (deque(), deque())

    def __bool__(self) -> bool:
        return any(self._kinds)

    def add(self, place: _Place, *, begins: bool) -> None:
        """Append a place to the queue of its kind."""
        self._kinds[not begins].append(place)

    def take(self) -> _Place:
        """Remove and return the next place; the other kind is served next."""
        first, second = self._kinds
        self._kinds = (second, first) if first else (first, second)
        return (first or second).popleft()


class Turns:
    """A scheduler that grants places in turns of the event loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._began = 0.0  # when this turn began
        self._is_counting = False  # whether _begin_turn is scheduled for the next turn
        self.num_places = MAX_PLACES  # places in one turn, adapted to its duration
        self.num_taken = 0  # places taken in this turn

    async def take(self, client: str, *, begins: bool) -> None:
        """Wait for a place in a turn.

        Args:
            client: the key of the client that the work is for.
            begins: whether this is new work, as opposed to continued work.
        """
        if self.num_taken < self.num_places and not self._lines:
            self.num_taken += 1
            self._count()
            return
        place = asyncio.get_running_loop().create_future()
        line = self._lines.get(client)
        if line is None:
            line = self._lines[client] = _Line()
        line.add(place, begins=begins)
        await place  # _begin_turn skips a cancelled place

    def _count(self) -> None:
        if not self._is_counting:
            self._is_counting = True
            self._began = self._clock()
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        """Start a turn: adapt num_places to the last turn's duration and grant places."""
        took = self._clock() - self._began
        if took > TARGET:
            self.num_places = max(1, self.num_places // 2)
        elif self.num_taken >= self.num_places and took < TARGET / 2:
            self.num_places = min(self.num_places + 1, MAX_PLACES)
        self.num_taken = 0
        self._is_counting = False
        while self._lines and self.num_taken < self.num_places:
            client, line = self._lines.popitem(last=False)
            place = line.take()
            if line:
                self._lines[client] = line  # behind all other clients
            if not place.done():
                place.set_result(None)
                self.num_taken += 1
        if self.num_taken:
            self._count()
