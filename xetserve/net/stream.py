"""A byte stream over one connected socket, with backpressure in both directions.

The owner pulls received bytes. receive() returns heads as small bytes objects; receive_into() lets
the kernel write body bytes straight into the caller's buffer. Without a pending call, the stream
reads at most RECEIVE_LIMIT bytes; then the kernel's receive window closes.

The stream queues no bytes to send. send_all() returns once the kernel has every byte, so the caller
may reuse the buffers afterwards.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final, cast

from xetserve.base.buffers import Buffer
from xetserve.base.waiters import TimedWait, wake
from xetserve.errors import BrokenStream
from xetserve.net.min_rate import RateFloor

RECEIVE_LIMIT: Final = 64 * 1024

# The buffer for bytes that arrive without a pending receive_into(). All streams share it: the event
# loop fills it and calls buffer_updated in the same turn, so an idle stream owns no buffer.
_SCRATCH: Final = memoryview(bytearray(RECEIVE_LIMIT))

# ioctl SIOCOUTQ: bytes in a socket's send queue that the peer has not acknowledged, see tcp(7).
# FIONREAD: bytes in its receive queue.
_SIOCOUTQ: Final = 0x5411
_FIONREAD: Final = 0x541B

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class ByteStream(asyncio.BufferedProtocol):
    """One connection.

    Args:
        on_connect: called with the stream once it is connected; for servers.
    """

    def __init__(self, on_connect: Callable[["ByteStream"], None] | None = None) -> None:
        self._on_connect = on_connect
        self.on_lost: Callable[[], object] | None = None  # called once when the connection is lost
        self._transport: asyncio.Transport | None = None
        self._inbox = bytearray()
        self._target: memoryview | None = None
        self._filled = 0
        self._reading = True
        self._eof = False
        self._lost = False
        self._error: Exception | None = None
        self._receiver: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._receiving = TimedWait()
        self._sending = TimedWait()
        self._closed: asyncio.Future[None] | None = None
        self._write_paused = False

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Zero: the transport tries each write at once, and calls pause_writing if bytes are left.
        self._transport.set_write_buffer_limits(high=0)
        if self._on_connect is not None:
            self._on_connect(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._target is not None:
            return self._target[self._filled :]
        return _SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        if self._target is not None:
            self._filled += nbytes
            # One read completes receive_into(); pause until the next call.
            self._target = None
            self._pause()
        else:
            self._inbox += _SCRATCH[:nbytes]
            if len(self._inbox) >= RECEIVE_LIMIT:
                self._pause()
        wake(self._receiver)

    def eof_received(self) -> bool:
        self._eof = True
        wake(self._receiver)
        # A client may close its sending side and still read the response. TLS has no such state.
        return self.transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        wake(self._drained)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._error = exc
        self._target = None
        self._receiving.close()
        self._sending.close()
        for waiter in (self._receiver, self._drained, self._closed):
            wake(waiter)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    # Called by the owner.

    @property
    def transport(self) -> asyncio.Transport:
        """Return the transport under the stream.

        Raises:
            BrokenStream: the stream is not connected.
        """
        if self._transport is None:
            raise BrokenStream("not connected")
        return self._transport

    @property
    def is_quiet(self) -> bool:
        """Return whether the peer is connected and has sent nothing that is unread."""
        return not (self._lost or self._eof or self._inbox)

    @property
    def has_unread(self) -> bool:
        """Return whether the peer has sent bytes or left, even if the event loop has not looked."""
        return not self.is_quiet or self._count_queued(_FIONREAD) > 0

    @property
    def is_half_closed(self) -> bool:
        """Return whether the peer has closed its sending side only, as far as is known."""
        return self._eof and not self._lost

    @property
    def peer(self) -> str:
        """Return the peer's address without the port; "" on a Unix socket."""
        name = self.transport.get_extra_info("peername")
        host = str(name[0]) if isinstance(name, tuple) else ""
        # A socket for IPv4 and IPv6 names a client of IPv4 as an IPv4-mapped address.
        return host.removeprefix("::ffff:") if "." in host else host

    def replace_transport(self, transport: asyncio.Transport) -> None:
        """Continue over another transport, after a TLS upgrade."""
        self._transport = transport
        self._reading = True
        # Not zero: TLS transports pause at the limit, not above it. With zero they would pause
        # although no byte is left.
        transport.set_write_buffer_limits(high=1)

    async def receive(self, timeout: float | None = None) -> bytes:
        """Wait for at least one byte; return the received bytes, b"" when the peer has finished.

        Raises:
            BrokenStream: the connection was reset.
            TimeoutError: no byte arrived for timeout seconds.
        """
        while not self._inbox:
            if not self._can_read():
                return b""
            await self._wait_for_data(timeout)
        data = bytes(self._inbox)
        self._inbox.clear()
        return data

    def unread(self, data: bytes) -> None:
        """Put received bytes back; the next receive returns them first."""
        self._inbox[:0] = data

    async def receive_into(self, view: memoryview, timeout: float | None = None) -> int:
        """Receive bytes into view; return their number, 0 when the peer has finished.

        One reader at a time. Until this returns, view belongs to the stream.

        Raises:
            BrokenStream: the connection was reset.
            TimeoutError: no byte arrived for timeout seconds.
        """
        if self._inbox:
            count = min(len(view), len(self._inbox))
            view[:count] = self._inbox[:count]
            del self._inbox[:count]
            return count
        if not self._can_read():
            return 0
        self._target = view
        self._filled = 0
        try:
            await self._wait_for_data(timeout)
        finally:
            self._target = None
        if not self._filled:
            self._can_read()
        return self._filled

    def _can_read(self) -> bool:
        """Return whether more bytes can arrive; False after the peer's end of stream.

        Raises:
            BrokenStream: the connection was reset.
        """
        if self._eof:
            return False
        if self._lost:
            raise BrokenStream("connection reset") from self._error
        return True

    async def _wait_for_data(self, timeout: float | None) -> None:
        self._receiver = receiver = asyncio.get_running_loop().create_future()
        self._resume()
        try:
            if timeout is None:
                await receiver
            else:
                await self._receiving.wait(receiver, timeout)
        finally:
            self._receiver = None

    def watch(self) -> None:
        """Read without a pending receive, so that is_quiet reports bytes and the peer's end."""
        self._resume()

    def _pause(self) -> None:
        if self._reading and not self._lost:
            self._reading = False
            self.transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and not self._lost:
            self._reading = True
            self.transport.resume_reading()

    async def send_all(
        self,
        buffers: Sequence[Buffer],
        timeout: float | None = None,
        floor: RateFloor | None = None,
    ) -> None:
        """Write the buffers in order, then wait until the kernel has every byte.

        One writer at a time. Cancellation: some, all or none may have been sent, and the transport
        may still hold the buffers; only abort() is safe afterwards.

        Raises:
            BrokenStream: the peer is gone.
            TimeoutError: the peer read nothing for timeout seconds, or less than floor requires.
        """
        if self._lost:
            raise BrokenStream("connection reset") from self._error
        self.transport.writelines(buffers)
        loop = asyncio.get_running_loop()
        while self._write_paused and not self._lost:
            unsent, started = self._count_unsent(), loop.time()
            self._drained = drained = loop.create_future()
            try:
                if timeout is None:
                    await drained
                else:
                    await self._sending.wait(drained, timeout)
            except TimeoutError:
                # A slow peer may continue; only a peer that read nothing has timed out.
                if self._count_unsent() >= unsent:
                    raise TimeoutError("the client reads nothing") from None
            finally:
                self._drained = None
            if floor is not None and not self._lost:
                taken = unsent - self._count_unsent()
                if not floor.allows(loop.time() - started, taken):
                    raise TimeoutError(f"the client reads less than {floor.rate:g} bytes a second")
        if self._lost:
            raise BrokenStream("connection reset") from self._error

    def _count_unsent(self) -> int:
        """Return the number of bytes that the peer has not acknowledged.

        The transport's write buffer alone does not show a slow client's progress. The kernel
        accepts new bytes only when a third of its queue is free. With megabytes in that queue and a
        client that reads some kilobytes a second, the write buffer does not change for minutes.
        """
        return self.transport.get_write_buffer_size() + self._count_queued(_SIOCOUTQ)

    def _count_queued(self, queue: int) -> int:
        """Return the number of bytes in a queue of the kernel; 0 if it does not tell."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                return int.from_bytes(fcntl.ioctl(sock.fileno(), queue, bytes(4)), sys.byteorder)
        return 0

    def abort(self) -> None:
        """Reset the connection, so that the peer does not take a partial response for complete."""
        if self._transport is None or self._lost:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # Without this, closing sends a FIN, which ends a close-delimited body normally.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._transport.abort()

    def close(self) -> None:
        """Close an idle connection without waiting."""
        if self._transport is not None and not self._lost:
            self._transport.close()

    async def aclose(self, linger: float = 0.0) -> None:
        """Close the connection and wait until it is closed.

        Args:
            linger: seconds to wait for the peer to close first; bytes that it sends are dropped.
                Closing with unread input resets the connection, and the peer may lose the end of
                the response (RFC 9112, 9.6).
        """
        if self._transport is None or self._lost:
            return
        # Do not write EOF to an aborted transport: its FIN would arrive before the reset.
        if linger and not self._eof and not self._transport.is_closing():
            try:
                if self._transport.can_write_eof():
                    self._transport.write_eof()
                async with asyncio.timeout(linger):
                    while await self.receive():
                        pass
            except (TimeoutError, BrokenStream, OSError):
                pass
        self._transport.close()
        if not self._lost:
            self._closed = asyncio.get_running_loop().create_future()
            await self._closed
