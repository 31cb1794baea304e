"""Reconstructions: the CAS's answer with the terms of a file and the fetch info of their chunks.

Chunk ranges count chunks in a xorb, byte ranges count bytes; both are half-open here. On the wire
chunk ranges are half-open too, but byte ranges have an inclusive end.

A v1 answer lists one signed URL for each fetch range. A v2 answer lists URLs that sign several
ranges each. Both are parsed into the same Reconstruction.

Source: xet-core cas_types; hub-docs xet/file-reconstruction.md.
"""

from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

from xetserve.errors import FormatError
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.json_stream import Cursor
from xetserve.xet.shapes import check_integer, check_list, check_text, check_url

MAX_TERM_SIZE: Final = 2**32 - 1
MAX_OFFSET: Final = 2**63 - 1
# hf-xet requests at most 8 GB at once. Clients deduplicate in runs of 512 KiB or more on average,
# which makes 16,000 terms and at worst as many ranges. Our windows have at most 256 MiB, which are
# 32,768 chunks of the smallest size. Python's garbage collector visits all these objects in one
# pass: about 60 ms for this many terms, so there must not be more.
MAX_TERMS: Final = 40_000
MAX_RANGES: Final = 16_384  # fetch ranges, and xorbs
# Chunks of all terms together, and of all fetch ranges: 8 GB of the smallest chunks. A few terms
# can name billions of chunks, and the window planner visits each of them.
MAX_CHUNKS: Final = 2**20
SLICE: Final = 500  # terms or fetch ranges that one step parses
MAX_SEARCHED: Final = 1_000_000  # fetch ranges visited by linear search in one answer


class ChunkRange(NamedTuple):
    """Chunk indices [start, end) of one xorb."""

    start: int
    end: int

    def contains(self, other: "ChunkRange") -> bool:
        """Return whether other lies entirely inside this range."""
        return self.start <= other.start and other.end <= self.end


class ByteRange(NamedTuple):
    """Byte positions [start, end)."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Return the number of bytes in the range."""
        return self.end - self.start

    def to_header(self) -> str:
        """Return the value of a Range header, whose end is inclusive (RFC 9110, 14.1.2)."""
        return f"bytes={self.start}-{self.end - 1}"


class Term(NamedTuple):
    """A run of the file: the decoded chunks of one chunk range. decoded_size is in bytes."""

    xorb_hash: bytes
    chunks: ChunkRange
    decoded_size: int


class FetchInfo(NamedTuple):
    """The byte range of a xorb that holds a chunk range, and the URL that signs it."""

    chunks: ChunkRange
    byte_range: ByteRange
    url: str

    def __repr__(self) -> str:
        # The URL is signed, so it must not appear in a message or log.
        return f"FetchInfo({self.chunks}, {self.byte_range})"


class Reconstruction(NamedTuple):
    """The terms that cover the requested file range, in file order.

    offset_into_first_range: decoded bytes of the first term before the requested start. They may
        span many chunks.
    is_imported: whether any part of it comes from an archive and not from the CAS. An archive may
        be wrong.
    """

    offset_into_first_range: int
    terms: tuple[Term, ...]
    fetch_info: dict[bytes, tuple[FetchInfo, ...]]
    is_imported: bool = False

    @property
    def decoded_size(self) -> int:
        """Return the bytes from the requested start to the end of the last term."""
        return sum(term.decoded_size for term in self.terms) - self.offset_into_first_range

    def _find_nearest(self, term: Term) -> FetchInfo | None:
        """Return the last range that starts at or before the term; None: it does not hold the term.

        If the ranges do not overlap, no other range can hold the term.
        """
        infos = self.fetch_info.get(term.xorb_hash, ())
        at = bisect_right(infos, term.chunks.start, key=_first_chunk) - 1
        return infos[at] if at >= 0 and infos[at].chunks.contains(term.chunks) else None

    def find_fetch_info(self, term: Term) -> FetchInfo:
        """Return a fetch range that holds all of the term's chunks.

        Raises:
            FormatError: no single range holds them; adjacent ranges are not joined.
        """
        info = self._find_nearest(term)
        if info is not None:
            return info
        for info in self.fetch_info.get(term.xorb_hash, ()):
            if info.chunks.contains(term.chunks):
                return info
        raise FormatError(
            f"no fetch range for chunks {term.chunks.start}..{term.chunks.end} "
            f"of xorb {format_hash(term.xorb_hash)}"
        )


def _first_chunk(info: FetchInfo) -> int:
    return info.chunks.start


class TooLarge(FormatError):
    """A reconstruction has more than MAX_TERMS terms, MAX_RANGES ranges or MAX_CHUNKS chunks."""


def parse_reconstruction(body: bytes) -> Reconstruction:
    """Parse a v1 or v2 answer and check that every term can be fetched.

    Raises:
        TooLarge: the answer exceeds MAX_TERMS, MAX_RANGES or MAX_CHUNKS.
        FormatError: the JSON is malformed, a value is out of bounds, a term is not inside one
            fetch range of its xorb, or the offset is not inside the first term.
    """
    steps = iter_reconstruction(body)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def iter_reconstruction(body: bytes) -> Generator[None, None, Reconstruction]:
    """Parse an answer as parse_reconstruction does, in steps of about SLICE terms or ranges."""
    try:
        answer = yield from _read(Cursor(body))
        yield from _check(answer)
        return answer
    except (KeyError, TypeError, AttributeError) as exc:
        raise FormatError(f"reconstruction lacks or mistypes a field: {exc}") from None
    except TooLarge:
        raise
    except (FormatError, ValueError) as exc:
        raise FormatError(f"reconstruction: {exc}") from None


def _read(cursor: Cursor) -> Generator[None, None, Reconstruction]:
    found: dict[str, Any] = {}
    for key in cursor.members():
        if key == "terms" and cursor.opens("["):
            found[key] = yield from _read_terms(cursor)
        elif key == "xorbs" and cursor.opens("{"):
            found[key] = yield from _read_infos(cursor, _read_v2_entry)
        elif key == "fetch_info" and cursor.opens("{"):
            found[key] = yield from _read_infos(cursor, _read_v1_entry)
        else:
            found[key] = cursor.take()
        yield
    cursor.finish()
    terms = found["terms"]
    if not isinstance(terms, tuple):
        raise FormatError("a list is expected as field terms")
    infos = found["xorbs"] if "xorbs" in found else found["fetch_info"]
    if not isinstance(infos, dict):
        raise FormatError("an object is expected as field xorbs or fetch_info")
    offset = check_integer(found.get("offset_into_first_range", 0), MAX_OFFSET)
    return Reconstruction(offset, terms, infos)


def _read_terms(cursor: Cursor) -> Generator[None, None, tuple[Term, ...]]:
    terms = []
    num_chunks = 0
    for _ in cursor.items():
        item = cursor.take()
        terms.append(
            Term(
                parse_hash(check_text(item["hash"])),
                _chunk_range(item["range"]),
                check_integer(item["unpacked_length"], MAX_TERM_SIZE),
            )
        )
        if len(terms) > MAX_TERMS:
            raise TooLarge(f"a reconstruction of more than {MAX_TERMS} terms")
        num_chunks = _count_chunks(num_chunks, terms[-1].chunks)
        if len(terms) % SLICE == 0:
            yield
    return tuple(terms)


def _read_infos(
    cursor: Cursor, read_entry: Callable[[Any], list[FetchInfo]]
) -> Generator[None, None, dict[bytes, tuple[FetchInfo, ...]]]:
    infos: dict[bytes, tuple[FetchInfo, ...]] = {}
    num_ranges = num_since = num_chunks = 0
    for name in cursor.members():
        of_xorb: list[FetchInfo] = []
        read: list[FetchInfo] = []
        entries = cursor.items()
        while True:  # one round more than entries: a xorb without entries counts as one range
            num_ranges += max(1, len(read))
            num_since += max(1, len(read))
            if num_ranges > MAX_RANGES:
                raise TooLarge(f"a reconstruction of more than {MAX_RANGES} fetch ranges")
            if num_since >= SLICE:
                num_since = 0
                yield
            if next(entries, True):
                break
            read = read_entry(cursor.take())
            for info in read:
                num_chunks = _count_chunks(num_chunks, info.chunks)
            of_xorb += read
        infos[parse_hash(name)] = _in_order(of_xorb)
    return infos


def _read_v1_entry(entry: Any) -> list[FetchInfo]:
    chunks, byte_range = _chunk_range(entry["range"]), _byte_range(entry["url_range"])
    return [FetchInfo(chunks, byte_range, check_url(entry["url"]))]


def _read_v2_entry(entry: Any) -> list[FetchInfo]:
    url = check_url(entry["url"])
    return [
        FetchInfo(_chunk_range(part["chunks"]), _byte_range(part["bytes"]), url)
        for part in check_list(entry["ranges"])
    ]


def _count_chunks(num_chunks: int, chunks: ChunkRange) -> int:
    num_chunks += chunks.end - chunks.start
    if num_chunks > MAX_CHUNKS:
        raise TooLarge(f"a reconstruction of more than {MAX_CHUNKS} chunks")
    return num_chunks


def _in_order(infos: Iterable[FetchInfo]) -> tuple[FetchInfo, ...]:
    return tuple(sorted(infos, key=_first_chunk))


def _check(answer: Reconstruction) -> Generator[None, None, None]:
    num_searched = num_steps = 0
    for number, term in enumerate(answer.terms, 1):
        if answer._find_nearest(term) is None:
            num_searched += len(answer.fetch_info.get(term.xorb_hash, ()))
            if num_searched > MAX_SEARCHED:
                raise FormatError("more fetch ranges overlap than can be searched")
            answer.find_fetch_info(term)
        # Visiting a range costs far less than a term: 20 of them count as one term.
        if (number + num_searched // 20) // SLICE > num_steps:
            num_steps = (number + num_searched // 20) // SLICE
            yield
    offset = answer.offset_into_first_range
    first = answer.terms[0].decoded_size if answer.terms else 0
    if offset and offset >= first:
        raise FormatError(f"offset {offset} into a first term of {first} bytes")


def _chunk_range(value: Any) -> ChunkRange:
    start = check_integer(value["start"], 2**32 - 1)
    end = check_integer(value["end"], 2**32 - 1)
    if start >= end:
        raise FormatError(f"chunk range {start}..{end} is empty")
    return ChunkRange(start, end)


def _byte_range(value: Any) -> ByteRange:
    start = check_integer(value["start"], MAX_OFFSET)
    last = check_integer(value["end"], MAX_OFFSET)
    if start > last:
        raise FormatError(f"byte range {start}-{last} is empty")
    return ByteRange(start, last + 1)


def to_v1(answer: Reconstruction) -> dict[str, Any]:
    """Return the v1 JSON value."""
    return {
        "offset_into_first_range": answer.offset_into_first_range,
        "terms": make_terms(answer.terms),
        "fetch_info": {
            format_hash(xorb): list(make_v1_entries(infos))
            for xorb, infos in answer.fetch_info.items()
        },
    }


def to_v2(answer: Reconstruction) -> dict[str, Any]:
    """Return the v2 JSON value; neighbouring fetch ranges with the same URL share an entry."""
    return {
        "offset_into_first_range": answer.offset_into_first_range,
        "terms": make_terms(answer.terms),
        "xorbs": {
            format_hash(xorb): list(make_v2_entries(infos))
            for xorb, infos in answer.fetch_info.items()
        },
    }


def make_terms(terms: Iterable[Term]) -> list[dict[str, Any]]:
    """Return the JSON values of terms."""
    return [
        {
            "hash": format_hash(term.xorb_hash),
            "unpacked_length": term.decoded_size,
            "range": term.chunks._asdict(),
        }
        for term in terms
    ]


def make_v1_entries(infos: Iterable[FetchInfo]) -> Iterator[dict[str, Any]]:
    """Yield the v1 JSON values of a xorb's fetch ranges."""
    for info in infos:
        yield {
            "range": info.chunks._asdict(),
            "url": info.url,
            "url_range": _inclusive(info.byte_range),
        }


def make_v2_entries(infos: Iterable[FetchInfo]) -> Iterator[dict[str, Any]]:
    """Yield the v2 JSON values of a xorb's fetch ranges, one for neighbours that share a URL."""
    for url, group in groupby(infos, key=lambda info: info.url):
        ranges = [
            {"chunks": info.chunks._asdict(), "bytes": _inclusive(info.byte_range)}
            for info in group
        ]
        yield {"url": url, "ranges": ranges}


def _inclusive(byte_range: ByteRange) -> dict[str, int]:
    return {"start": byte_range.start, "end": byte_range.end - 1}
