"""A handler whose work is shared out over the turns of the event loop, see net.turns."""

from typing import Protocol

from xetserve.app.middleware.admission import EXEMPT
from xetserve.http.messages import Handler, Request, Response


class Places(Protocol):
    """Places in turns of the loop; made in net, which app does not know."""

    async def take(self, client: str, *, begins: bool) -> None:
        """Wait for a place for a client's work."""
        ...


class TakingTurns:
    """A handler that has another one's work done in turns; what an operator asks for is not made to
    wait.
    """

    def __init__(self, handler: Handler, turns: Places) -> None:
        self._handler = handler
        self._turns = turns

    async def handle(self, request: Request) -> Response:
        """Answer a request."""
        if request.raw_path in EXEMPT:
            return await self._handler(request)
        await self._turns.take(request.client, begins=True)
        response = await self._handler(request)
        if not isinstance(response.body, bytes):
            response.add_observer(_BlockTurns(self._turns, request.client))
        return response


class _BlockTurns:
    """Has a body's blocks take turns; the first one is here already, as a rule."""

    def __init__(self, turns: Places, client: str) -> None:
        self._turns = turns
        self._client = client
        self._num_blocks = 0

    async def before_block(self) -> None:
        if self._num_blocks:
            # A small file ends with its second one.
            await self._turns.take(self._client, begins=self._num_blocks == 1)

    def on_block(self, size: int) -> None:
        self._num_blocks += 1

    def on_end(self) -> None:
        pass
