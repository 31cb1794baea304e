"""The terms of a file that use a fetch range, and the digest that proves their chunks."""

from collections.abc import Callable, Generator, Iterable
from typing import Final, NamedTuple

from blake3 import blake3

from xetserve.errors import FormatError
from xetserve.xet.grants import DIGEST_SIZE, TermUse
from xetserve.xet.hashes import HASH_SIZE
from xetserve.xet.reconstruction import SLICE, ChunkRange, FetchInfo, Reconstruction

LOOK_UPS: Final = 500  # hash lookups in one step

FindHashes = Callable[[bytes, int, int], bytes | None]


class Named(NamedTuple):
    """The terms of a range that a grant lists, and the digest of the range."""

    uses: tuple[TermUse, ...]
    digest: str

    def is_good_for(self, other: "Named") -> bool:
        """Return whether this proves the range for the terms of another file too.

        It does if both have the same digest over the same chunk ranges.
        """
        chunks, others = ([use.chunks for use in each.uses] for each in (self, other))
        return self is other or (
            bool(self.digest) and (self.digest, chunks) == (other.digest, others)
        )


Uses = dict[tuple[bytes, FetchInfo], list[TermUse]]
Names = dict[tuple[bytes, FetchInfo], Named]


def prove_uses(
    file_hash: bytes, uses: Iterable[TermUse], find_hashes: FindHashes
) -> Generator[None, None, Named]:
    """Find one place of each chunk of a range and the digest, in steps of a few milliseconds.

    The digest is empty if the chunk hashes of a term are unknown, or if two terms have different
    hashes for the same chunk.

    Args:
        uses: the terms of the range, ordered by their first chunk.
        find_hashes: takes file hash, position and decoded size; returns the concatenated hashes
            of the chunks there, or None.
    """
    digest, seen = blake3(), 0
    cover = []
    base, known = 0, bytearray()  # hashes of consecutive chunks from base on
    num_looked_up = 0
    for use in uses:
        hashes = find_hashes(file_hash, use.position, use.decoded_size)
        if hashes is None or len(hashes) != HASH_SIZE * (use.chunks.end - use.chunks.start):
            return Named((), "")
        for position in use.iter_positions():
            num_looked_up += 1
            if num_looked_up % LOOK_UPS == 0:
                yield
            if find_hashes(file_hash, position, use.decoded_size) != hashes:
                return Named((), "")
        if use.chunks.start > seen or not known:
            base, known = use.chunks.start, bytearray()
        at = HASH_SIZE * (use.chunks.start - base)
        num_shared = min(len(known) - at, len(hashes))
        if known[at : at + num_shared] != hashes[:num_shared]:
            return Named((), "")
        if use.chunks.end > seen:
            cover.append(use._replace(gaps=()))
        digest.update(hashes[num_shared:])
        known += hashes[num_shared:]
        seen = max(seen, use.chunks.end)
    return Named(tuple(cover), digest.hexdigest(DIGEST_SIZE))


def find_uses(answer: Reconstruction, start: int) -> Generator[None, None, Uses]:
    """Find the terms that use each fetch range, ordered by their first chunk.

    Runs in steps of a few milliseconds.

    Args:
        start: the requested start of the answer, in bytes of the file.

    Raises:
        FormatError: a term lies before the start of the file.
    """
    position = start - answer.offset_into_first_range
    if position < 0:
        raise FormatError(f"the first term starts at byte {position} of the file")
    found: dict[tuple[bytes, FetchInfo], dict[tuple[ChunkRange, int], _Repeats]] = {}
    for number, term in enumerate(answer.terms, 1):
        uses = found.setdefault((term.xorb_hash, answer.find_fetch_info(term)), {})
        repeats = uses.get((term.chunks, term.decoded_size))
        if repeats is None:
            uses[term.chunks, term.decoded_size] = _Repeats(position)
        else:
            repeats.add(position)
        position += term.decoded_size
        if number % SLICE == 0:
            yield
    return {
        key: sorted(
            TermUse(chunks, each.first, size, tuple(each.gaps))
            for (chunks, size), each in uses.items()
        )
        for key, uses in found.items()
    }


class _Repeats:
    """The positions of terms with the same chunks, in file order."""

    def __init__(self, position: int) -> None:
        self.first = position
        self.gaps: list[int] = []  # see TermUse
        self._last = position

    def add(self, position: int) -> None:
        gap, self._last = position - self._last, position
        if self.gaps and self.gaps[-2] == gap:
            self.gaps[-1] += 1
        else:
            self.gaps += (gap, 1)
