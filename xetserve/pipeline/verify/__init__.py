"""Chunk hashes, ledgers, and proofs of whole files."""
