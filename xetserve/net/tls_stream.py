"""TLS over a byte stream, for servers.

The event loop has its own TLS transports. They queue unsent bytes where the server can neither see
nor await them, and drop the queue if the client is slow to close. TlsStream encrypts a record only
when it sends it, so it keeps all promises of ByteStream: backpressure in both directions, timeouts
and reset.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from xetserve.base.buffers import Buffer
from xetserve.errors import BrokenStream
from xetserve.net.min_rate import RateFloor
from xetserve.net.stream import RECEIVE_LIMIT, ByteStream

SEND_SIZE: Final = 128 * 1024  # bytes of records that are encrypted before they are sent
# The content type of a handshake record (RFC 8446, 5.1), a TLS client's first byte.
HANDSHAKE: Final = 0x16


class TlsStream:
    """The server side of TLS on a connected stream, which it owns."""

    def __init__(self, stream: ByteStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Run the TLS handshake.

        Raises:
            BrokenStream: the handshake failed, and the client has received an alert. Close the
                stream.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not (data := await self._stream.receive()):
                    raise BrokenStream("closed during the TLS handshake") from None
                self._incoming.write(data)
            except ssl.SSLError as exc:
                await self._flush()  # the alert
                raise BrokenStream(f"TLS handshake failed: {exc.reason or exc}") from None
            else:
                await self._flush()
                return

    # The interface of ByteStream.

    @property
    def peer(self) -> str:
        """Return the peer's address without the port; "" on a Unix socket."""
        return self._stream.peer

    @property
    def on_lost(self) -> Callable[[], object] | None:
        """Return the callback that is called once when the connection is lost."""
        return self._stream.on_lost

    @on_lost.setter
    def on_lost(self, callback: Callable[[], object] | None) -> None:
        self._stream.on_lost = callback

    @property
    def is_quiet(self) -> bool:
        """Return whether the peer is connected and has sent nothing that is unread."""
        return self._stream.is_quiet and not (self._incoming.pending or self._tls.pending())

    @property
    def has_unread(self) -> bool:
        """Return whether the peer has sent bytes or left, even if the event loop has not looked."""
        return not self.is_quiet or self._stream.has_unread

    @property
    def is_half_closed(self) -> bool:
        """Return whether the peer has closed its sending side only, as far as is known."""
        return self._stream.is_half_closed

    async def receive(self, timeout: float | None = None) -> bytes:
        """Wait for at least one byte; return the received bytes, b"" when the peer has finished.

        Raises:
            BrokenStream: the connection was reset, or the received bytes are not TLS.
            TimeoutError: no complete record arrived for timeout seconds.
        """
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return self._tls.read(RECEIVE_LIMIT)
                except ssl.SSLWantReadError:
                    await self._flush()  # key updates
                    if not (data := await self._stream.receive()):
                        # No close_notify. HTTP framing marks the end of a request, so this is safe.
                        return b""
                    self._incoming.write(data)
                except ssl.SSLZeroReturnError:
                    return b""
                except ssl.SSLError as exc:
                    raise BrokenStream(f"TLS: {exc.reason or exc}") from None

    async def send_all(
        self,
        buffers: Sequence[Buffer],
        timeout: float | None = None,
        floor: RateFloor | None = None,
    ) -> None:
        """Encrypt and write the buffers in order, then wait until the kernel has every byte.

        One writer at a time. Cancellation: some, all or none may have been sent; only abort() is
        safe afterwards.

        Raises:
            BrokenStream: the peer is gone.
            TimeoutError: the peer read nothing for timeout seconds, or less than floor requires.
        """
        try:
            for buffer in buffers:
                view = memoryview(buffer)
                while view:
                    view = view[self._tls.write(view[:SEND_SIZE]) :]
                    if self._outgoing.pending >= SEND_SIZE:
                        await self._flush(timeout, floor)
        except ssl.SSLError as exc:
            raise BrokenStream(f"TLS: {exc.reason or exc}") from None
        await self._flush(timeout, floor)

    def abort(self) -> None:
        """Reset the connection, so that the peer does not take a partial response for complete."""
        self._stream.abort()

    async def aclose(self, linger: float = 0.0) -> None:
        """Send close_notify (RFC 8446, 6.1), then close as ByteStream does.

        Args:
            linger: seconds to wait for the peer to close first.
        """
        with contextlib.suppress(ssl.SSLError):  # do not wait for the peer's close_notify
            self._tls.unwrap()
        try:
            await self._flush(linger)
        except (BrokenStream, TimeoutError):
            self.abort()
            return
        await self._stream.aclose(linger)

    async def _flush(self, timeout: float | None = None, floor: RateFloor | None = None) -> None:
        if self._outgoing.pending:
            await self._stream.send_all([self._outgoing.read()], timeout, floor)


Stream = ByteStream | TlsStream
