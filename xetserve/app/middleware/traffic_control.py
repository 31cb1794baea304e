"""The handler in front of the application: it admits requests and paces bodies.

A request is admitted or refused, then waits for a turn of the event loop. A streamed body gets one
observer, which the connection calls around each block. It waits for the client's rate and for a
turn, and shows the progress of the body on the status page.
"""

import time
from collections.abc import Callable
from typing import Final, Protocol

from xetserve.app.middleware.admission import Admission, Admitted
from xetserve.app.status.active_streams import Stage, Stream, StreamTable
from xetserve.http.messages import Handler, Request, Response
from xetserve.metrics.catalogue import ACTIVE_REQUESTS

EXEMPT: Final = frozenset(
    {"/health", "/healthz", "/ready", "/metrics", "/status"}
)  # answered at once under any load, when an operator needs them most


class Places(Protocol):
    """Places in turns of the event loop; net implements it, and app does not import net."""

    async def take(self, client: str, *, begins: bool) -> None:
        """Wait for a place for a client's work."""
        ...


class TrafficControl:
    """A handler that admits requests to another one, counts them, and paces their bodies.

    Args:
        admission: limits and rates; EXEMPT paths are not subject to them.
        turns: places in turns of the event loop; EXEMPT paths wait for none.
        streams: the table in which running transfers are shown.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        handler: Handler,
        admission: Admission,
        turns: Places,
        streams: StreamTable,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._handler = handler
        self._admission = admission
        self._streams = streams
        self._clock = clock
        self.turns = turns

    async def handle(self, request: Request) -> Response:
        """Answer a request, or refuse it."""
        admitted: Admitted | None = None
        if request.raw_path not in EXEMPT:
            decision = self._admission.admit(request)
            if isinstance(decision, Response):
                return decision
            admitted = decision
        ACTIVE_REQUESTS.add()
        try:
            if admitted is not None:
                await self.turns.take(request.client, begins=True)
            response = await self._handler(request)
        except BaseException:
            self.leave(admitted)
            raise
        if isinstance(response.body, bytes):
            self.leave(admitted)
            if admitted is not None:
                admitted.charge(len(response.body))
        else:
            response.observer = _Transfer(self, request, response.length, admitted)
        return response

    def leave(self, admitted: Admitted | None) -> None:
        """Stop counting a request as active: its answer is complete, or its body is closed."""
        ACTIVE_REQUESTS.add(amount=-1)
        if admitted is not None:
            admitted.leave()

    def show(self, request: Request, size: int | None) -> Stream | None:
        """Show a body that begins on the status page; None: the table is full."""
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


class _Transfer:
    """The observer of one body: it shows progress, charges the client's rate and waits for turns.

    Args:
        size: bytes of the body; None: unknown.
        admitted: None: the path is exempt.
    """

    def __init__(
        self,
        control: TrafficControl,
        request: Request,
        size: int | None,
        admitted: Admitted | None,
    ) -> None:
        self._control = control
        self._request = request
        self._size = size
        self._admitted = admitted
        self._stream: Stream | None = None
        self._num_blocks = 0

    async def before_block(self) -> None:
        request, admitted = self._request, self._admitted
        if not self._num_blocks:
            self._stream = self._control.show(request, self._size)
        if self._stream is not None:
            self._stream.note(request.record.sent, Stage.READING)
        if admitted is None:
            return
        if admitted.is_paced:
            await admitted.pay()
        if self._num_blocks:
            # The first block usually waits already. A small file ends with its second block.
            await self._control.turns.take(request.client, begins=self._num_blocks == 1)

    def on_block(self, size: int) -> None:
        self._num_blocks += 1
        if self._admitted is not None:
            self._admitted.charge(size)
        if self._stream is not None:
            self._stream.note(self._request.record.sent, Stage.SENDING)

    def on_end(self) -> None:
        self._control.leave(self._admitted)
        if self._stream is not None:
            self._stream.close()
