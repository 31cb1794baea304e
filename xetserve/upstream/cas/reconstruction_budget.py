"""Memory for large reconstructions, from the same budget as file data.

They count while they are read from the CAS, and while native clients receive them. A small one is
part of the cost of every response, because plain reads must go on while file data fills the budget.
A larger one needs room in the budget. One holder at a time is always let through, however small the
budget is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from xetserve.errors import UpstreamBusy
from xetserve.xet.reconstruction import Reconstruction

# Bytes that each holder may have without room in the budget: while a client receives, at any speed,
# and while the CAS is read, which is short. That is 256 KiB of JSON, or 1,700 terms of a window.
FREE_SIZE: Final = 64 * 1024
FREE_READ_SIZE: Final = 1024 * 1024
# Bytes of a term with its use, and of a fetch range without its URL, as Python objects.
TERM_COST: Final = 400
JSON_COST: Final = 4  # bytes of memory for each byte of JSON: the text twice, and its values
RETRY_AFTER: Final = 1.0  # seconds


class Budget(Protocol):
    """The ByteBudget of the pipeline."""

    def try_take(self, size: int) -> bool:
        """Take bytes if there is room for them; return whether there was."""
        ...

    def take(self, size: int) -> None:
        """Take bytes in any case."""
        ...

    def give(self, size: int) -> None:
        """Return bytes."""
        ...


class Reservation:
    """The bytes that one holder has reserved. size: all of them, the free ones included."""

    def __init__(self, budget: "ReconstructionBudget") -> None:
        self._budget = budget
        self._taken = 0
        self.size = 0

    def grow(self, size: int) -> None:
        """Reserve more bytes.

        Raises:
            UpstreamBusy: the budget has no room for them.
        """
        wanted = max(0, self.size + size - self._budget.free_size) - self._taken
        if wanted > 0:
            self._budget.take(wanted, is_alone=self._budget.held == self._taken)
            self._taken += wanted
        self.size += size

    def release(self) -> None:
        """Return all bytes."""
        if self._taken:
            self._budget.give(self._taken)
        self.size = self._taken = 0


class ReconstructionBudget:
    """The reservations of all holders.

    held: bytes taken from the budget.
    free_size: bytes that each holder may have without taking them from the budget.
    """

    def __init__(self, budget: Budget, free_size: int = FREE_SIZE) -> None:
        self._budget = budget
        self.free_size = free_size
        self.held = 0

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Return an empty reservation, which is released when the block ends."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            reservation.release()

    def take(self, size: int, *, is_alone: bool) -> None:
        """Take bytes from the budget; is_alone: in any case, since nobody else holds any.

        Raises:
            UpstreamBusy: the budget has no room for them.
        """
        if is_alone:
            self._budget.take(size)
        elif not self._budget.try_take(size):
            raise UpstreamBusy(
                "the reconstructions of other large files take all memory: try again",
                status=503,
                retry_after=RETRY_AFTER,
            )
        self.held += size

    def give(self, size: int) -> None:
        """Return bytes to the budget."""
        self._budget.give(size)
        self.held -= size


def estimate_size(answer: Reconstruction) -> int:
    """Return the bytes of memory that a reconstruction takes."""
    urls = {info.url for infos in answer.fetch_info.values() for info in infos}
    num_ranges = sum(map(len, answer.fetch_info.values())) + len(answer.fetch_info)
    return TERM_COST * (len(answer.terms) + num_ranges) + sum(map(len, urls))
