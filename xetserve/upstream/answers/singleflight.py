"""Equal questions at the same time become one: later callers wait for the first answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

logger = logging.getLogger(__name__)

AT_ONCE: Final = 16  # callers that go on in one turn of the event loop

K = TypeVar("K")
T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self, task: "asyncio.Task[T]") -> None:
        self.task = task
        self.num_waiting = 0
        self.num_told = 0


class SingleFlight(Generic[K, T]):
    """The questions that are being asked now, by key."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    async def share(self, key: K, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the result of ask; if the same question is being asked already, its answer or
        failure.

        A thousand callers that wait for one answer would all go on in one turn of the loop and
        delay everything else. So they go on a few at a time.

        Cancellation: the other callers still get their answer. The question is cancelled with its
        last
            caller.
        """

        async def run() -> T:
            return await ask()

        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.get_running_loop().create_task(run()))
            flight.task.add_done_callback(lambda task: self._end(key, task))
        else:
            logger.debug("another request asks the same: waiting for its answer")
        flight.num_waiting += 1
        try:
            await asyncio.wait((flight.task,))
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting and not flight.task.done():
                flight.task.cancel()
                self._end(key, flight.task)
        num_before = flight.num_told
        flight.num_told += 1
        for _ in range(num_before // AT_ONCE):
            await asyncio.sleep(0)
        return flight.task.result()

    def _end(self, key: K, task: "asyncio.Task[T]") -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.task is task:
            del self._flights[key]
        if task.done() and not task.cancelled():
            task.exception()  # marks it as seen: no caller may be left
