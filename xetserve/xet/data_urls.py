"""Data URLs of our own: the right to some ranges of one xorb, and all that serving them takes.

    {base}/xorbs/{xorb hash}?file={file hash}&grant={sealed}

The file hash is for balancers: all data of a file has to go through one instance, which alone can
hold the parts against the whole. Nothing is remembered here of what was granted: the URL itself
says where the bytes are to be had upstream, and which terms of the file use them, so that their
chunks can be held against the file. It must not become longer than servers and proxies take; a URL
for many ranges is cut into several. Terms that have the same chunks are named together, and those
at a constant distance take no more room than two. Where even one range has more terms than can be
named, a file that is not proven is refused: nothing would hold all of it against the whole.

A grant names the instance that made it: of a file that is not proven, only that one has what is
needed to hold the parts against the whole. Of a file that it knew to be proven, the grant has a
digest of the chunk hashes of each range, so that any other can tell whether the range is right.
That all terms which have a chunk find it right at their places is seen when the grant is made; one
place of each chunk is named then:

    digest of a range = BLAKE3, 16 bytes, of the hashes of its chunks that terms use, each once, in
    the xorb's order
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
MAX_GRANT_SIZE: Final = 7000  # characters; URLs of 8 KiB are taken everywhere
MAX_SHARED_SIZE: Final = (
    4000  # of one for several ranges: another server of ours may have to seal it once more
)
MAX_URL_RANGES: Final = 500  # ranges of one URL, as upstream has it
MAX_USES: Final = (
    1000  # numbers that name terms in one URL; hardly more fit, and all are packed to see that
)
MANY_USES: Final = 50  # such numbers of one range from which on it is tried first whether they fit
MAX_PLACES: Final = 2**16  # of all chunks of a range; 8 GB of zeros
LOOK_UPS: Final = 500  # of terms in a list, in one go
SEALED_SLICE: Final = 25  # ranges whose URLs are sealed in one go; one takes 0.1 ms


class TooManyUses(FormatError):
    """A range that more terms use than a URL can name."""


class TermUse(NamedTuple):
    """Terms that need the same chunks of a range: which, where in the file the first begins, and
    their decoded size, in bytes.

    gaps: from the place of one term to that of the next, bytes, and how many follow each other so,
        in turns.
    """

    chunks: ChunkRange
    position: int
    decoded_size: int
    gaps: tuple[int, ...] = ()

    @property
    def num_terms(self) -> int:
        """How many terms these are."""
        return 1 + sum(self.gaps[1::2])

    @property
    def num_places(self) -> int:
        """How many places of the file they fill, one chunk in each."""
        return self.num_terms * (self.chunks.end - self.chunks.start)

    def iter_positions(self) -> Iterator[int]:
        """Iterate over where the terms begin, in bytes."""
        position = self.position
        yield position
        for gap, count in zip(self.gaps[::2], self.gaps[1::2], strict=True):
            for _ in range(count):
                position += gap
                yield position


class GrantedRange(NamedTuple):
    """A range of a xorb, and the terms of the file that it is for, by their first chunk.

    digest: of its chunk hashes, in hex; empty: the file was not proven.
    """

    chunks: ChunkRange
    byte_range: ByteRange
    uses: tuple[TermUse, ...]
    digest: str = ""


class Grant(NamedTuple):
    """What a data URL allows.

    file_hash, file_size: of the file that it is for, in bytes.
    url: the upstream's data URL, which signs the ranges.
    issued: seconds of the steady clock of the machine, for the instance that made it: the other one
        may be set meanwhile.
    expires: Unix seconds.
    instance: a name of the server that made it, from its start on.
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
        # The URL is a signature: it must not get into a log.
        return f"Grant({self.name}, {len(self.ranges)} ranges)"

    @property
    def name(self) -> str:
        """The xorb hash as text."""
        return format_hash(self.xorb_hash)

    @property
    def file_name(self) -> str:
        """The file hash as text."""
        return format_hash(self.file_hash)

    @property
    def is_of_proven_file(self) -> bool:
        """Whether the file was proven where this was made, and all ranges have their digests."""
        return all(each.digest for each in self.ranges)

    def find(self, wanted: ByteRange) -> GrantedRange | None:
        """Return the range that has exactly these bytes; None: none is granted."""
        return next((each for each in self.ranges if each.byte_range == wanted), None)


def open_grant(sealer: Sealer, text: str) -> Grant | None:
    """Return what is sealed in a data URL; None: not by us, or not as this version does it."""
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
        raise FormatError("a granted range is empty, or does not hold its terms")
    return GrantedRange(chunks, byte_range, found, check_text(digest))


def _read_use(value: Any) -> TermUse:
    first, end, position, size, *gaps = check_list(value)
    if len(gaps) % 2:
        raise FormatError("a gap between terms without a number")
    use = TermUse(
        _read_chunks(first, end),
        check_integer(position, MAX_OFFSET),
        check_integer(size, MAX_TERM_SIZE),
        tuple(check_integer(each, MAX_OFFSET) for each in gaps),
    )
    if use.num_places > MAX_PLACES:
        raise FormatError("more terms than can be looked at")
    return use


def _read_chunks(first: Any, end: Any) -> ChunkRange:
    chunks = ChunkRange(check_integer(first, 2**32 - 1), check_integer(end, 2**32 - 1))
    if chunks.start >= chunks.end:
        raise FormatError("a chunk range is empty")
    return chunks


def seal_grant(sealer: Sealer, grant: Grant) -> str:
    """Return what open_grant reads."""
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
    """The terms of a range that a grant names, and its digest."""

    uses: tuple[TermUse, ...]
    digest: str

    def is_good_for(self, other: "Named") -> bool:
        """Return whether what it names of the range proves it for what another file has of it,
        too.
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
    """Name one place of each chunk of a range, with the digest, in steps of a few milliseconds.

    The digest is empty where the hashes of one of the terms are not known, or two differ in what
    the same chunk is.

    Args:
        uses: by their first chunk.
        find_hashes: from file hash, position and decoded size in the file to the hashes of the
            chunks there.
    """
    digest, seen = blake3(), 0
    cover = []
    base, known = 0, bytearray()  # hashes of chunks without a gap, up to those seen last
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
    """Puts URLs of ours in the place of an upstream's.

    Args:
        base_url: what they begin with, without a slash at the end.
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
        """Return an answer with our URLs; see iter_rewrite."""
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
        """Make an answer with our URLs, in steps of a few milliseconds.

        Args:
            start: byte of the file that the answer was asked from.
            has_single_ranges: one URL for each range, as v1 wants it.

        Raises:
            FormatError: terms that lie before the file's start, or a URL that is too long to be
                carried.
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
        """Make an answer with our URLs, in steps of a few milliseconds; see make_infos."""
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
        """Find what the grants will name of each fetch range, in steps of a few milliseconds.

        Args:
            start: byte of the file that the answer was asked from.

        Raises:
            FormatError: a term lies before the file's start.
            TooManyUses: the file is not proven, and cannot be by grants.
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
        """Look whether the terms of a range can all be named in one URL.

        Raises:
            TooManyUses: they cannot.
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
                "the file uses the same data in more places than can be held against it part by part, and it is not proven "
                "here: download it whole, without Xet (HF_HUB_DISABLE_XET=1)"
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
        """Iterate over fetch ranges with our URLs by xorb; each URL is sealed when it is asked for.

        Args:
            names: see iter_names.
            has_single_ranges: one URL for each range, as v1 wants it.

        Raises:
            FormatError: a URL is too long to be carried.
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
        """Yield the ranges with URLs, as few as are not too long."""
        text = seal_grant(self._sealer, grant._replace(ranges=tuple(ranges)))
        middle = len(ranges) // 2
        if len(text) > (MAX_SHARED_SIZE if middle else MAX_GRANT_SIZE):
            if middle:
                yield from self._make_urls(grant, ranges[:middle])
                yield from self._make_urls(grant, ranges[middle:])
                return
            raise FormatError("a data URL is too long to be passed on")
        url = f"{self._base_url}/xorbs/{grant.name}?file={grant.file_name}&grant={text}"
        for each in ranges:
            yield FetchInfo(each.chunks, each.byte_range, url)


def _count_named(uses: Iterable[TermUse]) -> int:
    """Return how many numbers name terms, counted in what one term without gaps takes."""
    return sum(1 + len(use.gaps) // 2 for use in uses)


def find_uses(answer: Reconstruction, start: int) -> Generator[None, None, Uses]:
    """Find the terms that use each fetch range, by their first chunk, in steps of a few
    milliseconds.

    Args:
        start: byte of the file that the answer was asked from.

    Raises:
        FormatError: a term lies before the file's start.
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
    """Where terms with the same chunks are, one after the other."""

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
