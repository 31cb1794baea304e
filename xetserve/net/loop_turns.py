"""Who works in which turn of the event loop: some in each, and clients one by one.

A thousand requests that come at the same moment are a thousand tasks that are ready: a turn of the
loop runs all of them, and whoever needs ten turns for an answer, or three for /health, waits for
ten thousand pieces of work. So a piece of work takes a place in a turn first: a TLS handshake, the
reading of a request's head, its beginning, a body's next block. A turn has as many places as make
it last about TARGET; the others wait. Clients have places in rotation, and of one client's work,
what begins and what goes on alternate: many downloads of one hardly delay another one's small
request.

While nobody has to wait, this costs a counter.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

TARGET: Final = 0.01  # seconds that a turn of the loop should last at most
MAX_PLACES: Final = 32  # of a turn

_Place = asyncio.Future[None]


class _Line:
    """The places that one client waits for."""

    def __init__(self) -> None:
        self._kinds: tuple[deque[_Place], deque[_Place]] = (deque(), deque())

    def __bool__(self) -> bool:
        return any(self._kinds)

    def add(self, place: _Place, *, begins: bool) -> None:
        """Wait behind those of a kind."""
        self._kinds[not begins].append(place)

    def take(self) -> _Place:
        """Return the next one; the other kind is next then."""
        first, second = self._kinds
        self._kinds = (second, first) if first else (first, second)
        return (first or second).popleft()


class Turns:
    """Gives places in turns of the loop.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._began = 0.0  # when the turn did
        self._is_counting = False  # this turn; the next one will be told of it
        self.num_places = MAX_PLACES  # of a turn, as it turns out
        self.num_taken = 0  # in this turn

    async def take(self, client: str, *, begins: bool) -> None:
        """Wait for a place in a turn.

        Args:
            client: whose work it is.
            begins: it is the beginning of something.
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
        await place  # who is cancelled is passed over when it is its turn

    def _count(self) -> None:
        if not self._is_counting:
            self._is_counting = True
            self._began = self._clock()
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        """Give the places of a new turn, as many as the last one had time for."""
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
                self._lines[client] = line  # behind all others
            if not place.done():
                place.set_result(None)
                self.num_taken += 1
        if self.num_taken:
            self._count()
