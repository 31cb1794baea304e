"""Test files: one kind for each compression scheme of the official client.

    raw    random bytes, which do not compress: chunks are stored raw
    lz4    random words in random order: LZ4 halves them, and decoding costs as much as for text
    bg4    normally distributed float32 values: they compress only with byte grouping

All chunks of such a file differ. A fragmented file repeats parts of itself, unchanged and edited.
An edited file has two similar revisions.
"""

import os
import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

MIB: Final = 1024 * 1024
SEED: Final = 2026

_NUM_WORDS: Final = 1024  # must divide 2**16
_WORD_SIZES: Final = (4, 12)


def iter_raw(size: int) -> Iterator[bytes]:
    """Yield random bytes."""
    for start in range(0, size, MIB):
        yield os.urandom(min(MIB, size - start))


def iter_lz4(size: int) -> Iterator[bytes]:
    """Yield random words from a small dictionary."""
    source = random.Random(SEED)
    words = [source.randbytes(source.randint(*_WORD_SIZES)) for _ in range(_NUM_WORDS)]
    word_of = (words * (2**16 // _NUM_WORDS)).__getitem__
    while size > 0:
        block = b"".join(map(word_of, array("H", os.urandom(256 * 1024))))
        yield block[:size]
        size -= len(block)


def iter_bg4(size: int) -> Iterator[bytes]:
    """Yield float32 values: the same MiB of normals with new lower mantissa bits in each MiB.

    The bits are combined as one large integer, which is fast in Python.
    """
    source = random.Random(SEED)
    normals = array("f", (source.gauss(0.0, 0.02) for _ in range(MIB // 4))).tobytes()
    words = int.from_bytes(normals, "little")
    low_halves = int.from_bytes(b"\xff\xff\0\0" * (MIB // 4), "little")
    for start in range(0, size, MIB):
        noise = int.from_bytes(os.urandom(MIB), "little") & low_halves
        yield (words ^ noise).to_bytes(MIB, "little")[: size - start]


KINDS: Final[dict[str, Callable[[int], Iterator[bytes]]]] = {
    "raw": iter_raw,
    "lz4": iter_lz4,
    "bg4": iter_bg4,
}


def iter_fragmented(size: int, distinct_size: int) -> Iterator[bytes]:
    """Yield new bytes and repeats of earlier ones, unchanged or with a few bytes changed.

    Args:
        size: the total number of bytes.
        distinct_size: the most new bytes; they are contiguous in the CAS.
    """
    source = random.Random(SEED)
    base = source.randbytes(distinct_size)
    known = 0
    while size > 0:
        fresh = source.randrange(distinct_size // 512, distinct_size // 32)
        piece = base[known : known + fresh]
        known = min(distinct_size, known + fresh)
        # After the last new byte, only repeats follow.
        for _ in range(3):
            start = source.randrange(known)
            length = source.randrange(distinct_size // 512, distinct_size // 24)
            piece += base[start : min(known, start + length)]
        if source.random() < 0.25:
            cut = source.randrange(len(piece))
            piece = piece[:cut] + source.randbytes(16) + piece[cut + 8 :]
        yield piece[:size]
        size -= len(piece)


def edit(content: bytes) -> bytes:
    """Return a second revision: bytes inserted, a part replaced, and a part deleted."""
    source = random.Random(SEED)
    unit = len(content) // 64
    return b"".join(
        (
            content[: 9 * unit],
            b"put in between",
            content[9 * unit : 30 * unit],
            source.randbytes(3 * unit),
            content[33 * unit : 50 * unit],
            content[52 * unit :],
        )
    )


def write_file(path: Path, blocks: Iterator[bytes]) -> None:
    """Write a file atomically, so that an existing file is complete."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        file.writelines(blocks)
    partial.rename(path)
