"""The chunks of a file, and ledgers that have recorded them."""

from xetserve.pipeline.verify.ledger import Ledger
from xetserve.xet.hashes import MerkleTree, hash_chunk

Chunk = tuple[int, int, bytes]  # position, size, hash


def make_file(sizes: list[int]) -> tuple[bytes, int, list[Chunk]]:
    """Return the hash, the size and the chunks of a file."""
    tree, chunks, position = MerkleTree(), [], 0
    for number, size in enumerate(sizes):
        chunk_hash = hash_chunk(b"%d" % number)
        tree.add(chunk_hash, size)
        chunks.append((position, size, chunk_hash))
        position += size
    return tree.file_hash(), position, chunks


FILE_HASH, SIZE, CHUNKS = make_file([(number * 37) % 500 + 1 for number in range(200)])


def note_each(ledger: Ledger, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        ledger.note(*chunk)


def prove(ledger: Ledger) -> bool:
    while ledger.fold(7):
        pass
    return ledger.prove()
