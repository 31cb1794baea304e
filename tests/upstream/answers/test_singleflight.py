"""Equal questions at the same time."""

import asyncio

import pytest

from tests.peers import turn
from tests.waiting import until
from xetserve.errors import UpstreamError
from xetserve.upstream.answers.singleflight import AT_ONCE, SingleFlight


class Oracle:
    """Answers when it is told to, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.num_cancelled = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self) -> int:
        self.count += 1
        count = self.count
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return count


async def test_equal_questions_are_one() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    oracle = Oracle()
    tasks = [asyncio.ensure_future(flights.share("a", oracle.ask)) for _ in range(5)]
    await until(lambda: oracle.count == 1)
    other = asyncio.ensure_future(flights.share("b", oracle.ask))
    await until(lambda: oracle.count == 2)
    oracle.gate.set()
    assert await asyncio.gather(*tasks, other) == [1, 1, 1, 1, 1, 2]
    assert len(flights) == 0
    assert await flights.share("a", oracle.ask) == 3


@pytest.mark.parametrize("error", [None, UpstreamError("no")], ids=["answer", "failure"])
async def test_so_many_of_those_that_wait_go_on_in_a_turn(error: Exception | None) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    oracle = Oracle()
    oracle.error = error
    tasks = [asyncio.ensure_future(flights.share("a", oracle.ask)) for _ in range(10 * AT_ONCE)]
    await until(lambda: oracle.count == 1)
    oracle.gate.set()
    per_turn, before = [], 0
    while before < len(tasks):
        await turn()
        done = sum(task.done() for task in tasks)
        per_turn.append(done - before)
        before = done
    assert max(per_turn) == AT_ONCE
    assert [task.exception() for task in tasks] == [error] * len(tasks)


async def test_a_failure_is_everybodys() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    oracle = Oracle()
    oracle.error = UpstreamError("no")
    oracle.gate.set()
    found = await asyncio.gather(
        *(flights.share("a", oracle.ask) for _ in range(3)), return_exceptions=True
    )
    assert found == [oracle.error] * 3
    assert (oracle.count, len(flights)) == (1, 0)


@pytest.mark.parametrize("leaving", [0, 1], ids=["the first", "a later one"])
async def test_who_leaves_does_not_take_it_along(leaving: int) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    oracle = Oracle()
    tasks = [asyncio.ensure_future(flights.share("a", oracle.ask)) for _ in range(2)]
    await until(lambda: oracle.count == 1)
    tasks[leaving].cancel()
    await turn(3)
    assert oracle.num_cancelled == 0
    oracle.gate.set()
    assert await tasks[1 - leaving] == 1
    assert tasks[leaving].cancelled()


async def test_the_last_one_takes_it_along() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    oracle = Oracle()
    tasks = [asyncio.ensure_future(flights.share("a", oracle.ask)) for _ in range(2)]
    await until(lambda: oracle.count == 1)
    for task in tasks:
        task.cancel()
    await until(lambda: oracle.num_cancelled == 1)
    assert len(flights) == 0
    oracle.gate.set()
    assert await flights.share("a", oracle.ask) == 2
