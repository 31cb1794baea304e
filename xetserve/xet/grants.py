"""Grants: the permission that a data URL of ours carries, sealed as text.

A file is proven once its chunk hashes have been checked against its file hash. A grant for a file
that is not proven names the instance that made it, because only this instance can verify the parts.
A grant for a proven file holds a digest for each range, so that every instance can verify it:

    digest of a range = BLAKE3, 16 bytes, of the hashes of the chunks that terms use, each once, in
    the order of the xorb

The granter checks that all terms that use a chunk have the same hash for it. A grant with a digest
therefore lists only one place of each chunk.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from xetserve.errors import FormatError
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import MAX_OFFSET, MAX_TERM_SIZE, ByteRange, ChunkRange
from xetserve.xet.shapes import check_integer, check_list, check_text, check_time, check_url
from xetserve.xet.signing import Sealer

PURPOSE: Final = "data"
DIGEST_SIZE: Final = 16  # bytes
MAX_PLACES: Final = 2**16  # places of all chunks of a range; 8 GB of zeros have as many


class TermUse(NamedTuple):
    """Terms of a file that use the same chunks of a range. Sizes and positions are in bytes.

    position: where the first term starts in the file.
    decoded_size: of each term.
    gaps: pairs of numbers: the distance from one term's start to the next, and how many terms
        follow at this distance. Terms at 0, 10, 20 and 50 have position 0 and gaps (10, 2, 30, 1).
    """

    chunks: ChunkRange
    position: int
    decoded_size: int
    gaps: tuple[int, ...] = ()

    @property
    def num_terms(self) -> int:
        """Return the number of terms."""
        return 1 + sum(self.gaps[1::2])

    @property
    def num_places(self) -> int:
        """Return the number of places in the file that these terms fill, one chunk each."""
        return self.num_terms * (self.chunks.end - self.chunks.start)

    def iter_positions(self) -> Iterator[int]:
        """Yield the position in the file where each term starts, in bytes."""
        position = self.position
        yield position
        for gap, count in zip(self.gaps[::2], self.gaps[1::2], strict=True):
            for _ in range(count):
                position += gap
                yield position


class GrantedRange(NamedTuple):
    """A range of a xorb, and the terms of the file that use it, ordered by their first chunk.

    digest: of its chunk hashes, in hex, see the module; empty: the file was not proven.
    """

    chunks: ChunkRange
    byte_range: ByteRange
    uses: tuple[TermUse, ...]
    digest: str = ""


class Grant(NamedTuple):
    """The permission that a data URL carries.

    file_hash, file_size: the file that the ranges belong to; its size is in bytes.
    url: the upstream's data URL, which signs the ranges.
    issued: seconds on the monotonic clock of the issuing instance, which clock changes do not move.
    expires: Unix seconds.
    instance: the name of the issuing instance, new at each start.
    """

    xorb_hash: bytes
    file_hash: bytes
    file_size: int
    url: str
    issued: float
    expires: float
    instance: str
    ranges: tuple[GrantedRange, ...]

    def __repr__(self) -> str:
        # The URL is signed, so it must not appear in a log.
        return f"Grant({self.name}, {len(self.ranges)} ranges)"

    @property
    def name(self) -> str:
        """Return the xorb hash in its string form."""
        return format_hash(self.xorb_hash)

    @property
    def file_name(self) -> str:
        """Return the file hash in its string form."""
        return format_hash(self.file_hash)

    @property
    def is_of_proven_file(self) -> bool:
        """Return whether the issuing instance had proven the file: all ranges have a digest."""
        return all(each.digest for each in self.ranges)

    def find(self, wanted: ByteRange) -> GrantedRange | None:
        """Return the granted range with exactly these bytes; None: there is none."""
        return next((each for each in self.ranges if each.byte_range == wanted), None)


def open_grant(sealer: Sealer, text: str) -> Grant | None:
    """Return the grant sealed in a data URL; None: another key or another version sealed it."""
    value = sealer.unseal(PURPOSE, text)
    try:
        return _read_grant(value)
    except (FormatError, ValueError):
        return None


def _read_grant(value: Any) -> Grant:
    xorb, file, size, url, issued, expires, instance, ranges = check_list(value)
    return Grant(
        parse_hash(check_text(xorb)),
        parse_hash(check_text(file)),
        check_integer(size, MAX_OFFSET),
        check_url(url),
        check_time(issued),
        check_time(expires),
        check_text(instance),
        tuple(map(_read_range, check_list(ranges))),
    )


def _read_range(value: Any) -> GrantedRange:
    first, end, start, stop, uses, digest = check_list(value)
    chunks = _read_chunks(first, end)
    byte_range = ByteRange(check_integer(start, MAX_OFFSET), check_integer(stop, MAX_OFFSET))
    found = tuple(map(_read_use, check_list(uses)))
    if byte_range.size <= 0 or not all(chunks.contains(use.chunks) for use in found):
        raise FormatError("a granted range is empty or does not hold its terms")
    return GrantedRange(chunks, byte_range, found, check_text(digest))


def _read_use(value: Any) -> TermUse:
    first, end, position, size, *gaps = check_list(value)
    if len(gaps) % 2:
        raise FormatError("a gap between terms has no count")
    use = TermUse(
        _read_chunks(first, end),
        check_integer(position, MAX_OFFSET),
        check_integer(size, MAX_TERM_SIZE),
        tuple(check_integer(each, MAX_OFFSET) for each in gaps),
    )
    if use.num_places > MAX_PLACES:
        raise FormatError(f"terms fill more than {MAX_PLACES} places of a file")
    return use


def _read_chunks(first: Any, end: Any) -> ChunkRange:
    chunks = ChunkRange(check_integer(first, 2**32 - 1), check_integer(end, 2**32 - 1))
    if chunks.start >= chunks.end:
        raise FormatError("a chunk range is empty")
    return chunks


def seal_grant(sealer: Sealer, grant: Grant) -> str:
    """Return a grant sealed as text, which open_grant reads."""
    ranges = [
        [
            *each.chunks,
            *each.byte_range,
            [[*use.chunks, *use[1:3], *use.gaps] for use in each.uses],
            each.digest,
        ]
        for each in grant.ranges
    ]
    return sealer.seal(PURPOSE, [grant.name, grant.file_name, *grant[2:7], ranges])
