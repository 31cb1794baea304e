"""Digests of content: the Repr-Digest field (RFC 9530) and lines for `sha256sum -c`."""

from base64 import b64encode


def format_repr_digest(sha256: str) -> str:
    """Return the value of Repr-Digest: a dictionary with one byte sequence (RFC 8941).

    Args:
        sha256: 64 hex digits.
    """
    return f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode('ascii')}:"


def format_checksum_line(digest: str, name: str) -> str:
    """Return a line for `sha256sum -c`; backslashes and line ends are escaped as in coreutils."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
