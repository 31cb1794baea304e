"""The Xet files of the origin: which terms they are made of, and which of them a range needs."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.errors import FormatError, IntegrityError
from xetserve.origin.storage import RecentlyUsed, Storage
from xetserve.origin.xorbs import XorbIndex, XorbStore
from xetserve.xet.hashes import MerkleTree, format_hash, hash_range, parse_hash
from xetserve.xet.reconstruction import ChunkRange, Term
from xetserve.xet.shard import ShardFile

MAX_RECORDS: Final = 32  # kept in memory; about 200 bytes for each term

IndexLookup = Callable[[bytes], XorbIndex]


class FileRecord:
    """A Xet file: its terms in order, and where in the file they end."""

    __slots__ = ("ends", "terms")

    def __init__(self, terms: Iterable[Term]) -> None:
        self.terms = tuple(terms)
        self.ends = list(accumulate(term.decoded_size for term in self.terms))

    @property
    def size(self) -> int:
        """Decoded bytes."""
        return self.ends[-1] if self.ends else 0

    def to_json(self) -> bytes:
        """Write the record's file: one term on each line."""
        lines = ",\n".join(
            f'["{format_hash(t.xorb_hash)}", {t.chunks.start}, {t.chunks.end}, {t.decoded_size}]'
            for t in self.terms
        )
        return f'{{"size": {self.size}, "terms": [\n{lines}\n]}}\n'.encode()

    @classmethod
    def from_json(cls, data: bytes) -> "FileRecord":
        """Read the record's file."""
        return cls(
            Term(parse_hash(name), ChunkRange(start, end), size)
            for name, start, end, size in json.loads(data)["terms"]
        )


class Selection(NamedTuple):
    """The terms of a file range, and the bytes of the first that lie before it."""

    offset_into_first_range: int
    terms: tuple[Term, ...]


def select_terms(
    record: FileRecord, start: int, end: int, get_index: IndexLookup, *, trim: bool = True
) -> Selection:
    """Choose the terms that cover [start, end) of a file.

    Args:
        trim: drop the chunks that lie wholly outside, as the production CAS does.
    """
    if start >= end:
        return Selection(0, ())
    first = bisect_right(record.ends, start)
    last = bisect_left(record.ends, end, first)
    terms = list(record.terms[first : last + 1])
    position = record.ends[first - 1] if first else 0
    if trim:
        last_position = record.ends[last - 1] if last else 0
        terms[-1] = _trim_tail(terms[-1], end - last_position, get_index(terms[-1].xorb_hash))
        whole = terms[0].decoded_size
        terms[0] = _trim_head(terms[0], start - position, get_index(terms[0].xorb_hash))
        position += whole - terms[0].decoded_size
    return Selection(start - position, tuple(terms))


def _trim_head(term: Term, skip: int, index: XorbIndex) -> Term:
    """Drop the chunks that end within the first skip bytes of a term."""
    base = index.get_decoded_start(term.chunks.start)
    start = bisect_right(index.decoded_ends, base + skip, term.chunks.start, term.chunks.end)
    chunks = ChunkRange(start, term.chunks.end)
    return Term(term.xorb_hash, chunks, index.get_decoded_size(chunks))


def _trim_tail(term: Term, keep: int, index: XorbIndex) -> Term:
    """Drop the chunks that start after the first keep bytes of a term."""
    base = index.get_decoded_start(term.chunks.start)
    last = bisect_left(index.decoded_ends, base + keep, term.chunks.start, term.chunks.end)
    chunks = ChunkRange(term.chunks.start, last + 1)
    return Term(term.xorb_hash, chunks, index.get_decoded_size(chunks))


def merge_ranges(terms: Iterable[Term]) -> dict[bytes, list[ChunkRange]]:
    """Give the fetch ranges of each xorb: ascending, and touching or overlapping ones made one."""
    ranges: dict[bytes, list[ChunkRange]] = {}
    for term in terms:
        ranges.setdefault(term.xorb_hash, []).append(term.chunks)
    for xorb_hash, found in ranges.items():
        merged: list[ChunkRange] = []
        for chunks in sorted(found):
            if merged and chunks.start <= merged[-1].end:
                merged[-1] = ChunkRange(merged[-1].start, max(merged[-1].end, chunks.end))
            else:
                merged.append(chunks)
        ranges[xorb_hash] = merged
    return ranges


class FileStore:
    """All Xet files, by file hash."""

    def __init__(self, storage: Storage, xorbs: XorbStore) -> None:
        self._storage = storage
        self._xorbs = xorbs
        self._records: RecentlyUsed[FileRecord] = RecentlyUsed(MAX_RECORDS)

    def _get_path(self, file_hash: bytes) -> Path:
        return self._storage.root / "files" / format_hash(file_hash)

    def get_record(self, file_hash: bytes) -> FileRecord | None:
        """Give the terms of a file; None: there is no such file. Reads files."""
        path = self._get_path(file_hash)
        try:
            return self._records.get(file_hash, lambda: FileRecord.from_json(path.read_bytes()))
        except FileNotFoundError:
            return None

    def get_index(self, xorb_hash: bytes) -> XorbIndex:
        """Give the index of a xorb that a record names.

        Raises:
            IntegrityError: the xorb is gone or damaged.
        """
        index = self._xorbs.get_index(xorb_hash)
        if index is None:
            raise IntegrityError(f"xorb {format_hash(xorb_hash)} is gone")
        return index

    def check(self, file: ShardFile) -> None:
        """Check a file that an uploader describes, against the xorbs that are here.

        Raises:
            FormatError: an unknown xorb, chunks outside it, a size that is not theirs, no proof.
            IntegrityError: a wrong verification hash or file hash.
        """
        tree = MerkleTree()
        for segment in file.segments:
            name = format_hash(segment.xorb_hash)
            index = self._xorbs.get_index(segment.xorb_hash)
            if index is None:
                raise FormatError(f"unknown xorb {name}")
            if segment.chunks.end > index.num_chunks:
                raise FormatError(
                    f"chunks up to {segment.chunks.end} of xorb {name}, which has "
                    f"{index.num_chunks}"
                )
            size = index.get_decoded_size(segment.chunks)
            if size != segment.decoded_size:
                raise FormatError(f"segment of {segment.decoded_size} bytes, expected {size}")
            hashes = self._xorbs.get_chunk_hashes(segment.xorb_hash, segment.chunks)
            if segment.range_hash is None:
                raise FormatError("segment without a verification hash")
            if segment.range_hash != hash_range(hashes):
                raise IntegrityError(f"wrong verification hash for a segment of xorb {name}")
            for offset, chunk_hash in enumerate(hashes):
                chunk = segment.chunks.start + offset
                tree.add(chunk_hash, index.get_decoded_size(ChunkRange(chunk, chunk + 1)))
        if tree.file_hash() != file.file_hash:
            raise IntegrityError(
                f"file hash {format_hash(tree.file_hash())}, expected {format_hash(file.file_hash)}"
            )

    def add(self, file_hash: bytes, record: FileRecord) -> bool:
        """Keep the terms of a file; False: it was there already, and stays as it was."""
        path = self._get_path(file_hash)
        if path.exists():
            return False
        self._storage.write(path, record.to_json())
        return True
