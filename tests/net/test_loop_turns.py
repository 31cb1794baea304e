"""Places in turns of the loop: so many in each, in rotation."""

import asyncio

import pytest

from tests.peers import turn
from xetserve.net.loop_turns import MAX_PLACES, TARGET, Turns


class Clock:
    """A clock that every piece of work moves on; turns of the loop cost nothing else."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Storm:
    """Work that waits for places, and the order in which it was done."""

    def __init__(self, cost: float = 0.0) -> None:
        self.clock = Clock()
        self.turns = Turns(self.clock)
        self.cost = cost
        self.done: list[str] = []
        self.per_turn: list[int] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, client: str, name: str = "", *, begins: bool = True) -> "asyncio.Task[None]":
        async def work() -> None:
            await self.turns.take(client, begins=begins)
            self.clock.now += self.cost
            self.done.append(name or client)

        task = asyncio.ensure_future(work())
        self._tasks.append(task)
        return task

    async def run(self) -> None:
        """Let the loop turn until all is done."""
        while not all(task.done() for task in self._tasks):
            before = len(self.done)
            await turn()
            self.per_turn.append(len(self.done) - before)


async def test_nobody_waits_while_there_are_places() -> None:
    storm = Storm()
    for number in range(MAX_PLACES):
        storm.start("a", str(number))
    await turn()
    assert len(storm.done) == MAX_PLACES


async def test_a_turn_has_so_many_places() -> None:
    storm = Storm()
    for _ in range(1000):
        storm.start("a")
    await storm.run()
    assert max(storm.per_turn) <= MAX_PLACES
    assert len(storm.per_turn) < 3 * 1000 / MAX_PLACES


@pytest.mark.parametrize("cost", [TARGET / 4, TARGET, 10 * TARGET])
async def test_the_longer_the_work_the_fewer_places(cost: float) -> None:
    storm = Storm(cost)
    for _ in range(300):
        storm.start("a")
    await storm.run()
    assert max(storm.per_turn[20:]) <= max(1, TARGET / cost)
    storm.cost = 0.0
    for _ in range(1000):
        storm.start("a")
    await storm.run()
    assert storm.turns.num_places == MAX_PLACES, "quick work has all of them again"


async def test_one_client_waits_for_one_place_of_each_other_client() -> None:
    storm = Storm()
    for _ in range(1000):
        storm.start("a")
        storm.start("b")
    await turn(2)
    before = len(storm.done)
    await storm.start("c")
    assert len(storm.done) - before <= 3 * MAX_PLACES, "those of the turns that have begun"
    await storm.run()


async def test_what_begins_alternates_with_what_goes_on() -> None:
    storm = Storm()
    storm.turns.num_places = 1
    for number in range(4):
        storm.start("a", f"goes on {number}", begins=False)
    storm.start("a", "begins 0")
    storm.start("a", "begins 1")
    await storm.run()
    assert storm.done == [
        "goes on 0", "begins 0", "goes on 1", "begins 1", "goes on 2", "goes on 3"
    ]  # fmt: skip


async def test_work_that_is_cancelled_takes_no_place() -> None:
    storm = Storm()
    storm.turns.num_places = 1
    tasks = [storm.start("a", str(number)) for number in range(5)]
    await turn()
    for task in tasks[1:4]:
        task.cancel()
    await turn(2)
    assert storm.done == ["0", "4"]
    await turn(3)
    assert storm.turns.num_taken == 0
