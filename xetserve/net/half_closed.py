"""Clients that have closed their sending side while the body of a response is sent.

Such a client may still read (RFC 9112, 9.6), or it may be gone: a killed client sends the same FIN.
Only the next bytes tell, because they are answered by a reset. So a response that sends nothing for
a while, as in an outage of the upstream, ends for such a client sooner than for others.
"""

import asyncio

from xetserve.net.tls_stream import Stream


class HalfClosedWatch:
    """Abort the stream once the client has closed its side and is sent nothing for `limit` seconds.

    That takes between once and twice the limit: the watch looks once in `limit` seconds.
    """

    def __init__(self, stream: Stream, limit: float) -> None:
        self._stream = stream
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._is_unchanged = False  # since the last look
        self._is_sending = False
        self._timer = self._loop.call_later(limit, self._look)

    def begin_send(self) -> None:
        """Note that bytes go out now; for a client that reads slowly, the write timeout counts."""
        self._is_sending, self._is_unchanged = True, False

    def end_send(self) -> None:
        """Note that the client has taken the bytes."""
        self._is_sending = False

    def cancel(self) -> None:
        """Stop the watch, at the end of the response."""
        self._timer.cancel()

    def _look(self) -> None:
        if self._is_unchanged and not self._is_sending and self._stream.is_half_closed:
            self._stream.abort()
            return
        self._is_unchanged = True
        self._timer = self._loop.call_later(self._limit, self._look)
