"""Sealed values: values that this server hands out and verifies when a client returns them.

A sealed value is signed, not encrypted. A client can read the CAS token or the upstream data URL
inside it, but cannot change it. The client learns nothing new: the Hub and the CAS would give it
the same token and URL, which are valid there as well.

Layout: base64url without padding of an HMAC-SHA256 (32 bytes) followed by the deflated JSON value.
The HMAC covers the purpose too, so a value sealed for one purpose is not accepted for another.
"""

import binascii
import hmac
import json
import zlib
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any, Final

KEY_SIZE: Final = 32  # bytes
MAX_VALUE_SIZE: Final = 1024 * 1024  # bytes of JSON; far more than a URL or field holds
_MAC_SIZE: Final = 32
_TO_BASE64: Final = str.maketrans("-_", "+/")


class Sealer:
    """A signer that seals values with one key, and unseals them with several.

    Args:
        key: at least KEY_SIZE random bytes.
        more: keys of other servers, or former ones, whose values are accepted, too.
    """

    def __init__(self, key: bytes, *more: bytes) -> None:
        self._keys = (key, *more)

    def seal(self, purpose: str, value: Any) -> str:
        """Return a JSON value sealed for a purpose, as text for URLs and header fields."""
        data = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)
        return urlsafe_b64encode(_sign(self._keys[0], purpose, data) + data).decode().rstrip("=")

    def unseal(self, purpose: str, text: str) -> Any | None:
        """Return the value in a sealed text; None: it was not sealed so with one of our keys.

        The caller must check the shape of the value: servers of other versions may share the key.
        """
        try:
            padded = text.translate(_TO_BASE64).encode("ascii") + b"=" * (-len(text) % 4)
            packed = binascii.a2b_base64(padded, strict_mode=True)
        except (UnicodeEncodeError, binascii.Error):
            return None
        data = packed[_MAC_SIZE:]
        mac = packed[:_MAC_SIZE]
        if not any(hmac.compare_digest(mac, _sign(key, purpose, data)) for key in self._keys):
            return None
        unpacking = zlib.decompressobj()
        try:
            value = json.loads(unpacking.decompress(data, MAX_VALUE_SIZE))
        except (zlib.error, ValueError, RecursionError):
            return None
        return value if unpacking.eof else None


def _sign(key: bytes, purpose: str, data: bytes) -> bytes:
    return hmac.new(key, purpose.encode() + b"\0" + data, sha256).digest()


def derive_key(secret: str) -> bytes:
    """Derive the sealing key from a secret; all servers with the same secret share the key."""
    return hmac.new(b"xetserve sealing key", secret.encode(), sha256).digest()
