"""Reconstruction JSON in pieces: write the same documents as to_v1 and to_v2, part by part.

Each piece takes a few milliseconds. Between two pieces the server can run other tasks, and it never
holds a large answer as a whole. The writer iterates over the fetch info only when it writes it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import (
    FetchInfo,
    Reconstruction,
    Term,
    make_terms,
    make_v1_entries,
    make_v2_entries,
)

PIECE_SIZE: Final = 32 * 1024  # characters; pieces are flushed at this size
_TERMS: Final = 128  # terms in one part: about 20,000 characters

Infos = Iterable[tuple[bytes, Iterable[FetchInfo]]]


def write_plan(answer: Reconstruction, version: int, infos: Infos | None = None) -> Iterator[bytes]:
    """Yield the pieces of an answer in the v1 or v2 form.

    Args:
        version: 1 or 2.
        infos: fetch info by xorb hash, in place of the answer's own.
    """
    given = answer.fetch_info.items() if infos is None else infos
    yield b'{"offset_into_first_range":%d,"terms":' % answer.offset_into_first_range
    yield from _write_terms(answer.terms)
    yield b',"fetch_info":' if version == 1 else b',"xorbs":'
    yield from _join(_write_infos(given, version))
    yield b"}"


def write_batch(
    files: Mapping[bytes, Sequence[Term]], fetch_info: Mapping[bytes, Sequence[FetchInfo]]
) -> Iterator[bytes]:
    """Yield the pieces of a batch answer.

    Args:
        files: file hash -> the terms of the whole file.
    """
    yield b'{"files":{'
    mark = b""
    for file_hash, terms in files.items():
        yield b'%b"%b":' % (mark, format_hash(file_hash).encode())
        yield from _write_terms(terms)
        mark = b","
    yield b'},"fetch_info":'
    yield from _join(_write_infos(fetch_info.items(), 1))
    yield b"}"


def _write_terms(terms: Sequence[Term]) -> Iterator[bytes]:
    yield b"["
    for at in range(0, len(terms), _TERMS):
        yield (b"," if at else b"") + _dump(make_terms(terms[at : at + _TERMS]))[1:-1]
    yield b"]"


def _write_infos(infos: Infos, version: int) -> Iterator[bytes]:
    """Yield the parts of the JSON object from xorb hash to fetch info entries."""
    yield b"{"
    mark = b""
    for xorb_hash, found in infos:
        yield b'%b"%b":[' % (mark, format_hash(xorb_hash).encode())
        mark = b","
        between = b""
        for entry in make_v1_entries(found) if version == 1 else make_v2_entries(found):
            yield between + _dump(entry)
            between = b","
        yield b"]"
    yield b"}"


def _join(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts to pieces of about PIECE_SIZE."""
    piece = bytearray()
    for part in parts:
        piece += part
        if len(piece) >= PIECE_SIZE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
