"""Planning windows ahead of a reader, with as many questions to the CAS under way as its pace asks for.

A window that is asked for once the one before it is planned starts exactly where that one ends, at a chunk. When the CAS is
too slow for that, windows are asked for in advance at round positions; the chunk that lies across such a
position then comes with both windows, and the later one skips it.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from xetserve.errors import IntegrityError, RangeUnsatisfiable
from xetserve.pipeline.pacing import Pacer
from xetserve.pipeline.plan import WindowPlan, make_plan
from xetserve.pipeline.tickets import FileTraffic
from xetserve.xet.reconstruction import ByteRange, Reconstruction

MAX_QUESTIONS: Final = 8  # to the CAS, under way for one reader

Ask = Callable[[ByteRange], Awaitable[Reconstruction]]


class Planner:
    """Plans one range of one file. Positions are decoded bytes.

    Args:
        ask: asks the CAS about a range of the file.
        end: where to stop; None: at the end of the file, wherever that is.
        wants_more: tells whether to plan further, given the bytes that are being asked for.
        add_window: takes the next window.
    """

    def __init__(
        self,
        ask: Ask,
        pacer: Pacer,
        traffic: FileTraffic,
        *,
        start: int,
        end: int | None,
        wants_more: Callable[[int], bool],
        add_window: Callable[[WindowPlan], None],
    ) -> None:
        self._ask = ask
        self._pacer = pacer
        self._traffic = traffic
        self._position = start  # up to here all is planned
        self._asked_end = start  # where the last window was asked to end; it may have ended later
        self._end = end
        self._wants_more = wants_more
        self._add_window = add_window
        self._questions: deque[tuple[ByteRange, asyncio.Task[Reconstruction]]] = deque()
        self._room: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Look again whether more is wanted; called for every block, so it has to be cheap."""
        if self._room is not None and not self._room.done() and self._wants_question():
            self._room.set_result(None)

    def _wants_question(self) -> bool:
        """Tell whether to ask one more question. The first is always right, the others are guesses."""
        depth = self._pacer.ahead_limit // self._pacer.window_size
        if len(self._questions) >= max(1, min(depth, MAX_QUESTIONS)):
            return False
        last = self._questions[-1][0].end if self._questions else self._position
        return not self._is_at_end(last) and self._wants_more(
            sum(asked.size for asked, _ in self._questions)
        )

    async def run(self) -> None:
        """Plan up to the end.

        Raises:
            UpstreamError: the CAS fails for good.
            IntegrityError: its answers do not make the range.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._ask_ahead(loop)
                if not self._questions and self._is_at_end(self._position):
                    return
                self._room = loop.create_future()
                waited: set[asyncio.Future[object]] = {self._room}  # type: ignore[arg-type]
                if self._questions:
                    waited.add(self._questions[0][1])  # type: ignore[arg-type]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                while self._questions and self._questions[0][1].done():
                    if not self._take_answer(*self._questions.popleft()):
                        return
        finally:
            for _, question in self._questions:
                question.cancel()

    def _is_at_end(self, position: int) -> bool:
        return self._end is not None and position >= self._end

    def _ask_ahead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask as many questions as the pace asks for."""
        while self._wants_question():
            start = self._questions[-1][0].end if self._questions else self._choose_start()
            asked = self._choose_range(start)
            question = loop.create_task(self._answer(asked))
            # A guess past the end of the file fails, and nobody may ever look at it.
            question.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._questions.append((asked, question))

    async def _answer(self, asked: ByteRange) -> Reconstruction:
        return await self._ask(asked)

    def _choose_start(self) -> int:
        """Start where all is planned up to; or a little before, where somebody else's window starts."""
        if self._traffic.find_window(self._position) is None and (
            self._traffic.find_window(self._asked_end) is not None
        ):
            return self._asked_end
        return self._position

    def _choose_range(self, start: int) -> ByteRange:
        """Choose a window: somebody else's, if that one is not too large for us, or one on a grid."""
        size, end = self._pacer.window_size, self._end
        known = self._traffic.find_window(start)
        if known is not None and known - start <= 4 * size and (end is None or known <= end):
            return ByteRange(start, known)
        wanted = (start // size + 1) * size
        if end is not None and wanted + size // 4 >= end:
            wanted = end
        return ByteRange(start, wanted)

    def _take_answer(self, asked: ByteRange, question: "asyncio.Task[Reconstruction]") -> bool:
        """Add the window of an answer; False: the file has ended."""
        try:
            answer = question.result()
        except RangeUnsatisfiable:
            if self._end is None:
                return False
            raise IntegrityError(f"the file ends before byte {asked.start + 1}") from None
        self._asked_end = asked.end
        plan = make_plan(answer, asked, self._end, start=self._position)
        if plan.file_range.size > 0:
            self._position = plan.file_range.end
            self._add_window(plan)
        is_cut = asked.start + answer.decoded_size < asked.end
        return not (self._end is None and is_cut)
