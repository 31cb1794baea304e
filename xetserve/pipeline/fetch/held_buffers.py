"""What one fetch holds of the budget: slabs with packed records, and what was decoded for several
users.

A fetch that has reserved memory for its whole range always has room. Another fetch streams, because
the budget is short, the client is slow, or the range is large: it holds a few small slabs, and
waits until they are used. A response that waits for the next record always gets room for it, even
if the budget is used up.
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
        size: of the whole range.
        is_hurried: returns whether a response waits for the next record.

    granted: the part of the budget that the fetch has now.
    num_left: the bytes that have not been received.
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
        """Take memory from the budget to start; return whether that was possible.

        The whole range is reserved if it fits into room bytes and into the budget.

        Args:
            streams: if the whole range does not fit, take what streaming needs.
            must: take what streaming needs even if the budget or the open files are used up.
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
        """Reserve the rest of the range if the range fits into room bytes; else stream.

        Args:
            is_shared: other responses use the fetch, and may have more room.
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
        """Return the room for bytes that have not arrived, because a long pause begins."""
        self._is_full = False
        held = self._in_slabs + self._decoded
        if self.granted > held:
            self._budget.give(self.granted - held)
            self.granted = held

    def close(self) -> None:
        """Return all memory to the budget at once."""
        self._is_closed = True
        self._budget.give(self.granted)
        self.granted = self._in_slabs = self._decoded = 0

    # Receiving.

    def begin(self, size: int) -> None:
        """Prepare for an answer of size bytes."""
        self.num_left = size
        self.paused = 0.0

    def note_received(self, count: int, open_space: int) -> None:
        """Count received bytes; open_space: the free bytes of the slab."""
        self.num_left -= count
        self._open_space = open_space

    async def open_slab(self, at_least: int) -> ReceiveSlab:
        """Wait for room, and return a buffer of at least at_least bytes."""
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
        """Wake the receiver, so that it checks for room again."""
        wake(self._room)

    def close_slab(self, slab: ReceiveSlab) -> None:
        """Close a slab: nothing more will be received into it."""
        slab.is_open = False
        if not slab.num_needed and not self._is_closed:
            self._free_slab(slab)

    def leave_slab(self, slab: ReceiveSlab) -> None:
        """Record that one more record of a slab is not needed."""
        slab.num_needed -= 1
        if not slab.num_needed and not slab.is_open:
            self._free_slab(slab)

    def _free_slab(self, slab: ReceiveSlab) -> None:
        """Return a slab to the budget; no client's socket uses its records any more."""
        self._in_slabs -= len(slab.buffer)
        if not slab.is_lent:
            self._budget.recycle(slab.buffer)
        self._give_excess()
        self.hurry()

    # What is decoded.

    def try_keep_decoded(self, size: int, limit: int) -> bool:
        """Count size more decoded bytes; return False if they would exceed limit."""
        if self._decoded + size > limit:
            return False
        self._decoded += size
        self._budget.take(size)
        self.granted += size
        return True

    def drop_decoded(self, size: int) -> None:
        """Count size fewer decoded bytes."""
        self._decoded -= size
        self._give_excess()

    @property
    def _wanted(self) -> int:
        """The bytes held if the rest of the range arrives before any of it is used."""
        return self._in_slabs + self._decoded + max(0, self.num_left - self._open_space)

    @property
    def _stream_grant(self) -> int:
        """The bytes for a fetch that streams.

        With many readers, most of the budget stays for fetches that do not stream. A client gets
        more once it has shown that it is fast.
        """
        return min(max(TIGHT_GRANT, min(self._budget.share, self._reach) // 4), STREAM_GRANT)

    def _give_excess(self) -> None:
        """Return the memory that will not be needed again."""
        wanted = self._wanted
        if not self._is_full:
            wanted = min(wanted, max(self._in_slabs + self._decoded, self._stream_grant))
        if self.granted > wanted:
            self._budget.give(self.granted - wanted)
            self.granted = wanted
