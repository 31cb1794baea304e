"""The digest that proves the chunks of a range."""

import pytest
from blake3 import blake3

from xetserve.xet.grants import DIGEST_SIZE, TermUse
from xetserve.xet.reconstruction import ChunkRange
from xetserve.xet.term_uses import FindHashes, prove_uses

FILE = b"f" * 32


def test_a_proven_file_has_digests_of_its_ranges() -> None:
    """Chunks that several terms use count once, those between terms not at all."""
    hashes = {chunk: bytes([chunk]) * 32 for chunk in range(30)}
    uses = [
        TermUse(ChunkRange(0, 4), 100, 40),
        TermUse(ChunkRange(1, 3), 500, 20),
        TermUse(ChunkRange(3, 5), 900, 20),
        TermUse(ChunkRange(7, 8), 0, 10),
    ]

    def find(file_hash: bytes, position: int, size: int) -> bytes | None:
        assert file_hash == FILE
        (use,) = (each for each in uses if each.position == position)
        assert use.decoded_size == size
        return b"".join(hashes[chunk] for chunk in range(*use.chunks))

    def make_digest(find: FindHashes) -> str:
        steps = prove_uses(FILE, uses, find)
        with pytest.raises(StopIteration) as done:
            next(steps)
        return done.value.value.digest  # type: ignore[no-any-return]

    expected = blake3(b"".join(hashes[chunk] for chunk in (0, 1, 2, 3, 4, 7)))
    assert make_digest(find) == expected.hexdigest(DIGEST_SIZE)
    assert make_digest(lambda _, position, size: None if position == 900 else b"") == ""
    assert make_digest(lambda _, position, size: bytes(32)) == ""
