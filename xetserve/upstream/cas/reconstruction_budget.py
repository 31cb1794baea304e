"""Memory for large reconstructions, of the same budget as file data.

They count while they are read from the CAS, and while clients read them from us. A small one is
part of what every response may cost: windows of plain reads have to go on where file data takes all
of the budget. For more, there has to be room; but one holder at a time may always go on, however
small the budget is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from xetserve.errors import UpstreamBusy
from xetserve.xet.reconstruction import Reconstruction

# Bytes that a holder has without asking: of what a client reads, as slowly as it likes, and of what
# is read from the CAS, which is over soon. That is 256 KiB of JSON, of a window 1,700 terms.
FREE_SIZE: Final = 64 * 1024
FREE_READ_SIZE: Final = 1024 * 1024
# Bytes of a term with its use, and of a fetch range without its URL, as Python objects.
TERM_COST: Final = 400
JSON_COST: Final = 4  # bytes for one of JSON that is read: the text twice, and what it says
RETRY_AFTER: Final = 1.0  # seconds


class Budget(Protocol):
    """A pipeline's ByteBudget."""

    def try_take(self, size: int) -> bool:
        """Take bytes if there is room for them."""
        ...

    def take(self, size: int) -> None:
        """Take bytes."""
        ...

    def give(self, size: int) -> None:
        """Give bytes back."""
        ...


class HeldBuffers:
    """What one holder has taken. size: bytes, those that are free among them."""

    def __init__(self, room: "ReconstructionBudget") -> None:
        self._room = room
        self._taken = 0
        self.size = 0

    def grow(self, size: int) -> None:
        """Hold some more bytes.

        Raises:
            UpstreamBusy: there is no room.
        """
        wanted = max(0, self.size + size - self._room.free_size) - self._taken
        if wanted > 0:
            self._room.take(wanted, is_alone=self._room.held == self._taken)
            self._taken += wanted
        self.size += size

    def release(self) -> None:
        """Give everything back."""
        if self._taken:
            self._room.give(self._taken)
        self.size = self._taken = 0


class ReconstructionBudget:
    """What all holders have taken.

    held: bytes. free_size: bytes that each holder has without asking.
    """

    def __init__(self, budget: Budget, free_size: int = FREE_SIZE) -> None:
        self._budget = budget
        self.free_size = free_size
        self.held = 0

    @contextmanager
    def hold(self) -> Iterator[HeldBuffers]:
        """Hold bytes until the block is left."""
        holding = HeldBuffers(self)
        try:
            yield holding
        finally:
            holding.release()

    def take(self, size: int, *, is_alone: bool) -> None:
        """See HeldBuffers."""
        if is_alone:
            self._budget.take(size)
        elif not self._budget.try_take(size):
            raise UpstreamBusy(
                "other large files are being planned: try again",
                status=503,
                retry_after=RETRY_AFTER,
            )
        self.held += size

    def give(self, size: int) -> None:
        """See HeldBuffers."""
        self._budget.give(size)
        self.held -= size


def estimate_size(answer: Reconstruction) -> int:
    """Return what a reconstruction takes, in bytes."""
    urls = {info.url for infos in answer.fetch_info.values() for info in infos}
    num_ranges = sum(map(len, answer.fetch_info.values())) + len(answer.fetch_info)
    return TERM_COST * (len(answer.terms) + num_ranges) + sum(map(len, urls))
