"""TLS over a byte stream, for servers.

The event loop has TLS transports of its own. They keep what the socket does not take in a queue
that nobody can see or wait for, and drop it when the client is slow to say goodbye. Here records
are made when they are sent and not before, so that all promises of ByteStream hold: its pressure
both ways, its timeouts, its reset.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from xetserve.errors import BrokenStream
from xetserve.http.messages import Buffer
from xetserve.net.min_rate import RateFloor
from xetserve.net.stream import RECEIVE_LIMIT, ByteStream

SEND_SIZE: Final = 128 * 1024  # bytes of records that are made before they are sent
HANDSHAKE: Final = (
    0x16  # content type of a TLS record (RFC 8446, 5.1); every client begins with one
)


class TlsStream:
    """The server's side of TLS on a connected stream, which belongs to it from now on."""

    def __init__(self, stream: ByteStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    async def handshake(self) -> None:
        """Agree with the client on keys.

        Raises:
            BrokenStream: it speaks no TLS that we speak. It was told so; the stream is to be
                closed.
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

    # As ByteStream's.

    @property
    def peer(self) -> str:
        """The peer's address without the port; "" where there is none."""
        return self._stream.peer

    @property
    def on_lost(self) -> Callable[[], object] | None:
        """Called once, when the connection is gone."""
        return self._stream.on_lost

    @on_lost.setter
    def on_lost(self, callback: Callable[[], object] | None) -> None:
        self._stream.on_lost = callback

    @property
    def is_quiet(self) -> bool:
        """Whether the peer is there and has said nothing that was not read."""
        return self._stream.is_quiet and not (self._incoming.pending or self._tls.pending())

    async def receive(self, timeout: float | None = None) -> bytes:
        """Return what has arrived, waiting for at least a byte; b"" when the peer has finished.

        Raises:
            BrokenStream: the connection was reset, or what came is not TLS.
            TimeoutError: nothing came for timeout seconds; parts of a record are nothing.
        """
        async with asyncio.timeout(timeout):
            while True:
                try:
                    return self._tls.read(RECEIVE_LIMIT)
                except ssl.SSLWantReadError:
                    await self._flush()  # what is to be said about keys
                    if not (data := await self._stream.receive()):
                        # Without a close_notify. Requests have ends of their own.
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
        """Encrypt the buffers in order and wait until the kernel has all of it.

        One writer at a time. Cancellation: some, all or none may have been sent; only abort() is
        safe afterwards.

        Raises:
            BrokenStream: the peer is gone.
            TimeoutError: the peer took nothing for timeout seconds, or less than floor asks for.
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
        """Reset the connection: the peer must not take what it has for complete."""
        self._stream.abort()

    async def aclose(self, linger: float = 0.0) -> None:
        """Close in an orderly way: say so (RFC 8446, 6.1), then as ByteStream does.

        Args:
            linger: seconds to wait for the peer to close first.
        """
        with contextlib.suppress(ssl.SSLError):  # its answer is not waited for
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
