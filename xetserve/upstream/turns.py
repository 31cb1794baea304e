"""Long work on what an upstream sent, in turns: in between, the event loop serves others."""

import asyncio
from typing import Final

TURN_SIZE: Final = 1024 * 1024  # bytes made in one turn: some milliseconds
STEP_COST: Final = (
    1024  # bytes that could be made in the time that a step takes, however little it makes
)


class Turns:
    """Counts the work of a task since it last let others run."""

    def __init__(self) -> None:
        self._done = 0

    async def add(self, size: int) -> None:
        """Count a step that made size bytes; let others run when it is their turn."""
        self._done += size + STEP_COST
        if self._done >= TURN_SIZE:
            self._done = 0
            await asyncio.sleep(0)
