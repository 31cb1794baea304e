"""What leaves in one write, and the chunks that it was made of."""

from xetserve.base.buffers import Buffer
from xetserve.pipeline.fetch.leases import Lease


class Block:
    """What leaves in one write, and the chunks that can be released for it.

    size, decoded_size: bytes in all, and those that lie in buffers of their own, not in slabs.
    """

    __slots__ = ("_lent", "_used", "buffers", "decoded_size", "size")

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.size = 0
        self.decoded_size = 0
        self._used: list[_LeaseRun] = []
        self._lent: list[_LeaseRun] = []  # in the slabs until the block has left

    def add(
        self, data: Buffer, size: int, lease: Lease | None, chunk: int, *, is_lent: bool
    ) -> None:
        """Add a chunk, or a part of one; is_lent: it lies in the fetch's slab."""
        self.buffers.append(data)
        self.size += size
        if not is_lent:
            self.decoded_size += size
        if lease is not None:
            runs = self._lent if is_lent else self._used
            if runs and runs[-1].lease is lease and runs[-1].end == chunk:
                runs[-1].end += 1
            else:
                runs.append(_LeaseRun(lease, chunk))

    def settle(self) -> None:
        """Release the packed chunks that the block does not need: it has them decoded."""
        _release(self._used)

    def release(self) -> None:
        """Release the rest, once the block has left."""
        _release(self._lent)


class _LeaseRun:
    """Chunks of one fetch that follow each other."""

    __slots__ = ("end", "lease", "start")

    def __init__(self, lease: Lease, chunk: int) -> None:
        self.lease = lease
        self.start = chunk
        self.end = chunk + 1


def _release(runs: list[_LeaseRun]) -> None:
    for run in runs:
        run.lease.release_run(run.start, run.end)
    runs.clear()
