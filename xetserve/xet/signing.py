"""Values that leave this server and come back to it: whoever has them can read them, nobody can
change them.

They are signed, not encrypted: a client can read what it was given, the CAS token or the upstream's
data URL inside. That tells it nothing new, since the Hub and the CAS would have given it the same;
and what it holds is good there as well as here.

A sealed value is base64url(HMAC-SHA256, 32 bytes, then the value as JSON, deflated), without
padding. What it is for goes into the HMAC, so that one kind cannot stand in for another.
"""

import binascii
import hmac
import json
import zlib
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any, Final

KEY_SIZE: Final = 32  # bytes
MAX_VALUE_SIZE: Final = 1024 * 1024  # bytes of JSON; a hundred times what a URL or a field holds
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
        """Return the value that was sealed for this purpose; None: nobody with our key made it.

        Its shape may be another than this version makes: servers of several versions may have the
        same key.
        """
        try:
            padded = text.translate(_TO_BASE64).encode("ascii") + b"=" * (-len(text) % 4)
            packed = binascii.a2b_base64(padded, strict_mode=True)
        except (UnicodeEncodeError, binascii.Error):
            return None
        data = packed[_MAC_SIZE:]
        if not hmac.compare_digest(packed[:_MAC_SIZE], self._sign(purpose, data)):
            return None
        unpacking = zlib.decompressobj()
        try:
            value = json.loads(unpacking.decompress(data, MAX_VALUE_SIZE))
        except (zlib.error, ValueError, RecursionError):
            return None
        return value if unpacking.eof else None

    def _sign(self, purpose: str, data: bytes) -> bytes:
        return hmac.new(self._key, purpose.encode() + b"\0" + data, sha256).digest()


def derive_key(secret: str) -> bytes:
    """Return the key that servers with the same secret have in common."""
    return hmac.new(b"xetserve sealing key", secret.encode(), sha256).digest()
