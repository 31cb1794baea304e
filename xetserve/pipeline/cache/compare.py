"""Compare stored entries with each other: a record is proven if a proven entry has an equal one."""

from contextlib import ExitStack
from typing import Final

from xetserve.errors import FormatError
from xetserve.pipeline.cache.entry import Standing
from xetserve.pipeline.cache.indexes import IndexCache, open_entry
from xetserve.pipeline.cache.layout import Stored, find_longest
from xetserve.xet.reconstruction import ChunkRange

COMPARED_AT_ONCE: Final = 1024 * 1024  # bytes


def has_proven_copies(
    indexes: IndexCache,
    entries: list[tuple[Stored, ChunkRange]],
    xorb_hash: bytes,
    path: str,
    gaps: list[ChunkRange],
) -> bool:
    """Compare records of an entry with those of proven entries, byte for byte.

    Args:
        entries: all entries of the xorb.
        path: the entry.
        gaps: the chunks whose records are compared.

    Returns:
        whether proven entries have all these records, and they are equal.

    Raises:
        OSError: the disk fails.
    """
    own = next((entry for entry in entries if entry[0].path == path), None)
    others = [entry for entry in entries if Standing.of(entry[0].path) is Standing.PROVEN]
    copies: list[tuple[Stored, ChunkRange, ChunkRange]] = []
    for gap in gaps:
        chunk = gap.start
        while chunk < gap.end:
            stored, chunks = find_longest(others, chunk)
            if stored is None:
                return False
            copies.append((stored, chunks, ChunkRange(chunk, min(gap.end, chunks.end))))
            chunk = chunks.end
    if own is None:
        return False
    try:
        return all(
            _has_same_records(indexes, xorb_hash, own, (stored, chunks), wanted)
            for stored, chunks, wanted in copies
        )
    except (FormatError, FileNotFoundError):
        return False


def _has_same_records(
    index_cache: IndexCache,
    xorb_hash: bytes,
    one: tuple[Stored, ChunkRange],
    other: tuple[Stored, ChunkRange],
    wanted: ChunkRange,
) -> bool:
    indexes = [index_cache.get(stored, xorb_hash, chunks) for stored, chunks in (one, other)]
    spans = [(each.offset_of(wanted.start), each.offset_of(wanted.end)) for each in indexes]
    if spans[0][1] - spans[0][0] != spans[1][1] - spans[1][0]:
        return False
    left = spans[0][1] - spans[0][0]
    with ExitStack() as stack:
        files = []
        for (stored, _), (start, _) in zip((one, other), spans, strict=True):
            file = stack.enter_context(open(open_entry(stored.path), "rb", buffering=0))
            file.seek(start)
            files.append(file)
        while left:
            data, copy = (file.read(min(left, COMPARED_AT_ONCE)) for file in files)
            if not data or data != copy:
                return False
            left -= len(data)
    return True
