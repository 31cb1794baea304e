"""The validity of X.509 certificates. No I/O.

The standard library shows it for certificates of peers only. This reads just as much of the DER
encoding as leads to it (RFC 5280, 4.1):

    Certificate     SEQUENCE
      tbsCertificate  SEQUENCE
        version         [0], may be missing
        serialNumber    INTEGER
        signature       SEQUENCE
        issuer          SEQUENCE
        validity        SEQUENCE
          notBefore       UTCTime (YYMMDDHHMMSSZ) or GeneralizedTime (YYYYMMDDHHMMSSZ)
          notAfter        the same
"""

import base64
import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

_PEM: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END "
)
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_TIMES: Final = (_UTC_TIME, 0x18)


class Validity(NamedTuple):
    """When a certificate is valid, in Unix seconds; both ends are inclusive."""

    begins: float
    ends: float


def read_validity(pem: bytes) -> Validity:
    """Read the validity of the first certificate in PEM text.

    Raises:
        ValueError: the text has no certificate, or one that is malformed.
    """
    match = _PEM.search(pem)
    if match is None:
        raise ValueError("there is no certificate in PEM form")
    der = base64.b64decode(match[1])
    at, _ = _open(der, 0, _SEQUENCE)
    at, _ = _open(der, at, _SEQUENCE)
    if der[at : at + 1] == bytes([_VERSION]):
        at = _skip(der, at)
    for _ in range(3):  # serialNumber, signature, issuer
        at = _skip(der, at)
    begins, _ = _open(der, at, _SEQUENCE)
    return Validity(_read_time(der, begins), _read_time(der, _skip(der, begins)))


def _read_time(der: bytes, at: int) -> float:
    start, end = _open(der, at, *_TIMES)
    text = der[start:end].decode("ascii")
    if der[at] == _UTC_TIME:  # years from 1950 to 2049
        text = f"{'19' if text[:2] >= '50' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _skip(der: bytes, at: int) -> int:
    return _open(der, at)[1]


def _open(der: bytes, at: int, *tags: int) -> tuple[int, int]:
    """Return start and end of the content of the element at an offset.

    Raises:
        ValueError: it has none of the tags, or does not lie in the data.
    """
    if at + 2 > len(der) or (tags and der[at] not in tags):
        raise ValueError("the certificate is malformed")
    start, size = at + 2, der[at + 1]
    if size >= 0x80:  # the low bits count the bytes of the size
        num = size & 0x7F
        start, size = start + num, int.from_bytes(der[start : start + num], "big")
    if start + size > len(der):
        raise ValueError("the certificate is malformed")
    return start, start + size
