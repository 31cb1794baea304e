"""Xet hashes: the string form, keyed BLAKE3, and Merkle roots.

In this package a hash is 32 raw bytes. URLs and JSON write it as four little-endian u64 of 16 hex
digits each, so every group of 8 bytes appears reversed.

A root is computed level by level. Each level is cut into groups from the left. A group ends at its
first entry, from the third on, whose hash is 0 modulo 4 (last 8 bytes as a little-endian u64), or
at nine entries, or at the end of the level. The rule never looks ahead, so MerkleTree folds leaves
as they arrive and holds at most eight entries a level.

Source: draft-denis-xet, "Hashing"; xet-core merklehash.
"""

import re
from array import array
from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from xetserve.base.buffers import Buffer

HASH_SIZE: Final = 32
ZERO_HASH: Final = bytes(HASH_SIZE)

CHUNK_KEY: Final = bytes.fromhex("6697f5775b9550de3135cbaca597181c9de421109beb2b58b4d0b04b93adf229")
NODE_KEY: Final = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")
RANGE_KEY: Final = bytes.fromhex("7f1857d6ce56ed66127ff913e7a5c3f3a4cd26d5b5db49e64124987f28fb94c3")

MIN_GROUP: Final = 3
MAX_GROUP: Final = 9

_HEX64: Final = re.compile(r"[0-9a-f]{64}")


def parse_hash(text: str) -> bytes:
    """Parse the string form: 64 lower-case hex digits.

    Raises:
        ValueError: text is anything else, for example upper case or a redacted hash ("*" x 64).
    """
    if not _HEX64.fullmatch(text):
        raise ValueError("a Xet hash is 64 lower-case hex digits")
    return _swap_groups(bytes.fromhex(text))


def format_hash(raw: bytes) -> str:
    """Return the string form of 32 raw bytes."""
    return _swap_groups(raw).hex()


def _swap_groups(data: bytes) -> bytes:
    words = array("Q", data)
    words.byteswap()
    return words.tobytes()


def hash_chunk(data: Buffer) -> bytes:
    """Hash the decoded bytes of one chunk.

    One thread: BLAKE3's own threads make hashing data of this size ten times as expensive.
    """
    return blake3(data, key=CHUNK_KEY).digest()


def hash_node(children: Iterable[tuple[bytes, int]]) -> bytes:
    """Hash an inner node over its children's (hash, size in bytes)."""
    text = "".join([f"{_swap_groups(child).hex()} : {size}\n" for child, size in children])
    return blake3(text.encode(), key=NODE_KEY).digest()


def hash_range(chunk_hashes: Iterable[bytes]) -> bytes:
    """Return the verification hash of a term.

    A shard holds this hash to prove that the uploader has the chunks of the term.
    """
    return blake3(b"".join(chunk_hashes), key=RANGE_KEY).digest()


def is_group_end(raw: bytes) -> bool:
    """Return whether an entry with this hash may end a group of a Merkle level."""
    return raw[24] & 3 == 0  # the low byte of the last little-endian u64


class MerkleTree:
    """A Merkle tree that folds leaves, (chunk hash, chunk size) in order, into a root.

    Memory: at most eight entries for each level of the tree, for any number of leaves.
    """

    __slots__ = ("_counts", "_levels", "num_chunks", "size")

    def __init__(self) -> None:
        self._levels: list[list[tuple[bytes, int]]] = [[]]
        self._counts = [0]
        self.num_chunks = 0
        self.size = 0  # bytes under the tree

    def add(self, chunk_hash: bytes, size: int) -> None:
        """Append a leaf: a chunk's hash and its decoded size in bytes."""
        self.num_chunks += 1
        self.size += size
        self._push(0, chunk_hash, size)

    def _push(self, level: int, raw: bytes, size: int) -> None:
        while True:
            if level == len(self._levels):
                self._levels.append([])
                self._counts.append(0)
            pending = self._levels[level]
            pending.append((raw, size))
            self._counts[level] += 1
            count = len(pending)
            if count < MIN_GROUP or (count < MAX_GROUP and not is_group_end(raw)):
                return
            raw, size = _fold(pending)
            pending.clear()
            level += 1

    def xorb_hash(self) -> bytes:
        """Return the root over all leaves so far; 32 zero bytes when there are none.

        More leaves may be added afterwards.
        """
        if not self.num_chunks:
            return ZERO_HASH
        rest = MerkleTree()
        rest._levels = [list(pending) for pending in self._levels]
        rest._counts = list(self._counts)
        level = 0
        while rest._counts[level] > 1:
            # The pending entries at the end of a level are its last group. A single child is
            # hashed again as a node, not promoted.
            pending = rest._levels[level]
            level += 1
            if pending:
                rest._push(level, *_fold(pending))
        return rest._levels[level][0][0]

    def file_hash(self) -> bytes:
        """Return the file hash: the root hashed with the zero salt.

        A file without chunks has the zero hash itself, as in the official implementation.
        """
        return blake3(self.xorb_hash(), key=ZERO_HASH).digest() if self.num_chunks else ZERO_HASH


def _fold(group: list[tuple[bytes, int]]) -> tuple[bytes, int]:
    return hash_node(group), sum(size for _, size in group)
