"""Digests of content: the Repr-Digest field (RFC 9530), and lines that sha256sum checks."""

from base64 import b64encode


def format_repr_digest(sha256: str) -> str:
    """Write a Repr-Digest field: a dictionary with one byte sequence (RFC 8941).

    Args:
        sha256: in hex.
    """
    return f"sha-256=:{b64encode(bytes.fromhex(sha256)).decode('ascii')}:"


def format_checksum_line(digest: str, name: str) -> str:
    """Write a line for `sha256sum -c`; names with odd characters are escaped as GNU coreutils
    does.
    """
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"
