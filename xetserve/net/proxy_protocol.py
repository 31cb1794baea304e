"""The PROXY protocol, versions 1 and 2: how a TCP proxy tells who its client is, before the first
byte of that client.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt; sections as there. Pure: bytes in, an
address out.
"""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

V1_SIZE: Final = 107  # bytes of a whole header at most (2.1)
V2_SIZE: Final = (
    4096  # of what follows the fixed part, addresses and all that is skipped; our own limit
)
_V1_START: Final = b"PROXY "
_V2_START: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16  # bytes up to the addresses (2.2)

# One space between parts, numbers without leading zeros.
_V1_LINE: Final = re.compile(
    r"PROXY (?:UNKNOWN(?: [ -~]*)?|"
    r"(?P<family>TCP[46]) (?P<source>[0-9A-Fa-f.:]+) (?P<target>[0-9A-Fa-f.:]+)"
    r" (?P<source_port>0|[1-9][0-9]{0,4}) (?P<target_port>0|[1-9][0-9]{0,4}))"
)


class BadProxyHeader(ValueError):
    """The connection does not begin as the protocol says."""


class ProxyHeader(NamedTuple):
    """A header: its bytes, and the client's address; None: the proxy speaks for itself, or does not
    know.
    """

    size: int
    source: str | None


def parse_header(data: bytes) -> ProxyHeader | None:
    """Read the header that a connection begins with; None: there is more of it to come.

    Raises:
        BadProxyHeader: it is none; said as soon as that is certain.
    """
    if data[: len(_V2_START)] == _V2_START[: len(data)]:
        return _parse_v2(data)
    if data[: len(_V1_START)] == _V1_START[: len(data)]:
        return _parse_v1(data)
    raise BadProxyHeader("the connection does not begin with a PROXY header")


def _parse_v1(data: bytes) -> ProxyHeader | None:
    line, end, _ = data[:V1_SIZE].partition(b"\r\n")
    if not end:
        if len(data) >= V1_SIZE:
            raise BadProxyHeader("the PROXY line does not end")
        return None
    size = len(line) + len(end)
    match = _V1_LINE.fullmatch(line.decode("latin-1"))
    if match is None:
        raise BadProxyHeader("malformed PROXY line")
    if match["family"] is None:  # UNKNOWN: the rest means nothing
        return ProxyHeader(size, None)
    kind = IPv4Address if match["family"] == "TCP4" else IPv6Address
    try:
        source = kind(match["source"])
        kind(match["target"])
    except ValueError:
        raise BadProxyHeader("bad address in the PROXY line") from None
    if max(int(match["source_port"]), int(match["target_port"])) > 65535:
        raise BadProxyHeader("bad port in the PROXY line")
    return ProxyHeader(size, str(source))


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_FIXED:
        return None
    version, command = data[12] >> 4, data[12] & 15
    family, transport = data[13] >> 4, data[13] & 15
    length = int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1:
        raise BadProxyHeader("unknown version or command in the PROXY header")
    if family > 3 or transport > 2:
        raise BadProxyHeader("unknown family or transport in the PROXY header")
    if length > V2_SIZE:
        raise BadProxyHeader(f"the PROXY header is longer than {V2_SIZE} bytes")
    size = _V2_FIXED + length
    if len(data) < size:
        return None
    # LOCAL: the proxy's own health checks. Datagrams and Unix sockets have no address for us.
    if command == 0 or transport != 1 or family not in (1, 2):
        return ProxyHeader(size, None)
    width = 4 if family == 1 else 16
    if length < 2 * width + 4:  # two addresses, two ports; type-length-values may follow
        raise BadProxyHeader("the PROXY header is too short for its addresses")
    raw = data[_V2_FIXED : _V2_FIXED + width]
    source = IPv4Address(raw) if family == 1 else IPv6Address(raw)
    return ProxyHeader(size, str(source))
