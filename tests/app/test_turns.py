"""Places in turns of the loop: so many in each, in rotation, and none for whoever is exempt."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.peers import turn
from xetserve.app.turns import MAX_PLACES, TARGET, TakingTurns, Turns
from xetserve.http.messages import Block, Request, Response


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


class Blocks:
    """A body of some blocks."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return [b"x"]

    async def aclose(self) -> None:
        self.is_closed = True


class Recording(Turns):
    """Notes who asks for a place; everybody gets one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, bool]] = []

    async def take(self, client: str, *, begins: bool) -> None:
        self.asked.append((client, begins))


async def test_each_block_but_the_first_takes_a_place_and_the_body_is_closed() -> None:
    body = Blocks(3)

    async def handler(request: Request) -> Response:
        return Response(200, [], body)

    turns = Recording()
    response = await TakingTurns(handler, turns).handle(Request("GET", "/x", client="a"))
    assert turns.asked == [("a", True)]
    assert not isinstance(response.body, bytes)
    assert [block async for block in response.body] == [[b"x"]] * 3
    assert turns.asked == [("a", True), ("a", True), ("a", False), ("a", False)]
    await response.body.aclose()  # type: ignore[attr-defined]
    assert body.is_closed


@pytest.mark.parametrize(("path", "num_places"), [("/download/o/n/f", 1), ("/health", 0)])
async def test_what_an_operator_asks_for_takes_none(path: str, num_places: int) -> None:
    async def handler(request: Request) -> Response:
        return Response(200)

    turns = Recording()
    await TakingTurns(handler, turns).handle(Request("GET", path))
    assert len(turns.asked) == num_places
