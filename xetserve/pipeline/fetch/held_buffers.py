"""What one fetch holds of the budget: slabs with packed records, and what was decoded for several
users.

One that has reserved all it will ever hold has room at any time. One that has not (the budget is
short, the client slow, or the range huge) streams: it holds a couple of small slabs, and waits for
them to be used up. Whoever waits for the next record is given room for it, whatever the budget
says.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from xetserve.base.waiters import wake
from xetserve.metrics.catalogue import FETCH_WAITS
from xetserve.pipeline.fetch.buffers import ReceiveSlab
from xetserve.pipeline.flow.budget import SLAB_SIZE, SMALL_SLAB_SIZE, ByteBudget

STREAM_GRANT: Final = 2 * SLAB_SIZE  # bytes that a streaming fetch holds
TIGHT_GRANT: Final = SMALL_SLAB_SIZE // 4  # and where there are hundreds: one record, mostly


class HeldBuffers:
    """The part of the budget that one fetch has. Sizes are bytes.

    Args:
        size: of all that will be received.
        is_hurried: tells whether somebody waits for the next record.

    granted: what it has of the budget now.
    num_left: what has not been received.
    paused: seconds in which receiving had to wait for room since it began.
    """

    def __init__(
        self,
        budget: ByteBudget,
        size: int,
        *,
        is_hurried: Callable[[], bool],
    ) -> None:
        self.granted = 0
        self.num_left = size
        self.paused = 0.0
        self._budget = budget
        self._size = size
        self._is_hurried = is_hurried
        self._open_space = 0  # what the slab being received into can still take
        self._in_slabs = 0
        self._decoded = 0
        self._is_full = False  # room for all of it has been granted: never wait for any
        self._reach = 0  # what its fastest user would hold
        self._room: asyncio.Future[None] | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<HeldBuffers {self._in_slabs} of {self.granted}>"

    # What is granted.

    def reserve(self, room: int, *, streams: bool, must: bool) -> bool:
        """Take what is needed to start: for all of it, if that fits into room and into the budget.

        Args:
            streams: without room, take what streaming needs.
            must: even if the budget has nothing left, and files are short.
        """
        self._reach = room
        if not must and not self._budget.has_files():
            return False
        if self._size <= room and self._budget.try_take(self._size):
            self.granted = self._size
            self._is_full = True
            return True
        grant = min(self._size, self._stream_grant)
        if must:
            self._budget.take(grant)
        elif not (streams and self._budget.try_take(grant)):
            return False
        self.granted = grant
        return True

    def fit(self, room: int, *, is_shared: bool) -> None:
        """Have room for all that is still to come if it fits into room by now, or else stream.

        Args:
            is_shared: others use the fetch, too, and may have more room.
        """
        self._reach = max(room, self._reach) if is_shared else room
        if not self.num_left or self._is_full == (self._size <= room):
            return
        if self._is_full:
            if not is_shared:
                self._is_full = False
                self._give_excess()
            return
        more = max(0, self._wanted - self.granted)
        if self._budget.try_take(more):
            self.granted += more
            self._is_full = True
            self.hurry()

    def lend(self) -> None:
        """Give back the room for what has not come, since nothing comes for a while."""
        self._is_full = False
        held = self._in_slabs + self._decoded
        if self.granted > held:
            self._budget.give(self.granted - held)
            self.granted = held

    def close(self) -> None:
        """Give everything back at once."""
        self._is_closed = True
        self._budget.give(self.granted)
        self.granted = self._in_slabs = self._decoded = 0

    # Receiving.

    def begin(self, size: int) -> None:
        """So much will be received, from the start."""
        self.num_left = size
        self.paused = 0.0

    def note_received(self, count: int, open_space: int) -> None:
        """Count what has come; open_space: what the slab can still take."""
        self.num_left -= count
        self._open_space = open_space

    async def open_slab(self, at_least: int) -> ReceiveSlab:
        """Get a buffer for what is still to come, once there is room for it."""
        grant = self._stream_grant
        # Of few sizes: slabs are recycled.
        size = SLAB_SIZE if self._is_full or grant >= STREAM_GRANT else min(SMALL_SLAB_SIZE, grant)
        size = max(at_least, min(size, at_least + self.num_left))
        while not (self._is_hurried() or self._is_full or self._in_slabs + size <= self.granted):
            FETCH_WAITS.add()
            began = time.monotonic()
            self._room = asyncio.get_running_loop().create_future()
            try:
                await self._room
            finally:
                self._room = None
                self.paused += time.monotonic() - began
        self._in_slabs += size
        more = self._in_slabs + self._decoded - self.granted
        if more > 0:
            self._budget.take(more)
            self.granted += more
        return ReceiveSlab(self._budget.make_slab(size))

    def hurry(self) -> None:
        """Look again whether there is room."""
        wake(self._room)

    def close_slab(self, slab: ReceiveSlab) -> None:
        """Receive no more into a slab."""
        slab.is_open = False
        if not slab.num_needed and not self._is_closed:
            self._free_slab(slab)

    def leave_slab(self, slab: ReceiveSlab) -> None:
        """Need one record of a slab no more."""
        slab.num_needed -= 1
        if not slab.num_needed and not slab.is_open:
            self._free_slab(slab)

    def _free_slab(self, slab: ReceiveSlab) -> None:
        """Give back a slab; released records are not even in a client's socket any more."""
        self._in_slabs -= len(slab.buffer)
        if not slab.is_lent:
            self._budget.recycle(slab.buffer)
        self._give_excess()
        self.hurry()

    # What is decoded.

    def try_keep_decoded(self, size: int, limit: int) -> bool:
        """Hold so much more that is decoded, if that stays within limit."""
        if self._decoded + size > limit:
            return False
        self._decoded += size
        self._budget.take(size)
        self.granted += size
        return True

    def drop_decoded(self, size: int) -> None:
        """Hold it no more."""
        self._decoded -= size
        self._give_excess()

    @property
    def _wanted(self) -> int:
        """Held once all of the range has arrived and none of it was used."""
        return self._in_slabs + self._decoded + max(0, self.num_left - self._open_space)

    @property
    def _stream_grant(self) -> int:
        """For a fetch that streams.

        Where there are many, most of the budget stays for those that do not; and a client has to
        show that it is fast.
        """
        return min(max(TIGHT_GRANT, min(self._budget.share, self._reach) // 4), STREAM_GRANT)

    def _give_excess(self) -> None:
        """Give back what will not be needed again."""
        wanted = self._wanted
        if not self._is_full:
            wanted = min(wanted, max(self._in_slabs + self._decoded, self._stream_grant))
        if self.granted > wanted:
            self._budget.give(self.granted - wanted)
            self.granted = wanted
