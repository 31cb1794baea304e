"""Values that leave this server and come back to it: whoever has them can read them, nobody can change them.

A sealed value is base64url(HMAC-SHA256, 32 bytes, then the value as JSON, deflated), without padding. What it is for goes
into the HMAC, so that one kind cannot stand in for another.
"""

import binascii
import hmac
import json
import zlib
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any, Final

KEY_SIZE: Final = 32  # bytes
_MAC_SIZE: Final = 32
_TO_BASE64: Final = str.maketrans("-_", "+/")


class Sealer:
    """Seals and unseals under one key.

    Args:
        key: as long and random as KEY_SIZE says, or longer.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, purpose: str, value: Any) -> str:
        """Seal a JSON value. The text is fit for URLs and header fields."""
        data = zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 9)
        return urlsafe_b64encode(self._sign(purpose, data) + data).decode().rstrip("=")

    def unseal(self, purpose: str, text: str) -> Any | None:
        """Give the value that was sealed for this purpose; None: this text was not made here."""
        try:
            padded = text.translate(_TO_BASE64).encode("ascii") + b"=" * (-len(text) % 4)
            packed = binascii.a2b_base64(padded, strict_mode=True)
        except (UnicodeEncodeError, binascii.Error):
            return None
        data = packed[_MAC_SIZE:]
        if not hmac.compare_digest(packed[:_MAC_SIZE], self._sign(purpose, data)):
            return None
        return json.loads(zlib.decompress(data))  # it is what we have made

    def _sign(self, purpose: str, data: bytes) -> bytes:
        return hmac.new(self._key, purpose.encode() + b"\0" + data, sha256).digest()


def derive_key(secret: str) -> bytes:
    """Give the key that servers with the same secret have in common."""
    return hmac.new(b"xetserve sealing key", secret.encode(), sha256).digest()
