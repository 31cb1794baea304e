"""The scope of an answer: a fingerprint of the token that got it."""

from typing import Final

from blake3 import blake3

ANONYMOUS: Final = "anonymous"  # not hex digits, so no fingerprint equals it
_CONTEXT: Final = "xetserve 2026 scope of what the Hub said to a client's token"
_SIZE: Final = 16  # bytes


def get_scope(token: str | None) -> str:
    """Return the fingerprint of a token: hex digits that do not reveal the token."""
    if token is None:
        return ANONYMOUS
    return blake3(token.encode(), derive_key_context=_CONTEXT).hexdigest(length=_SIZE)
