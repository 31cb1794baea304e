"""Xet files on disk, and how any range of one is rebuilt.

    files/{file hash}.json   {"size": bytes, "sha256": hex or null, "terms":
                             [[xorb hash, first chunk, end chunk, decoded bytes], ...]}

A range is described by the terms that cover it, cut to whole chunks at both ends. The byte ranges
to fetch are then the term's ranges, those of one xorb merged where they touch or overlap.
"""

import asyncio
import json
from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError, IntegrityError
from xetserve.http.ranges import Span
from xetserve.origin.store.blobs import TemporaryFiles, make_private_folder
from xetserve.origin.store.xorbs import BLOCK_SIZE, XorbStore
from xetserve.xet.hashes import format_hash, hash_chunk, parse_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Term
from xetserve.xet.xorb import ChunkRecord, RecordReader

MAX_CACHED_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as the CAS knows it.

    term_ends: where each term ends, in bytes of the file.
    sha256: of the content, as the uploader named it; plain hex.
    """

    file_hash: bytes
    terms: tuple[Term, ...]
    term_ends: tuple[int, ...]
    sha256: str | None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.term_ends[-1] if self.term_ends else 0


def make_file_record(file_hash: bytes, terms: Iterable[Term], sha256: str | None) -> FileRecord:
    """Return the record of a file; the terms are not checked."""
    terms = tuple(terms)
    ends = tuple(accumulate(term.decoded_size for term in terms))
    return FileRecord(file_hash, terms, ends, sha256)


class FileStore:
    """The Xet files of a folder, by file hash."""

    def __init__(self, root: Path, temporary: TemporaryFiles, xorbs: XorbStore) -> None:
        self._folder = make_private_folder(root / "files")
        self._temporary = temporary
        self._xorbs = xorbs
        self._records: LruDict[bytes, FileRecord] = LruDict(max_num=MAX_CACHED_FILES)

    def put(self, record: FileRecord) -> bool:
        """Store a record; False: the file is known, and the first record stays."""
        path = self._get_path(record.file_hash)
        if path.exists():
            return False
        value = {
            "size": record.size,
            "sha256": record.sha256,
            "terms": [
                (format_hash(term.xorb_hash), *term.chunks, term.decoded_size)
                for term in record.terms
            ],
        }
        self._temporary.write(path, json.dumps(value).encode() + b"\n")
        return True

    async def get(self, file_hash: bytes) -> FileRecord | None:
        """Return a file's record; None: it is unknown."""
        record = self._records.get(file_hash)
        if record is None:
            record = await asyncio.to_thread(self._load, file_hash)
            if record is not None:
                self._records.put(file_hash, record)
        return record

    def _get_path(self, file_hash: bytes) -> Path:
        return self._folder / f"{format_hash(file_hash)}.json"

    def _load(self, file_hash: bytes) -> FileRecord | None:
        try:
            data = self._get_path(file_hash).read_bytes()
        except FileNotFoundError:
            return None
        value = json.loads(data)
        terms = (
            Term(parse_hash(xorb), ChunkRange(start, end), size)
            for xorb, start, end, size in value["terms"]
        )
        return make_file_record(file_hash, terms, value["sha256"])

    async def find_terms(self, record: FileRecord, span: Span) -> tuple[int, list[Term]]:
        """Return the terms that cover a range of the file, cut to whole chunks.

        Returns:
            the bytes of the first term that lie before the range, and the terms.
        """
        offset, terms = find_whole_terms(record, span)
        if not terms:
            return 0, []
        last = terms[-1]
        rest = sum(term.decoded_size for term in terms) - offset - span.size
        terms[-1], _ = await self._trim(last, 0, last.decoded_size - rest)
        terms[0], dropped = await self._trim(terms[0], offset, terms[0].decoded_size)
        return offset - dropped, terms

    async def _trim(self, term: Term, skip: int, stop: int) -> tuple[Term, int]:
        index = await self._xorbs.require_index(term.xorb_hash)
        chunks, dropped = index.trim(term.chunks, skip, stop)
        return Term(term.xorb_hash, chunks, index.decoded_size(chunks)), dropped

    async def find_fetch_ranges(
        self, terms: Iterable[Term]
    ) -> dict[bytes, list[tuple[ChunkRange, ByteRange]]]:
        """Return the ranges of each xorb to fetch, in ascending order."""
        wanted: dict[bytes, list[ChunkRange]] = {}
        for term in terms:
            wanted.setdefault(term.xorb_hash, []).append(term.chunks)
        found = {}
        for xorb_hash, ranges in wanted.items():
            index = await self._xorbs.require_index(xorb_hash)
            found[xorb_hash] = [
                (chunks, index.byte_range(chunks)) for chunks in merge_ranges(ranges)
            ]
        return found

    async def read(self, record: FileRecord, span: Span) -> AsyncGenerator[list[bytes], None]:
        """Yield a range of a file in blocks, with every chunk checked against its hash.

        Raises:
            IntegrityError: a xorb on disk is damaged or missing.
        """
        skip, terms = await self.find_terms(record, span)
        left = span.size
        for term in terms:
            async with aclosing(self._read_term(term)) as blocks:
                async for block in blocks:
                    parts = []
                    for chunk in block:
                        part = chunk[skip : skip + left]
                        skip = max(0, skip - len(chunk))
                        left -= len(part)
                        parts.append(part)
                    yield parts

    async def _read_term(self, term: Term) -> AsyncGenerator[list[bytes], None]:
        """Yield a term's chunks, as many in a block as make up BLOCK_SIZE bytes."""
        index = await self._xorbs.require_index(term.xorb_hash)
        leaves = index.leaves(term.chunks)
        reader = RecordReader()
        rest = b""
        chunks: list[bytes] = []
        size = 0
        byte_range = index.byte_range(term.chunks)
        async with aclosing(self._xorbs.read(term.xorb_hash, byte_range)) as blocks:
            async for block in blocks:
                view = memoryview(rest + block)
                reader.move_to(0)
                for record in reader.scan(view, len(view)):
                    chunks.append(_decode_stored(record, next(leaves), term.xorb_hash))
                    size += len(chunks[-1])
                    if size >= BLOCK_SIZE:
                        yield chunks
                        chunks, size = [], 0
                rest = bytes(view[reader.position :])
        if chunks:
            yield chunks


def _decode_stored(record: ChunkRecord, leaf: tuple[bytes, int], xorb_hash: bytes) -> bytes:
    try:
        chunk = bytes(record.decode())
    except FormatError as exc:
        raise IntegrityError(f"xorb {format_hash(xorb_hash)} is damaged on disk: {exc}") from exc
    if (hash_chunk(chunk), len(chunk)) != leaf:
        raise IntegrityError(f"xorb {format_hash(xorb_hash)} is damaged on disk: wrong chunk hash")
    return chunk


def find_whole_terms(record: FileRecord, span: Span) -> tuple[int, list[Term]]:
    """Return the terms that cover a range of the file as they are stored.

    Returns:
        the bytes of the first term that lie before the range, and the terms.
    """
    if not span.size:
        return 0, []
    first = bisect_right(record.term_ends, span.start)
    start = record.term_ends[first - 1] if first else 0
    terms = []
    for index in range(first, len(record.terms)):
        terms.append(record.terms[index])
        if record.term_ends[index] >= span.end:
            break
    return span.start - start, terms


def merge_ranges(ranges: Iterable[ChunkRange]) -> list[ChunkRange]:
    """Sort ranges and join those that touch or overlap."""
    merged: list[ChunkRange] = []
    for chunks in sorted(ranges):
        if merged and chunks.start <= merged[-1].end:
            merged[-1] = ChunkRange(merged[-1].start, max(merged[-1].end, chunks.end))
        else:
            merged.append(chunks)
    return merged
