"""Where the chunks of answers came from: so what is proven of a file is known of the entries that
its chunks were read from.

Only the very bytes that were hashed count. A chunk that came from a store, or is being stored, has
an origin; when it turns out to be right, its origin is told. Pure.
"""

from typing import Final

from xetserve.upstream.cas.source import Provenance
from xetserve.xet.reconstruction import ChunkRange

# that are remembered of one file, some 3 MB, 1 TB of whole xorbs; beyond them, entries stay
# unproven
MAX_RUNS: Final = 16_384


class ProvenanceLog:
    """Chunks of one file that are not proven yet, by where they came from."""

    def __init__(self) -> None:
        self._runs: list[tuple[Provenance, ChunkRange]] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, origin: Provenance, chunk: int) -> None:
        """Note the next chunk."""
        if self._runs:
            last, chunks = self._runs[-1]
            if last is origin and chunks.end == chunk:
                self._runs[-1] = (origin, ChunkRange(chunks.start, chunk + 1))
                return
        if len(self._runs) < MAX_RUNS:
            self._runs.append((origin, ChunkRange(chunk, chunk + 1)))

    def take(self, other: "ProvenanceLog") -> None:
        """Take over all that another one has."""
        self._runs += other._runs[: MAX_RUNS - len(self._runs)]
        other.clear()

    def prove(self) -> None:
        """Tell all origins that what was read from them is right, and forget them."""
        runs, self._runs = self._runs, []
        for origin, chunks in runs:
            origin.note_proven(chunks)

    def clear(self) -> None:
        """Forget all of it: some is wrong, or nobody will know."""
        self._runs.clear()
