"""CAS tokens and signed URLs: HMAC-SHA256 with a secret that stays in the folder.

CAS token     xet_{payload}.{signature}    payload: base64url JSON, type, id, scope and expiry
data URL      /data/{xorb hash}?X-Xet-Signed-Range=bytes%3Da-b%2Cc-d&Expires=...&Signature=...
other URLs    {path}?...&Expires={Unix seconds}&Signature=...
"""

import base64
import binascii
import hmac
import json
import os
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from xetserve.base.atomic_file import open_private
from xetserve.origin.store.blobs import TemporaryFiles
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange

SECRET_SIZE: Final = 32  # bytes
MAX_URL_RANGES_SIZE: Final = 6000  # characters of ranges in one URL, about 8 KiB once encoded
MAX_URL_RANGES: Final = 500

_PREFIX: Final = "xet_"


class Grant(NamedTuple):
    """The permission that a CAS token carries. scope: "read" or "write"; write includes read."""

    repo_type: str
    repo_id: str
    scope: str
    expires: int


def load_secret(root: Path, temporary: TemporaryFiles) -> bytes:
    """Return the folder's secret. It is made once, so tokens and URLs outlive a restart."""
    path = root / "secret"
    if not path.exists():
        temporary.write(path, os.urandom(SECRET_SIZE).hex().encode())
    with open(path, opener=open_private) as file:
        return bytes.fromhex(file.read().strip())


class Signer:
    """Sign and check tokens and URLs. clock returns Unix seconds."""

    def __init__(self, secret: bytes, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._clock = clock

    def make_token(self, grant: Grant) -> str:
        """Return a CAS token."""
        payload = base64.urlsafe_b64encode(json.dumps(grant).encode()).decode().rstrip("=")
        return f"{_PREFIX}{payload}.{self._sign('token', payload)}"

    def parse_token(self, token: str) -> Grant | None:
        """Parse a CAS token; None: it is not ours, or has expired."""
        payload, _, signature = token.removeprefix(_PREFIX).partition(".")
        if not token.startswith(_PREFIX) or not self._matches(signature, "token", payload):
            return None
        try:
            value = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        except (ValueError, binascii.Error):
            return None
        grant = Grant(*value)
        return grant if self._clock() < grant.expires else None

    def get_expiry(self, lifetime: float) -> int:
        """Return the Unix second at which a signature made now expires."""
        return int(self._clock() + lifetime)

    def make_data_url(
        self, base: str, xorb_hash: bytes, ranges: Sequence[ByteRange], expires: int
    ) -> str:
        """Return the URL that lets its bearer read these ranges of a xorb, and no others."""
        name = format_hash(xorb_hash)
        signed = format_ranges(ranges)
        signature = self._sign("data", name, signed, str(expires))
        return (
            f"{base}/data/{name}?X-Xet-Signed-Range={quote(signed, safe='')}"
            f"&Expires={expires}&Signature={signature}"
        )

    def check_data_url(self, name: str, query: dict[str, str]) -> str | None:
        """Return the fault of a data URL; None: it is valid."""
        signed = query.get("X-Xet-Signed-Range", "")
        return self._check(query, "data", name, signed)

    def make_url(self, base: str, path: str, query: dict[str, str], expires: int) -> str:
        """Return a signed URL; path is encoded already."""
        signature = self._sign("url", path, *_join(query), str(expires))
        fields = {**query, "Expires": str(expires), "Signature": signature}
        return f"{base}{path}?" + "&".join(f"{k}={quote(v, safe='')}" for k, v in fields.items())

    def check_url(self, path: str, query: dict[str, str]) -> str | None:
        """Return the fault of a signed URL; None: it is valid."""
        own = {k: v for k, v in query.items() if k not in ("Expires", "Signature")}
        return self._check(query, "url", path, *_join(own))

    def _check(self, query: dict[str, str], *parts: str) -> str | None:
        expires = query.get("Expires", "")
        if not self._matches(query.get("Signature", ""), *parts, expires):
            return "the URL's signature is wrong"
        if self._clock() >= int(expires):
            return "the URL has expired"
        return None

    def _sign(self, *parts: str) -> str:
        text = json.dumps(parts).encode()  # JSON keeps the parts apart, whatever they contain
        return hmac.new(self._secret, text, sha256).hexdigest()

    def _matches(self, signature: str, *parts: str) -> bool:
        return hmac.compare_digest(signature.encode(), self._sign(*parts).encode())


def _join(query: dict[str, str]) -> Iterable[str]:
    return (part for item in query.items() for part in item)


def format_ranges(ranges: Sequence[ByteRange]) -> str:
    """Return ranges in the form of a Range header, in the given order."""
    return "bytes=" + ",".join(f"{start}-{end - 1}" for start, end in ranges)


def split_ranges(ranges: Sequence[ByteRange]) -> list[Sequence[ByteRange]]:
    """Split a list of ranges into parts that each fit into one URL."""
    parts: list[Sequence[ByteRange]] = []
    part: list[ByteRange] = []
    size = 0
    for byte_range in ranges:
        text_size = len(f"{byte_range.start}-{byte_range.end},")
        if part and (size + text_size > MAX_URL_RANGES_SIZE or len(part) == MAX_URL_RANGES):
            parts.append(part)
            part, size = [], 0
        part.append(byte_range)
        size += text_size
    if part:
        parts.append(part)
    return parts
