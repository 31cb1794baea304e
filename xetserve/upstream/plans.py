"""How files are built, on disk: answers of the CAS without their URLs, by file hash and range.

That depends on nobody, and never changes. What is given from here has dead URLs: the bytes have to come from the disk cache.
"""

import json
import re
from collections import OrderedDict
from typing import Any, Final, NamedTuple

from xetserve.errors import FormatError, RangeUnsatisfiable
from xetserve.upstream.metastore import MetaStore, Stored
from xetserve.xet.hashes import format_hash
from xetserve.xet.joining import Part, join_parts
from xetserve.xet.reconstruction import ByteRange, Reconstruction, parse_reconstruction, to_v1

STORED_URL: Final = "http://stored.invalid/"
MAX_STORED_SIZE: Final = 4 * 1024 * 1024  # bytes of one answer
MAX_JOINED_SIZE: Final = 16 * 1024 * 1024  # bytes of the stored answers that one question may read
MAX_JOINED: Final = 1000
MAX_FILES: Final = 1000  # whose stored ranges are remembered

_RANGE: Final = re.compile(r"(\d{1,18})-(\d{1,18})", re.ASCII)
_END: Final = re.compile(r"end-(\d{1,18})", re.ASCII)


class _Known(NamedTuple):
    """Stored ranges of a file, and where it ends, if that was seen."""

    ranges: set[ByteRange]
    end: int | None


class PlanArchive:
    """How files are built, on disk: an answer of the CAS a file, without its URLs."""

    def __init__(self, store: MetaStore) -> None:
        self._store = store
        self._known: OrderedDict[bytes, _Known] = OrderedDict()

    async def add(self, file_hash: bytes, asked: ByteRange, answer: Reconstruction) -> None:
        """Store an answer, unless finer ones cover it."""
        known = await self._list(file_hash)
        end = asked.start + answer.decoded_size
        if end < asked.end and known.end is None:
            self._note_end(file_hash, known, end)
        covered = ByteRange(asked.start, end)
        if covered.size <= 0 or _is_covered(covered, known.ranges):
            return
        body = json.dumps(_without_urls(answer), separators=(",", ":")).encode()
        if len(body) <= MAX_STORED_SIZE:
            known.ranges.add(covered)
            path = f"{make_plan_folder(file_hash)}/{covered.start}-{covered.end}"
            self._store.write(path, Stored(0.0, body))

    async def note_past_end(self, file_hash: bytes, position: int) -> None:
        """Take note that a file ends at a position or before it: at it, if all before is known."""
        known = await self._list(file_hash)
        if known.end is None and max((one.end for one in known.ranges), default=0) == position:
            self._note_end(file_hash, known, position)

    def _note_end(self, file_hash: bytes, known: _Known, end: int) -> None:
        self._remember(file_hash, known._replace(end=end))
        self._store.write(f"{make_plan_folder(file_hash)}/end-{end}", Stored(0.0, b""))

    async def find(self, file_hash: bytes, asked: ByteRange) -> Reconstruction | None:
        """Give how a range is built; None: that is not stored.

        Raises:
            RangeUnsatisfiable: the file ends before.
        """
        for is_again in (False, True):  # others may have stored more since we looked
            known = await self._list(file_hash, again=is_again)
            if known.end is not None and asked.start >= known.end:
                raise RangeUnsatisfiable(f"file {format_hash(file_hash)} ends before {asked.start}")
            end = asked.end if known.end is None else min(asked.end, known.end)
            wanted = ByteRange(asked.start, end)
            parts = await self._load(file_hash, known, wanted)
            if (found := join_parts(parts, wanted)) is not None:
                return found
        return None

    async def _load(self, file_hash: bytes, known: _Known, wanted: ByteRange) -> list[Part]:
        ranges = [one for one in known.ranges if one.start < wanted.end and wanted.start < one.end]
        parts: list[Part] = []
        size = 0
        for one in sorted(ranges, key=lambda one: one.size)[:MAX_JOINED]:
            stored = await self._store.read(f"{make_plan_folder(file_hash)}/{one.start}-{one.end}")
            if stored is None:
                known.ranges.discard(one)
                continue
            size += len(stored.body)
            if size > MAX_JOINED_SIZE:
                break
            try:
                part = Part(one.start, parse_reconstruction(stored.body))
            except FormatError:
                continue  # of another version
            parts.append(part)
            # Not after each of thousands.
            if len(parts).bit_count() == 1 and join_parts(parts, wanted) is not None:
                break
        return parts

    async def _list(self, file_hash: bytes, *, again: bool = False) -> _Known:
        known = self._known.get(file_hash)
        if known is None or again:
            names = await self._store.list(make_plan_folder(file_hash))
            ranges = {found for name in names if (found := parse_plan_name(name)) is not None}
            ends = [int(match[1]) for name in names if (match := _END.fullmatch(name))]
            if known is not None:
                ranges |= known.ranges  # some may not be written yet
                ends += [] if known.end is None else [known.end]
            known = _Known(ranges, min(ends, default=None))
        self._remember(file_hash, known)
        return known

    def _remember(self, file_hash: bytes, known: _Known) -> None:
        self._known[file_hash] = known
        self._known.move_to_end(file_hash)
        while len(self._known) > MAX_FILES:
            self._known.popitem(last=False)


def make_plan_folder(file_hash: bytes) -> str:
    """Give where what is known of a file's plan is stored."""
    name = format_hash(file_hash)
    return f"plans/{name[:2]}/{name}"


def parse_plan_name(name: str) -> ByteRange | None:
    """Read of which range of its file a stored answer is; None: it is something else."""
    match = _RANGE.fullmatch(name)
    return None if match is None else ByteRange(int(match[1]), int(match[2]))


def _is_covered(wanted: ByteRange, ranges: set[ByteRange]) -> bool:
    """Tell whether ranges that are not larger cover one."""
    if wanted in ranges:
        return True
    position = wanted.start
    for one in sorted(one for one in ranges if one.size <= wanted.size):
        if one.start > position:
            break
        position = max(position, one.end)
        if position >= wanted.end:
            return True
    return False


def _without_urls(answer: Reconstruction) -> dict[str, Any]:
    infos = {
        xorb_hash: tuple(info._replace(url=STORED_URL) for info in found)
        for xorb_hash, found in answer.fetch_info.items()
    }
    return to_v1(answer._replace(fetch_info=infos))
