"""Body budget: limit the bytes of request bodies that a process holds for all clients together.

A body reserves its largest possible size before it is read. Two half-read bodies therefore never
wait for each other. Clients take turns, and the bodies of one client are served in order. A
complete body returns the bytes that it did not need. It returns the rest when it is released: a
body that is relayed to the Hub is held until the Hub responds.

A client could reserve bytes and then send as slowly as min_body_rate allows. If bodies wait and
nothing becomes free for STALL seconds, the budget refuses the bodies that arrived at less than
SLOW_RATE for at least STALL seconds, or the slowest body if there is none.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from xetserve.errors import RequestError
from xetserve.metrics.catalogue import REQUESTS_REFUSED

DEFAULT_LIMIT: Final = 32 * 1024 * 1024  # bytes
WAIT: Final = 5.0  # seconds for a reservation; clients give up after 10
STALL: Final = 0.5  # seconds
SLOW_RATE: Final = 16 * 1024  # bytes a second


class BodyBudget:
    """A limit on the bytes of request bodies.

    Args:
        limit: bytes. A larger body is refused, because it can never fit.
        wait: seconds that a body waits for its reservation.
        stall: seconds without a release, while bodies wait, after which slow bodies are refused.
    """

    def __init__(
        self, limit: int = DEFAULT_LIMIT, *, wait: float = WAIT, stall: float = STALL
    ) -> None:
        self.limit = limit
        self.held = 0
        self.wait = wait
        self.receiving: set[BodyLease] = set()  # bodies that are being read
        self._stall = stall
        # Client -> waiting reservations and their sizes; the first client has the next turn.
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], int]] = OrderedDict()
        self._num_given = 0  # number of releases
        self._watch: asyncio.TimerHandle | None = None  # while bodies wait

    def __repr__(self) -> str:
        num_waiting = sum(map(len, self._waiting.values()))
        return f"<BodyBudget {self.held} of {self.limit}, {num_waiting} waiting>"

    async def take(self, size: int, client: str = "") -> None:
        """Wait until the budget has room, then reserve size bytes for a client.

        Cancellation: nothing is reserved.
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
        """Release size bytes."""
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
            if not granted.done():  # a cancelled waiter releases its bytes itself, see take
                granted.set_result(None)
        if not self._waiting and self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _leave(self, client: str, granted: asyncio.Future[None]) -> bool:
        """Remove a waiting reservation; return False if it is not waiting any more."""
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
        """Refuse all bodies slower than SLOW_RATE, or the slowest one if there is none."""
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
    """The bytes that the body of one request holds."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.client = ""  # the client key, see connection_count
        self._size = 0
        self._started = 0.0
        # Set while the body is read; refuse makes it expire.
        self._stall_deadline: asyncio.Timeout | None = None
        self.received = 0  # bytes; the reader of the body updates it

    @property
    def limit(self) -> int:
        """Return the most bytes that a body can have."""
        return self._budget.limit

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold size bytes while the caller reads a body.

        Afterwards the lease holds the received bytes, or nothing after a failure.

        Raises:
            RequestError: 503, the reservation took too long, or the body was refused as too slow.
        """
        budget = self._budget
        try:
            async with asyncio.timeout(budget.wait):
                await budget.take(size, self.client)
        except TimeoutError:
            raise _no_room("the server has no memory left for request bodies") from None
        self._size = size
        self.received = 0
        self._started = asyncio.get_running_loop().time()
        budget.receiving.add(self)
        try:
            async with asyncio.timeout(None) as self._stall_deadline:
                yield
        except TimeoutError:
            self.release()
            raise _no_room("the request body arrived too slowly while others waited") from None
        except BaseException:
            self.release()
            raise
        finally:
            self._stall_deadline = None
            budget.receiving.discard(self)
        self._size = self.received
        budget.give(size - self._size)

    def measure_rate(self, now: float) -> float:
        """Return the mean rate of the body in bytes a second."""
        return self.received / max(self.measure_age(now), 0.001)

    def measure_age(self, now: float) -> float:
        """Return the seconds since the body began to be read."""
        return now - self._started

    def refuse(self) -> None:
        """End the reading of the body; its hold raises RequestError."""
        if self._stall_deadline is not None and not self._stall_deadline.expired():
            self._stall_deadline.reschedule(0.0)

    def release(self) -> None:
        """Release all bytes of the lease."""
        size, self._size = self._size, 0
        self._budget.give(size)


def _no_room(reason: str) -> RequestError:
    REQUESTS_REFUSED.add("bodies")
    return RequestError(503, f"{reason}: try again", [("Retry-After", "1")])
