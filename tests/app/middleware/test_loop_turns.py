"""What of a request's work takes a place in a turn."""

from collections.abc import AsyncIterator

import pytest

from tests.bodies import iter_blocks
from xetserve.app.middleware.loop_turns import TakingTurns
from xetserve.http.messages import Block, Request, Response


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


class Recording:
    """Notes who asks for a place; everybody gets one."""

    def __init__(self) -> None:
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
    assert [block async for block in iter_blocks(response)] == [[b"x"]] * 3
    assert turns.asked == [("a", True), ("a", True), ("a", False), ("a", False)]
    await response.aclose()
    assert body.is_closed


@pytest.mark.parametrize(("path", "num_places"), [("/download/o/n/f", 1), ("/health", 0)])
async def test_what_an_operator_asks_for_takes_none(path: str, num_places: int) -> None:
    async def handler(request: Request) -> Response:
        return Response(200)

    turns = Recording()
    await TakingTurns(handler, turns).handle(Request("GET", path))
    assert len(turns.asked) == num_places
