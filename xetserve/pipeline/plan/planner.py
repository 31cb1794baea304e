"""Plan windows ahead of a reader.

A window is one range of the file, planned from one answer of the CAS. Normally, the planner asks
for a window once the previous one is planned, so that it starts where that one ends, at a chunk.
When the CAS is too slow for that, the planner sends several questions at once, for windows between
round positions. A chunk that lies across such a position is part of both windows; the later one
skips it.

The planner also asks for the terms far ahead (a survey), to find chunks that are used again
(chunk_reuse.py). A window then ends where a run of kept chunks begins: a fetch range that the CAS
made for both sides would have to be fetched as a whole. A window of kept chunks is planned without
asking the CAS again.

Some CAS servers ignore the end of a range and describe the file up to its end. The terms behind the
window are kept, if the budget has room, and the next window is planned from them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from xetserve.base.waiters import wake
from xetserve.errors import IntegrityError, RangeUnsatisfiable, XetserveError
from xetserve.pipeline.flow.followers import FileTraffic
from xetserve.pipeline.flow.pacing import Pacer
from xetserve.pipeline.plan.chunk_reuse import HORIZON, SURVEY_SIZE
from xetserve.pipeline.plan.kept_chunks import KeptChunks
from xetserve.pipeline.plan.window_plan import WindowPlan, make_kept_plan, make_plan
from xetserve.upstream.cas.reconstruction_budget import estimate_size
from xetserve.xet.reconstruction import ByteRange, Reconstruction

logger = logging.getLogger(__name__)

MAX_QUESTIONS: Final = 8  # to the CAS, pending for one reader
MIN_SURVEYED: Final = 8 * 1024 * 1024  # decoded bytes; for a shorter rest there is no survey

Ask = Callable[[ByteRange], Awaitable[Reconstruction]]


class _Question(NamedTuple):
    """A pending question about a window.

    task: asks the CAS. None for a window of kept chunks, which has its plan already.
    """

    asked: ByteRange
    task: asyncio.Task[Reconstruction] | None
    plan: WindowPlan | None

    @property
    def is_answered(self) -> bool:
        return self.task is None or self.task.done()


class _Rest(NamedTuple):
    """The terms of an answer that lie behind its window.

    place: their range in the file, decoded positions.
    answer: with these terms alone.
    asked: the range that the CAS was asked for.
    """

    place: ByteRange
    answer: Reconstruction
    asked: ByteRange


class Planner:
    """Plans the windows of one range of one file. Positions are decoded bytes.

    Args:
        ask: asks the CAS for the reconstruction of a range.
        kept: the chunks that the response keeps; surveys are added to it.
        start: where the range starts.
        end: where the range ends; None if the size of the file is not known.
        wants_more: returns whether to plan further, given the decoded bytes of pending questions.
        add_window: called with each window, in file order.
    """

    def __init__(
        self,
        ask: Ask,
        pacer: Pacer,
        traffic: FileTraffic,
        kept: KeptChunks,
        *,
        start: int,
        end: int | None,
        wants_more: Callable[[int], bool],
        add_window: Callable[[WindowPlan], None],
    ) -> None:
        self._ask = ask
        self._pacer = pacer
        self._traffic = traffic
        self._kept = kept
        self._reuse = kept.reuse
        self._start = start
        self._position = start  # windows are planned up to here
        self._asked_end = start  # the asked end of the last window, which may have ended later
        self._end = end
        self._wants_more = wants_more
        self._add_window = add_window
        self._questions: deque[_Question] = deque()
        self._rest: _Rest | None = None
        self._survey: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Plan further if more is wanted now. It is called for every block, so it is cheap."""
        if self._waiter is not None and not self._waiter.done() and self._wants_question():
            self._waiter.set_result(None)

    def _wants_question(self) -> bool:
        """Return whether to ask one more question.

        Only the first one has the right start for sure; the others guess where windows end.
        """
        depth = self._pacer.ahead_limit // self._pacer.window_size if self._rest is None else 1
        if len(self._questions) >= max(1, min(depth, MAX_QUESTIONS)):
            return False
        return not self._is_at_end(self._planned) and self._wants_more(
            sum(question.asked.size for question in self._questions)
        )

    @property
    def _planned(self) -> int:
        """The position up to which windows are planned or asked for."""
        return self._questions[-1].asked.end if self._questions else self._position

    async def run(self) -> None:
        """Plan windows up to the end of the range.

        Raises:
            UpstreamError: the CAS has failed, also after retries.
            IntegrityError: the answers of the CAS do not cover the range.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._ask_ahead(loop)
                while self._questions and self._questions[0].is_answered:
                    if not self._take_answer(self._questions.popleft()):
                        return
                    self._ask_ahead(loop)
                if not self._questions and self._is_at_end(self._position):
                    return
                self._start_survey(loop)
                self._waiter = loop.create_future()
                waited: set[asyncio.Future[object]] = {self._waiter}  # type: ignore[arg-type]
                if self._questions and self._questions[0].task is not None:
                    waited.add(self._questions[0].task)  # type: ignore[arg-type]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._drop_questions()
            if self._survey is not None:
                self._survey.cancel()

    def _drop_questions(self) -> None:
        for question in self._questions:
            if question.task is not None:
                question.task.cancel()
        self._questions.clear()

    def _is_at_end(self, position: int) -> bool:
        return self._end is not None and position >= self._end

    # Surveys.

    def _start_survey(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start a survey: the first one after the first window, the next ones as the reader moves
        on.
        """
        start = self._reuse.known_end
        if start is None:
            start = self._position
            if start == self._start or (self._end is not None and self._end - start < MIN_SURVEYED):
                return
        if self._survey is not None or self._is_at_end(start) or start >= self._position + HORIZON:
            return
        if self._reuse.is_full:
            return
        self._survey = loop.create_task(self._run_survey(start))

    async def _run_survey(self, start: int) -> None:
        end = start + SURVEY_SIZE if self._end is None else min(start + SURVEY_SIZE, self._end)
        try:
            answer = await self._ask(ByteRange(start, end))
        except XetserveError as exc:
            # The file ends here, or the CAS failed. Go on with the terms that are known.
            logger.debug("no survey from byte %d on: %s", start, exc)
            return
        self._kept.learn(answer, start, planned=self._planned)
        if self._reuse.known_end == start:
            return  # no term was added, and none would be the next time
        self._survey = None
        wake(self._waiter)  # for the next survey

    # Windows.

    def _ask_ahead(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask as many questions as the pace needs."""
        while self._wants_question():
            start = self._planned if self._questions else self._choose_start()
            if run := self._reuse.find_run(start, start + self._pacer.window_size):
                plan = make_kept_plan(run, self._end)
                self._questions.append(_Question(plan.file_range, None, plan))
                continue
            asked = self._choose_range(start)
            task = loop.create_task(self._answer(asked))
            # A guess past the end of the file fails, and its task may never be awaited.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._questions.append(_Question(asked, task, None))

    async def _answer(self, asked: ByteRange) -> Reconstruction:
        rest = self._rest
        if rest is not None and rest.place.start == asked.start:
            return rest.answer
        return await self._ask(asked)

    def _choose_start(self) -> int:
        """Return where the next window starts.

        That is the end of the last one; or its asked end, a little before, if another reader has a
        window there, whose fetches can be shared.
        """
        if self._traffic.find_window(self._position) is None and (
            self._traffic.find_window(self._asked_end) is not None
        ):
            return self._asked_end
        return self._position

    def _choose_range(self, start: int) -> ByteRange:
        """Return the range to ask for: a window of another reader unless it is too large for this
        one, or else up to the next multiple of the window size.
        """
        size, end = self._pacer.window_size, self._end
        known = self._traffic.find_window(start)
        if known is not None and known - start <= 4 * size and (end is None or known <= end):
            wanted = known
        else:
            wanted = (start // size + 1) * size
            if end is not None and wanted + size // 4 >= end:
                wanted = end
        if self._rest is not None and self._rest.place.start == start:
            wanted = min(wanted, self._rest.place.end)
        return ByteRange(start, self._reuse.find_cut(ByteRange(start, wanted)))

    def _take_answer(self, question: "_Question") -> bool:
        """Add the window of an answer. Returns False if the file has ended."""
        asked = question.asked
        if question.task is None:
            assert question.plan is not None
            if asked.start != self._position:
                # The previous window has reached further, as the CAS does not cut terms at chunks.
                self._drop_questions()
                return True
            self._asked_end = self._position = asked.end
            self._add_window(question.plan)
            return True
        try:
            answer = question.task.result()
        except RangeUnsatisfiable:
            if self._end is None:
                return False
            raise IntegrityError(f"the file ends before byte {asked.start + 1}") from None
        self._asked_end = asked.end
        rest, self._rest = self._rest, None
        plan = make_plan(
            answer, asked, self._end, start=self._position, is_kept=self._reuse.is_kept
        )
        if rest is not None and rest.answer is answer:
            plan = plan._replace(asked=rest.asked)
        answer_end = asked.start + answer.decoded_size
        if plan.file_range.size > 0:
            self._position = plan.file_range.end
            if not self._is_at_end(self._position):
                self._reuse.split(self._position, plan.pieces[-1].chunks.end)
            self._keep_rest(answer._replace(terms=answer.terms[plan.num_terms :]), plan, answer_end)
            self._add_window(plan)
        is_cut = answer_end < asked.end
        return self._position < answer_end or not (self._end is None and is_cut)

    def _keep_rest(self, answer: Reconstruction, plan: WindowPlan, end: int) -> None:
        """Keep the terms behind a window, and drop the questions that they answer."""
        position = plan.file_range.end
        self._kept.hold_plan(0)
        answer = answer._replace(offset_into_first_range=0)
        if not answer.terms or self._is_at_end(position):
            return
        if position < plan.asked.end:
            self._asked_end = position  # the answer had more terms than a window may have
            self._drop_questions()
        if self._kept.hold_plan(estimate_size(answer)):
            self._rest = _Rest(ByteRange(position, end), answer, plan.asked)
            self._drop_questions()
