"""Reconstructions on disk, without their URLs, by file hash and range.

They depend on no token and never change. Their URLs are placeholders, so the data must come from
the disk cache. An answer is stored from the start of its first chunk, whichever byte of the chunk
was requested. It is not stored if stored answers of about its size cover it, so reading a file byte
by byte stores one answer for each chunk.

An imported reconstruction may be wrong, even if every record is right for its xorb. It is marked as
imported, and used only by callers that verify the data against the file hash.
"""

import asyncio
import re
from bisect import bisect_left, insort
from typing import Final, NamedTuple

from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError, RangeUnsatisfiable
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.answers.stored_file import Stored
from xetserve.upstream.slices import run_slices
from xetserve.xet.hashes import format_hash
from xetserve.xet.merge import Part, join_parts
from xetserve.xet.reconstruction import ByteRange, Reconstruction, iter_reconstruction
from xetserve.xet.reconstruction_writer import PIECE_SIZE, write_plan

STORED_URL: Final = "http://stored.invalid/"
MAX_STORED_SIZE: Final = 4 * 1024 * 1024  # bytes of one answer
MAX_JOINED_SIZE: Final = 8 * 1024 * 1024  # bytes of the stored answers that one question may read
MAX_TERMS_AT_ONCE: Final = 500  # terms that are joined in one turn of the loop
MAX_JOINED: Final = 1000  # stored answers that one question may read
MAX_RANGES: Final = 10_000  # stored ranges of a file
MAX_KNOWN: Final = 50_000  # remembered ranges of all files; each file counts as FILE_COST more
FILE_COST: Final = 10
MUCH_LARGER: Final = 4  # times; reading an answer that is larger takes longer than storing another

_RANGE: Final = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)
_END: Final = re.compile(r"end-(\d{1,18})", re.ASCII)


class _Known(NamedTuple):
    """The stored ranges of a file, in order, and the end of the file, if it is known."""

    ranges: list[ByteRange]
    end: int | None

    def add(self, one: ByteRange) -> None:
        """Add a range, unless it is known."""
        if not self.has(one):
            insort(self.ranges, one)

    def has(self, one: ByteRange) -> bool:
        """Return whether exactly this range is known."""
        at = bisect_left(self.ranges, one)
        return at < len(self.ranges) and self.ranges[at] == one

    def discard(self, one: ByteRange) -> None:
        """Remove a range."""
        if self.has(one):
            del self.ranges[bisect_left(self.ranges, one)]

    def covers(self, wanted: ByteRange) -> bool:
        """Return whether one range that is not much larger, or finer ones together, cover a range.

        Only ranges that may count are looked at: none that starts before the first one small
        enough.
        """
        limit = MUCH_LARGER * wanted.size
        position = wanted.start
        at = bisect_left(self.ranges, (wanted.start - limit,))
        while at < len(self.ranges) and self.ranges[at].start <= position:
            one = self.ranges[at]
            if one.size <= limit and one.end >= wanted.end:
                return True
            if one.size <= wanted.size:
                position = max(position, one.end)
            if position >= wanted.end:
                return True
            at += 1
        return False


class ReconstructionArchive:
    """Reconstructions on disk, without their URLs."""

    def __init__(self, store: AnswerStore) -> None:
        self._store = store
        self._known: LruDict[bytes, _Known] = LruDict(max_cost=MAX_KNOWN)

    async def add(self, file_hash: bytes, asked: ByteRange, answer: Reconstruction) -> None:
        """Store an answer, unless stored ones cover it."""
        known = await self._list(file_hash)
        end = asked.start + answer.decoded_size
        if end < asked.end and known.end is None:
            self._note_end(file_hash, known, end)
        covered = ByteRange(asked.start - answer.offset_into_first_range, end)
        if end <= asked.start or covered.start < 0 or known.covers(covered):
            return
        if len(known.ranges) >= MAX_RANGES:
            return
        body = await pack_plan(_without_urls(answer._replace(offset_into_first_range=0)))
        if body is not None:
            known = await self._list(file_hash)  # other tasks may have changed it meanwhile
            known.add(covered)
            self._remember(file_hash, known)
            path = f"{make_plan_folder(file_hash)}/{covered.start}-{covered.end}"
            self._store.write(path, Stored(0.0, body))

    async def note_past_end(self, file_hash: bytes, position: int) -> None:
        """Record that a file ends at position, if all before it is known."""
        known = await self._list(file_hash)
        if known.end is None and _find_end(known.ranges) == position:
            self._note_end(file_hash, known, position)

    def _note_end(self, file_hash: bytes, known: _Known, end: int) -> None:
        self._remember(file_hash, known._replace(end=end))
        self._store.write(f"{make_plan_folder(file_hash)}/end-{end}", Stored(0.0, b""))

    async def find(
        self, file_hash: bytes, asked: ByteRange, *, takes_imported: bool
    ) -> Reconstruction | None:
        """Return the reconstruction of a range; None: it is not stored.

        Args:
            takes_imported: use imported answers where there are no others.

        Raises:
            RangeUnsatisfiable: the file ends before the range.
        """
        # Other processes may have stored more since, and there may be imported answers.
        tries = ((False, False), (True, False), (True, True))
        for is_again, is_imported in tries if takes_imported else tries[:2]:
            known = await self._list(file_hash, again=is_again)
            more = await self._list_folder(file_hash, is_imported=True) if is_imported else None
            end = known.end if known.end is not None or more is None else more.end
            if end is not None and asked.start >= end:
                raise RangeUnsatisfiable(f"file {format_hash(file_hash)} ends before {asked.start}")
            wanted = ByteRange(asked.start, asked.end if end is None else min(asked.end, end))
            parts = await self._load(file_hash, known, more, wanted)
            if (found := await _join(parts, wanted)) is not None:
                return found._replace(is_imported=is_imported)
        return None

    async def _load(
        self, file_hash: bytes, known: _Known, more: _Known | None, wanted: ByteRange
    ) -> list[Part]:
        """Load the stored answers that overlap a range. more: the imported ones."""
        ranges = {one: False for one in known.ranges if _meet(one, wanted)}
        if more is not None:
            ranges = {one: True for one in more.ranges if _meet(one, wanted)} | ranges
        parts: list[Part] = []
        size = 0
        for one in sorted(ranges, key=lambda one: one.size)[:MAX_JOINED]:
            path = f"{make_plan_folder(file_hash)}/{one.start}-{one.end}"
            stored = await self._store.read(path, is_imported=ranges[one])
            if stored is None:
                known.discard(one)
                continue
            size += len(stored.body)
            if size > MAX_JOINED_SIZE:
                break
            try:
                answer = await run_slices(iter_reconstruction(stored.body))
                part = Part(one.start, _without_urls(answer))
            except FormatError:
                continue  # another version wrote it
            parts.append(part)
            # Joining after each of thousands would be slow.
            if len(parts).bit_count() == 1 and await _join(parts, wanted) is not None:
                break
        return parts

    async def _list(self, file_hash: bytes, *, again: bool = False) -> _Known:
        known = self._known.get(file_hash)
        if known is None or again:
            found = await self._list_folder(file_hash)
            if known is not None:  # some may not be written yet
                found = found._replace(ranges=sorted({*found.ranges, *known.ranges}))
            ends = [one.end for one in (known, found) if one is not None and one.end is not None]
            known = found._replace(end=min(ends, default=None))
        self._remember(file_hash, known)
        return known

    async def _list_folder(self, file_hash: bytes, *, is_imported: bool = False) -> _Known:
        names = await self._store.list(make_plan_folder(file_hash), is_imported=is_imported)
        ranges = sorted({found for name in names if (found := parse_plan_name(name)) is not None})
        ends = [end for name in names if (end := parse_end_name(name)) is not None]
        return _Known(ranges, min(ends, default=None))

    def _remember(self, file_hash: bytes, known: _Known) -> None:
        self._known.put(file_hash, known, FILE_COST + len(known.ranges))


def make_plan_folder(file_hash: bytes) -> str:
    """Return the folder in which the reconstructions of a file are stored."""
    name = format_hash(file_hash)
    return f"plans/{name[:2]}/{name}"


def parse_plan_name(name: str) -> ByteRange | None:
    """Parse the range of a stored answer from its name; None: it is something else."""
    match = _RANGE.fullmatch(name)
    return None if match is None else ByteRange(int(match[1]), int(match[2]))


def parse_end_name(name: str) -> int | None:
    """Parse the end of a file from the name that records it; None: it is something else."""
    match = _END.fullmatch(name)
    return None if match is None else int(match[1])


def _meet(one: ByteRange, other: ByteRange) -> bool:
    """Return whether two ranges overlap."""
    return one.start < other.end and other.start < one.end


def _find_end(ranges: list[ByteRange]) -> int:
    """Return the largest end of some ranges; 0: there are none."""
    return max((one.end for one in ranges), default=0)


def _without_urls(answer: Reconstruction) -> Reconstruction:
    """Return an answer with placeholders for its URLs."""
    infos = {
        xorb_hash: tuple(info._replace(url=STORED_URL) for info in found)
        for xorb_hash, found in answer.fetch_info.items()
    }
    return answer._replace(fetch_info=infos)


async def pack_plan(answer: Reconstruction) -> bytes | None:
    """Write a reconstruction as JSON, in slices; None: it exceeds MAX_STORED_SIZE bytes."""
    body = bytearray()
    for piece in write_plan(answer, 1):
        body += piece
        if len(body) > MAX_STORED_SIZE:
            return None
        if len(body) > PIECE_SIZE:
            await asyncio.sleep(0)
    return bytes(body)


async def _join(parts: list[Part], wanted: ByteRange) -> Reconstruction | None:
    """Join parts; with many terms in a thread, so that the event loop goes on."""
    if sum(len(part.answer.terms) for part in parts) <= MAX_TERMS_AT_ONCE:
        return join_parts(parts, wanted)
    return await asyncio.to_thread(join_parts, parts, wanted)
