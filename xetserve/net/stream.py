"""A byte stream over one connected socket, with pressure both ways.

Receiving is pulled. Heads come through receive() as small bytes objects; body bytes go straight
from the kernel into a buffer of the caller's with receive_into(). While nobody asks, at most
RECEIVE_LIMIT bytes are taken off the socket, then the kernel's window closes.

Sending never queues behind the caller's back: send_all() returns once every byte has gone to the
kernel, so the buffers may be reused afterwards.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final, cast

from xetserve.base.waiters import wake
from xetserve.errors import BrokenStream
from xetserve.http.messages import Buffer
from xetserve.net.min_rate import RateFloor

RECEIVE_LIMIT: Final = 64 * 1024

# Where bytes land that nobody has asked for yet. One for the process: the event loop fills it and
# calls buffer_updated in the same turn, so an idle connection owns no buffer.
_SCRATCH: Final = memoryview(bytearray(RECEIVE_LIMIT))

# ioctl: bytes in a socket's send queue that the peer has not acknowledged, as TIOCOUTQ for
# terminals.
_SIOCOUTQ: Final = 0x5411

_LINGER_RESET: Final = struct.pack("ii", 1, 0)


class ByteStream(asyncio.BufferedProtocol):
    """One connection.

    Args:
        on_connect: called with the stream once it is connected; for servers.
    """

    def __init__(self, on_connect: Callable[["ByteStream"], None] | None = None) -> None:
        self._on_connect = on_connect
        self.on_lost: Callable[[], object] | None = None  # called once, when the connection is gone
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
        self._closed: asyncio.Future[None] | None = None
        self._write_paused = False

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Zero: a write is tried at once, and pause_writing tells when something is left unsent.
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
            # One read is enough for the waiter to go on with; until it asks again, stop.
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
        # A client may shut its side down and still read the answer; TLS has no such state.
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
        for waiter in (self._receiver, self._drained, self._closed):
            wake(waiter)
        if self.on_lost is not None:
            self.on_lost()
            self.on_lost = None

    # Called by the owner.

    @property
    def transport(self) -> asyncio.Transport:
        """The transport under the stream."""
        if self._transport is None:
            raise BrokenStream("not connected")
        return self._transport

    @property
    def is_quiet(self) -> bool:
        """Whether the peer is there and has said nothing that was not read."""
        return not (self._lost or self._eof or self._inbox)

    @property
    def peer(self) -> str:
        """The peer's address without the port; "" where there is none."""
        name = self.transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    def replace_transport(self, transport: asyncio.Transport) -> None:
        """Go on over another transport, after a TLS upgrade."""
        self._transport = transport
        self._reading = True
        # Not zero: TLS transports pause at the limit, not above it, and would wait with nothing
        # unsent.
        transport.set_write_buffer_limits(high=1)

    async def receive(self, timeout: float | None = None) -> bytes:
        """Return what has arrived, waiting for at least a byte; b"" when the peer has finished.

        Raises:
            BrokenStream: the connection was reset.
            TimeoutError: nothing came for timeout seconds.
        """
        while not self._inbox:
            if not self._can_read():
                return b""
            await self._wait_for_data(timeout)
        data = bytes(self._inbox)
        self._inbox.clear()
        return data

    def unread(self, data: bytes) -> None:
        """Put back what was received, to be received again."""
        self._inbox[:0] = data

    async def receive_into(self, view: memoryview, timeout: float | None = None) -> int:
        """Receive straight into view; gives the number of bytes, 0 when the peer has finished.

        One reader at a time. Until this returns, view belongs to the stream.

        Raises:
            BrokenStream: the connection was reset.
            TimeoutError: nothing came for timeout seconds.
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
        """Return whether more can come; False after an orderly end."""
        if self._eof:
            return False
        if self._lost:
            raise BrokenStream("connection reset") from self._error
        return True

    async def _wait_for_data(self, timeout: float | None) -> None:
        self._receiver = asyncio.get_running_loop().create_future()
        self._resume()
        try:
            if timeout is None:
                await self._receiver
            else:
                async with asyncio.timeout(timeout):
                    await self._receiver
        finally:
            self._receiver = None

    def watch(self) -> None:
        """Take in what the peer says although nobody asks, so that is_quiet tells of it."""
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
        """Write the buffers in order and wait until the kernel has all of them.

        One writer at a time. Cancellation: some, all or none may have been sent, and the transport
        may still hold the buffers; only abort() is safe afterwards.

        Raises:
            BrokenStream: the peer is gone.
            TimeoutError: the peer took nothing for timeout seconds, or less than floor asks for.
        """
        if self._lost:
            raise BrokenStream("connection reset") from self._error
        self.transport.writelines(buffers)
        loop = asyncio.get_running_loop()
        while self._write_paused and not self._lost:
            unsent, started = self._count_unsent(), loop.time()
            self._drained = loop.create_future()
            try:
                async with asyncio.timeout(timeout):
                    await self._drained
            except TimeoutError:
                # Slow is fine, dead is not: only a peer that took nothing is given up.
                if self._count_unsent() >= unsent:
                    raise TimeoutError("the client takes nothing") from None
            finally:
                self._drained = None
            if floor is not None and not self._lost:
                taken = unsent - self._count_unsent()
                if not floor.allows(loop.time() - started, taken):
                    raise TimeoutError(f"the client takes less than {floor.rate:g} bytes a second")
        if self._lost:
            raise BrokenStream("connection reset") from self._error

    def _count_unsent(self) -> int:
        """Bytes that the peer has not acknowledged.

        The kernel takes more only when a third of its queue is free. With megabytes in the queue
        and a client that reads some kilobytes a second, that is minutes in which the write buffer
        alone stands still.
        """
        unsent = self.transport.get_write_buffer_size()
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                queued = fcntl.ioctl(sock.fileno(), _SIOCOUTQ, bytes(4))
                unsent += int.from_bytes(queued, sys.byteorder)
        return unsent

    def abort(self) -> None:
        """Reset the connection: the peer must not take what it has for complete."""
        if self._transport is None or self._lost:
            return
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            # Without this, closing sends an orderly FIN, the end of a close-delimited body.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._transport.abort()

    def close(self) -> None:
        """Close an idle connection; nothing is waited for."""
        if self._transport is not None and not self._lost:
            self._transport.close()

    async def aclose(self, linger: float = 0.0) -> None:
        """Close in an orderly way.

        Args:
            linger: seconds to wait for the peer to close first, discarding what it still sends.
                Closing with unread input would reset the connection and could cost the peer the end
                of our answer (RFC 9112, 9.6).
        """
        if self._transport is None or self._lost:
            return
        # An aborted transport may still be able to send a FIN; that would spoil the reset.
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
