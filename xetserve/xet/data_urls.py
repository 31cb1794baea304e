"""Our own data URLs: a URL holds a sealed grant for some ranges of one xorb.

    {base}/xorbs/{xorb hash}?file={file hash}&grant={sealed}

The server stores nothing about a grant. The grant itself names the upstream URL of the bytes, and
the terms of the file that use them, so that the server can verify their chunks against the file
hash. The file hash is in the query for load balancers: all data of a file must go through one
instance, because only one instance that sees all parts can verify the whole file.

A URL must not exceed the limits of servers and proxies, so a URL for many ranges is split into
several. Terms with the same chunks are listed as one TermUse; terms at a constant distance in the
file take no more space than two. If one range is used by more terms than fit into a URL, the server
refuses the file unless it is proven, because it could not verify the whole file.

A file is proven once its chunk hashes have been checked against its file hash. A grant for a file
that is not proven names the instance that made it, because only this instance can verify the parts.
A grant for a proven file holds a digest for each range, so that every instance can verify it:

    digest of a range = BLAKE3, 16 bytes, of the hashes of the chunks that terms use, each once, in
    the order of the xorb

The granter checks that all terms that use a chunk have the same hash for it. A grant with a digest
therefore lists only one place of each chunk.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from blake3 import blake3

from xetserve.errors import FormatError
from xetserve.xet.hashes import HASH_SIZE, format_hash, parse_hash
from xetserve.xet.reconstruction import (
    MAX_OFFSET,
    MAX_TERM_SIZE,
    SLICE,
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
)
from xetserve.xet.shapes import check_integer, check_list, check_text, check_time, check_url
from xetserve.xet.signing import Sealer

PURPOSE: Final = "data"
DIGEST_SIZE: Final = 16  # bytes
MAX_GRANT_SIZE: Final = 7000  # characters; servers and proxies accept URLs of 8 KiB
# Characters of a grant for several ranges: another xetserve behind this one may seal it again.
MAX_SHARED_SIZE: Final = 4000
MAX_URL_RANGES: Final = 500  # ranges in one URL, as in the CAS's answers
# Positions and gaps in one URL, see _count_named. About as many fit; only sealing shows the size.
MAX_USES: Final = 1000
MANY_USES: Final = 50  # above this many in one range, a trial seal checks whether they fit
MAX_PLACES: Final = 2**16  # places of all chunks of a range; 8 GB of zeros have as many
LOOK_UPS: Final = 500  # hash lookups in one step
SEALED_SLICE: Final = 25  # URLs sealed in one step; one takes 0.1 ms


class TooManyUses(FormatError):
    """More terms use a range than fit into a URL."""


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


class Granter:
    """A maker of our data URLs, which replace an upstream's.

    Args:
        base_url: the start of each URL, without a slash at the end.
        issued, expires: see Grant.
        instance: see Grant.
        find_hashes: see prove_uses.
    """

    def __init__(
        self,
        sealer: Sealer,
        base_url: str,
        *,
        issued: float,
        expires: float,
        instance: str,
        find_hashes: FindHashes = lambda file_hash, position, size: None,
    ) -> None:
        self._find_hashes = find_hashes
        self._sealer = sealer
        self._base_url = base_url
        self._issued = issued
        self._expires = expires
        self._instance = instance

    def rewrite(
        self,
        answer: Reconstruction,
        start: int,
        file_hash: bytes,
        file_size: int,
        *,
        has_single_ranges: bool,
    ) -> Reconstruction:
        """Return a reconstruction with our URLs; see iter_rewrite."""
        steps = self.iter_rewrite(
            answer, start, file_hash, file_size, has_single_ranges=has_single_ranges
        )
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def iter_rewrite(
        self,
        answer: Reconstruction,
        start: int,
        file_hash: bytes,
        file_size: int,
        *,
        has_single_ranges: bool,
    ) -> Generator[None, None, Reconstruction]:
        """Make a reconstruction with our URLs, in steps of a few milliseconds.

        Args:
            start: the requested start of the answer, in bytes of the file.
            has_single_ranges: make one URL for each range, as v1 requires.

        Raises:
            FormatError: a term lies before the start of the file, or a URL is too long.
            TooManyUses: see iter_names.
        """
        names = yield from self.iter_names(answer, start, file_hash, file_size)
        return (
            yield from self.iter_infos(
                answer, names, file_hash, file_size, has_single_ranges=has_single_ranges
            )
        )

    def iter_infos(
        self,
        answer: Reconstruction,
        names: Names,
        file_hash: bytes,
        file_size: int,
        *,
        has_single_ranges: bool,
    ) -> Generator[None, None, Reconstruction]:
        """Make a reconstruction with our URLs, in steps of a few milliseconds; see make_infos."""
        fetch_info: dict[bytes, tuple[FetchInfo, ...]] = {}
        num_made = 0
        for xorb_hash, infos in self.make_infos(
            answer, names, file_hash, file_size, has_single_ranges=has_single_ranges
        ):
            made = []
            for info in infos:
                made.append(info)
                num_made += 1
                if num_made % SEALED_SLICE == 0:
                    yield
            fetch_info[xorb_hash] = tuple(made)
        return answer._replace(fetch_info=fetch_info)

    def iter_names(
        self, answer: Reconstruction, start: int, file_hash: bytes, file_size: int
    ) -> Generator[None, None, Names]:
        """Find the terms and digest for each fetch range, in steps of a few milliseconds.

        Args:
            start: the requested start of the answer, in bytes of the file.

        Raises:
            FormatError: a term lies before the start of the file.
            TooManyUses: the file is not proven, and its terms do not fit into grants.
        """
        found = yield from find_uses(answer, start)
        names: Names = {}
        for key, uses in found.items():
            yield
            named = yield from prove_uses(file_hash, uses, self._find_hashes)
            names[key] = named if named.digest else Named(tuple(uses), "")
            if not named.digest:
                self._check_uses(*key, names[key].uses, file_hash, file_size)
        return names

    def _check_uses(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        uses: tuple[TermUse, ...],
        file_hash: bytes,
        file_size: int,
    ) -> None:
        """Check that all terms of a range fit into one URL.

        Raises:
            TooManyUses: they do not.
        """
        num_named = _count_named(uses)
        fits = num_named <= MAX_USES and sum(use.num_places for use in uses) <= MAX_PLACES
        if fits and num_named > MANY_USES:
            ranges = (GrantedRange(info.chunks, info.byte_range, uses),)
            times = (self._issued, self._expires)
            grant = Grant(xorb_hash, file_hash, file_size, info.url, *times, self._instance, ranges)
            fits = len(seal_grant(self._sealer, grant)) <= MAX_GRANT_SIZE
        if not fits:
            raise TooManyUses(
                "the file uses the same data in too many places to verify it part by part, and "
                "this server has not verified the whole file yet: download it without Xet "
                "(HF_HUB_DISABLE_XET=1)"
            )

    def make_infos(
        self,
        answer: Reconstruction,
        names: Names,
        file_hash: bytes,
        file_size: int,
        *,
        has_single_ranges: bool,
    ) -> Iterator[tuple[bytes, Iterator[FetchInfo]]]:
        """Yield xorb hashes and their fetch ranges with our URLs; each URL is sealed on iteration.

        Args:
            names: the result of iter_names.
            has_single_ranges: make one URL for each range, as v1 requires.

        Raises:
            FormatError: a URL is too long.
        """
        limit = 1 if has_single_ranges else MAX_URL_RANGES
        for xorb_hash, infos in answer.fetch_info.items():
            times = (self._issued, self._expires)
            grant = Grant(xorb_hash, file_hash, file_size, "", *times, self._instance, ())
            yield xorb_hash, self._make_xorb_infos(grant, infos, names, limit)

    def _make_xorb_infos(
        self, grant: Grant, infos: Sequence[FetchInfo], names: Names, limit: int
    ) -> Iterator[FetchInfo]:
        for url, group in groupby(infos, key=lambda info: info.url):
            ranges: list[GrantedRange] = []
            num_named = 0
            for info in group:
                named = names.get((grant.xorb_hash, info), Named((), ""))
                num_of_range = _count_named(named.uses)
                num_named += num_of_range
                if len(ranges) == limit or (ranges and num_named > MAX_USES):
                    yield from self._make_urls(grant._replace(url=url), ranges)
                    ranges, num_named = [], num_of_range
                ranges.append(GrantedRange(info.chunks, info.byte_range, *named))
            yield from self._make_urls(grant._replace(url=url), ranges)

    def _make_urls(self, grant: Grant, ranges: Sequence[GrantedRange]) -> Iterable[FetchInfo]:
        """Yield the ranges with as few URLs as the size limits allow."""
        text = seal_grant(self._sealer, grant._replace(ranges=tuple(ranges)))
        middle = len(ranges) // 2
        if len(text) > (MAX_SHARED_SIZE if middle else MAX_GRANT_SIZE):
            if middle:
                yield from self._make_urls(grant, ranges[:middle])
                yield from self._make_urls(grant, ranges[middle:])
                return
            raise FormatError(
                f"a data URL is too long: its grant exceeds {MAX_GRANT_SIZE} characters"
            )
        url = f"{self._base_url}/xorbs/{grant.name}?file={grant.file_name}&grant={text}"
        for each in ranges:
            yield FetchInfo(each.chunks, each.byte_range, url)


def _count_named(uses: Iterable[TermUse]) -> int:
    """Return the number of positions and gaps that the terms take in a grant."""
    return sum(1 + len(use.gaps) // 2 for use in uses)


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
