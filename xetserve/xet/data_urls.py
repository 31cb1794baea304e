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

The grant itself is described in grants.py, and the terms that it lists in term_uses.py.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from xetserve.errors import FormatError
from xetserve.xet.grants import MAX_PLACES, Grant, GrantedRange, TermUse, seal_grant
from xetserve.xet.reconstruction import FetchInfo, Reconstruction
from xetserve.xet.signing import Sealer
from xetserve.xet.term_uses import FindHashes, Named, Names, find_uses, prove_uses

MAX_GRANT_SIZE: Final = 7000  # characters; servers and proxies accept URLs of 8 KiB
# Characters of a grant for several ranges: another xetserve behind this one may seal it again.
MAX_SHARED_SIZE: Final = 4000
MAX_URL_RANGES: Final = 500  # ranges in one URL, as in the CAS's answers
# Positions and gaps in one URL, see _count_named. About this many fit; only sealing shows the size.
MAX_USES: Final = 1000
MANY_USES: Final = 50  # above this many in one range, a trial seal checks whether they fit
SEALED_SLICE: Final = 25  # URLs sealed in one step; one takes 0.1 ms


class TooManyUses(FormatError):
    """More terms use a range than fit into a URL."""


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
