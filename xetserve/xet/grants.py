"""Data URLs of our own: the right to some ranges of one xorb, and all that serving them takes.

    {base}/xorbs/{xorb hash}?file={file hash}&grant={sealed}

The file hash is for balancers: all data of a file has to go through one instance, which alone can hold the parts against
the whole. Nothing is remembered here of what was granted: the URL itself says where the bytes are to be had upstream, and which terms of
the file use them, so that their chunks can be held against the file. It must not become longer than servers and
proxies take; a URL for many ranges is cut into several, and where even one range is used by too many terms, only the first ones are
named: chunks of the others are checked for themselves, not against the file.

A grant names the instance that made it: of a file that is not proven, only that one has what is needed to hold the parts
against the whole. Of a file that it knew to be proven, the grant has a digest of the chunk hashes of each range, so that any
other can tell whether the range is right:

    digest of a range = BLAKE3, 16 bytes, of the hashes of its chunks that terms use, each once, in the xorb's order
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
from xetserve.xet.sealing import Sealer
from xetserve.xet.shapes import check_integer, check_list, check_text, check_time, check_url

PURPOSE: Final = "data"
DIGEST_SIZE: Final = 16  # bytes
MAX_GRANT_SIZE: Final = 7000  # characters; URLs of 8 KiB are taken everywhere
MAX_SHARED_SIZE: Final = (
    4000  # of one for several ranges: another server of ours may have to seal it once more
)
MAX_URL_RANGES: Final = 500  # ranges of one URL, as upstream has it
MAX_USES: Final = 1000  # terms named in one URL; hardly more fit, and all are packed to see that
SEALED_SLICE: Final = 25  # ranges whose URLs are sealed in one go; one takes 0.1 ms


class TermUse(NamedTuple):
    """A term that needs chunks of a range: which, where in the file they begin, and their decoded size, all in bytes."""

    chunks: ChunkRange
    position: int
    decoded_size: int


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
    issued, expires: Unix seconds.
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
    first, end, position, size = check_list(value)
    return TermUse(
        _read_chunks(first, end),
        check_integer(position, MAX_OFFSET),
        check_integer(size, MAX_TERM_SIZE),
    )


def _read_chunks(first: Any, end: Any) -> ChunkRange:
    chunks = ChunkRange(check_integer(first, 2**32 - 1), check_integer(end, 2**32 - 1))
    if chunks.start >= chunks.end:
        raise FormatError("a chunk range is empty")
    return chunks


def seal_grant(sealer: Sealer, grant: Grant) -> str:
    """Give what open_grant reads."""
    ranges = [
        [
            *each.chunks,
            *each.byte_range,
            [[*use.chunks, *use[1:]] for use in each.uses],
            each.digest,
        ]
        for each in grant.ranges
    ]
    return sealer.seal(PURPOSE, [grant.name, grant.file_name, *grant[2:7], ranges])


FindHashes = Callable[[bytes, int, int], bytes | None]


def make_digest(file_hash: bytes, uses: Iterable[TermUse], find_hashes: FindHashes) -> str:
    """Return the digest of a range; empty where the hashes of one of its terms are not known.

    Args:
        uses: by their first chunk.
        find_hashes: from file hash, position and decoded size in the file to the hashes of the chunks there.
    """
    digest, seen = blake3(), 0
    for use in uses:
        hashes = find_hashes(file_hash, use.position, use.decoded_size)
        if hashes is None or len(hashes) != HASH_SIZE * (use.chunks.end - use.chunks.start):
            return ""
        digest.update(hashes[HASH_SIZE * max(0, seen - use.chunks.start) :])
        seen = max(seen, use.chunks.end)
    return digest.hexdigest(DIGEST_SIZE)


Uses = dict[tuple[bytes, FetchInfo], list[TermUse]]


class Granter:
    """Puts URLs of ours in the place of an upstream's.

    Args:
        base_url: what they begin with, without a slash at the end.
        issued, expires: Unix seconds.
        instance: see Grant.
        find_hashes: see make_digest.
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
            FormatError: terms that lie before the file's start, or a URL that is too long to be carried.
        """
        uses = yield from find_uses(answer, start)
        fetch_info: dict[bytes, tuple[FetchInfo, ...]] = {}
        num_made = 0
        for xorb_hash, infos in self.make_infos(
            answer, uses, file_hash, file_size, has_single_ranges=has_single_ranges
        ):
            made = []
            for info in infos:
                made.append(info)
                num_made += 1
                if num_made % SEALED_SLICE == 0:
                    yield
            fetch_info[xorb_hash] = tuple(made)
        return answer._replace(fetch_info=fetch_info)

    def make_infos(
        self,
        answer: Reconstruction,
        uses: Uses,
        file_hash: bytes,
        file_size: int,
        *,
        has_single_ranges: bool,
    ) -> Iterator[tuple[bytes, Iterator[FetchInfo]]]:
        """Iterate over fetch ranges with our URLs by xorb; each URL is sealed when it is asked for.

        Args:
            uses: see find_uses.
            has_single_ranges: one URL for each range, as v1 wants it.

        Raises:
            FormatError: a URL is too long to be carried.
        """
        limit = 1 if has_single_ranges else MAX_URL_RANGES
        for xorb_hash, infos in answer.fetch_info.items():
            times = (self._issued, self._expires)
            grant = Grant(xorb_hash, file_hash, file_size, "", *times, self._instance, ())
            yield xorb_hash, self._make_xorb_infos(grant, infos, uses, limit)

    def _make_xorb_infos(
        self, grant: Grant, infos: Sequence[FetchInfo], uses: Uses, limit: int
    ) -> Iterator[FetchInfo]:
        for url, group in groupby(infos, key=lambda info: info.url):
            ranges: list[GrantedRange] = []
            num_uses = 0
            for info in group:
                named = uses.get((grant.xorb_hash, info), [])
                used = tuple(named[:MAX_USES])
                num_uses += len(used)
                if len(ranges) == limit or (ranges and num_uses > MAX_USES):
                    yield from self._make_urls(grant._replace(url=url), ranges)
                    ranges, num_uses = [], len(used)
                is_all = len(used) == len(named)
                digest = make_digest(grant.file_hash, used, self._find_hashes) if is_all else ""
                ranges.append(GrantedRange(info.chunks, info.byte_range, used, digest))
            yield from self._make_urls(grant._replace(url=url), ranges)

    def _make_urls(self, grant: Grant, ranges: Sequence[GrantedRange]) -> Iterable[FetchInfo]:
        """Give the ranges with URLs, as few as are not too long."""
        text = seal_grant(self._sealer, grant._replace(ranges=tuple(ranges)))
        middle = len(ranges) // 2
        if len(text) > (MAX_SHARED_SIZE if middle else MAX_GRANT_SIZE):
            if middle:
                yield from self._make_urls(grant, ranges[:middle])
                yield from self._make_urls(grant, ranges[middle:])
                return
            uses = ranges[0].uses
            if not uses:
                raise FormatError("a data URL is too long to be passed on")
            fewer = ranges[0]._replace(uses=uses[: len(uses) // 2], digest="")
            yield from self._make_urls(grant, [fewer])
            return
        url = f"{self._base_url}/xorbs/{grant.name}?file={grant.file_name}&grant={text}"
        for each in ranges:
            yield FetchInfo(each.chunks, each.byte_range, url)


def find_uses(answer: Reconstruction, start: int) -> Generator[None, None, Uses]:
    """Find the terms that use each fetch range, in steps of a few milliseconds.

    Of more than MAX_USES, one more than that is listed.

    Args:
        start: byte of the file that the answer was asked from.

    Raises:
        FormatError: a term lies before the file's start.
    """
    uses: Uses = {}
    position = start - answer.offset_into_first_range
    if position < 0:
        raise FormatError(f"the first term starts at byte {position} of the file")
    for number, term in enumerate(answer.terms, 1):
        use = TermUse(term.chunks, position, term.decoded_size)
        found = uses.setdefault((term.xorb_hash, answer.find_fetch_info(term)), [])
        if len(found) <= MAX_USES:  # one more than is named shows that there are more
            found.append(use)
        position += term.decoded_size
        if number % SLICE == 0:
            yield
    for found in uses.values():
        found.sort()
    return uses
