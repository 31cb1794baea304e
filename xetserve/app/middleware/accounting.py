"""A handler that counts what another one does, and shows the bodies that are under way."""

import time
from collections.abc import Callable
from http import HTTPStatus

from xetserve.app.status.active_streams import Stage, Stream, StreamTable
from xetserve.http.messages import Handler, Request, Response
from xetserve.metrics.catalogue import ACTIVE_REQUESTS, CUT_REQUESTS, DURATION, FIRST_BYTE, REQUESTS

_STATUSES = frozenset(int(status) for status in HTTPStatus)


class Accounting:
    """Shows what passes.

    Args:
        clock: Unix seconds.
    """

    def __init__(
        self, handler: Handler, streams: StreamTable, clock: Callable[[], float] = time.time
    ) -> None:
        self._handler = handler
        self._streams = streams
        self._clock = clock

    async def handle(self, request: Request) -> Response:
        """Answer a request."""
        ACTIVE_REQUESTS.add()
        try:
            response = await self._handler(request)
        except BaseException:
            ACTIVE_REQUESTS.add(amount=-1)
            raise
        if isinstance(response.body, bytes):
            ACTIVE_REQUESTS.add(amount=-1)
        else:
            response.add_observer(_StreamObserver(request, response.length, self))
        return response

    def open(self, request: Request, size: int | None) -> Stream | None:
        """Show a body that begins."""
        record = request.record
        parts = {
            "route": record.route,
            "repo": record.repo,
            "file": record.file,
            "client": request.peer,
            "id": request.request_id,
        }
        text = {name: value for name, value in parts.items() if value}
        return self._streams.open(text, size, self._clock())


class _StreamObserver:
    """Shows how far a body is, from its first block on; the request counts until its end."""

    def __init__(self, request: Request, size: int | None, accounting: Accounting) -> None:
        self._request = request
        self._size = size
        self._accounting = accounting
        self._stream: Stream | None = None
        self._is_begun = False

    async def before_block(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._stream = self._accounting.open(self._request, self._size)
        if self._stream is not None:
            self._stream.note(self._request.record.sent, Stage.READING)

    def on_block(self, size: int) -> None:
        if self._stream is not None:
            self._stream.note(self._request.record.sent, Stage.SENDING)

    def on_end(self) -> None:
        ACTIVE_REQUESTS.add(amount=-1)
        if self._stream is not None:
            self._stream.close()


def count_answer(request: Request) -> None:
    """Count a request that is answered, from its record."""
    record = request.record
    route, status = record.route, record.status
    REQUESTS.add(route, str(status) if status in _STATUSES else f"{status // 100}xx")
    if not record.is_complete:
        CUT_REQUESTS.add(route)
    if record.first_byte_time is not None:
        FIRST_BYTE.observe(record.first_byte_time, route)
    DURATION.observe(record.total_time, route)
