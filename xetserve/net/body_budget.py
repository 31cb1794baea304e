"""How many bytes of request bodies a process holds at once, from all clients together.

A body takes what it may come to hold before it is read, so that none ever waits half read for room
that other half-read ones have. Clients have their turns in rotation, and what comes first of one
goes first. What it did not need is given back when it is complete, the rest when nobody needs it
any more: what is passed on to the Hub is held until the Hub answers.

A client could take room and then send as little as min_body_rate allows. So, if nothing becomes
free for STALL seconds while bodies wait, those that came at less than SLOW_RATE for as long are
refused in their favour, or else the slowest.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from xetserve.errors import RequestError
from xetserve.metrics.catalogue import REQUESTS_REFUSED

DEFAULT_LIMIT: Final = 32 * 1024 * 1024  # bytes
WAIT: Final = 5.0  # seconds for room; clients give up after 10
STALL: Final = 0.5  # seconds
SLOW_RATE: Final = 16 * 1024  # bytes a second


class BodyBudget:
    """A ceiling on the bytes of request bodies.

    Args:
        limit: bytes. A larger body is refused: it can never fit.
        wait: seconds that a body waits for room.
        stall: seconds in which something has to become free while bodies wait.
    """

    def __init__(
        self, limit: int = DEFAULT_LIMIT, *, wait: float = WAIT, stall: float = STALL
    ) -> None:
        self.limit = limit
        self.held = 0
        self.wait = wait
        self.receiving: set[BodyLease] = set()  # those that are being read
        self._stall = stall
        # By client, whoever has its turn first: the sizes that wait.
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], int]] = OrderedDict()
        self._num_given = 0  # times that something has become free
        self._watch: asyncio.TimerHandle | None = None  # while bodies wait

    def __repr__(self) -> str:
        num_waiting = sum(map(len, self._waiting.values()))
        return f"<BodyBudget {self.held} of {self.limit}, {num_waiting} waiting>"

    async def take(self, size: int, client: str = "") -> None:
        """Hold size bytes more of a client's, once there is room for them.

        Cancellation: they are not held.
        """
        if self.held + size <= self.limit and not (self._waiting and size):
            self.held += size
            return
        loop = asyncio.get_running_loop()
        granted = loop.create_future()
        self._waiting.setdefault(client, OrderedDict())[granted] = size
        if self._watch is None:
            self._watch = loop.call_later(self._stall, self._on_stall, self._num_given)
        try:
            await granted
        except asyncio.CancelledError:
            if self._leave(client, granted):
                self._grant()
            else:
                self.give(size)
            raise

    def give(self, size: int) -> None:
        """Hold size bytes less."""
        if size:
            self.held -= size
            self._num_given += 1
            self._grant()

    def _grant(self) -> None:
        while self._waiting:
            client, line = next(iter(self._waiting.items()))
            granted, size = next(iter(line.items()))
            if self.held + size > self.limit:
                break
            self._leave(client, granted)
            if line:
                self._waiting.move_to_end(client)
            self.held += size
            if not granted.done():  # it is being cancelled, and gives the room back
                granted.set_result(None)
        if not self._waiting and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _leave(self, client: str, granted: asyncio.Future[None]) -> bool:
        """Take somebody out of its line; False: it was not there any more."""
        line = self._waiting.get(client)
        if line is None or line.pop(granted, None) is None:
            return False
        if not line:
            del self._waiting[client]
        return True

    def _on_stall(self, num_given: int) -> None:
        loop = asyncio.get_running_loop()
        if num_given == self._num_given:
            self.refuse_slow(loop.time())
        self._watch = loop.call_later(self._stall, self._on_stall, self._num_given)

    def refuse_slow(self, now: float) -> None:
        """Refuse bodies that keep others waiting: all that hardly come, or else the slowest one."""
        rates = {
            lease: lease.measure_rate(now)
            for lease in self.receiving
            if lease.measure_age(now) >= self._stall
        }
        if rates:
            least = min(rates.values())
            for lease, rate in rates.items():
                if rate <= max(least, SLOW_RATE):
                    lease.refuse()


class BodyLease:
    """What the body of one request holds."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.client = ""  # whose it is
        self._size = 0
        self._started = 0.0
        self._stall_deadline: asyncio.Timeout | None = (
            None  # while it is read; it expires when it is refused
        )
        self.received = 0  # bytes; whoever reads the body says so

    @property
    def limit(self) -> int:
        """Bytes that a body can have at most."""
        return self._budget.limit

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold size bytes while a body is read; afterwards, what was received, or nothing after a
        failure.

        Raises:
            RequestError: 503, there was no room in time, or none for a body that comes so slowly.
        """
        budget = self._budget
        try:
            async with asyncio.timeout(budget.wait):
                await budget.take(size, self.client)
        except TimeoutError:
            raise _no_room("the server holds as many bytes of requests as it may") from None
        self._size = size
        self.received = 0
        self._started = asyncio.get_running_loop().time()
        budget.receiving.add(self)
        try:
            async with asyncio.timeout(None) as self._stall_deadline:
                yield
        except TimeoutError:
            self.release()
            raise _no_room("the request body came slowly, and others waited") from None
        except BaseException:
            self.release()
            raise
        finally:
            self._stall_deadline = None
            budget.receiving.discard(self)
        self._size = self.received
        budget.give(size - self._size)

    def measure_rate(self, now: float) -> float:
        """Return the bytes a second that the body has come at."""
        return self.received / max(self.measure_age(now), 0.001)

    def measure_age(self, now: float) -> float:
        """Return the seconds since the reading of the body began."""
        return now - self._started

    def refuse(self) -> None:
        """End the reading of the body."""
        if self._stall_deadline is not None and not self._stall_deadline.expired():
            self._stall_deadline.reschedule(0.0)

    def release(self) -> None:
        """Hold nothing any more."""
        size, self._size = self._size, 0
        self._budget.give(size)


def _no_room(reason: str) -> RequestError:
    REQUESTS_REFUSED.add("bodies")
    return RequestError(503, f"{reason}: try again", [("Retry-After", "1")])
