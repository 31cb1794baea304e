"""Whose answers they are: what stands for a client's token where its answers are kept."""

from typing import Final

from blake3 import blake3

ANONYMOUS: Final = "anonymous"  # no hex digits: no token has it
_CONTEXT: Final = "xetserve 2026 scope of what the Hub said to a client's token"
_SIZE: Final = 16  # bytes


def get_scope(token: str | None) -> str:
    """Return what answers to a token are kept under: hex digits, from which nobody gets to the
    token.
    """
    if token is None:
        return ANONYMOUS
    return blake3(token.encode(), derive_key_context=_CONTEXT).hexdigest(length=_SIZE)
