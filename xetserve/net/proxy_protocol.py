"""The PROXY protocol, versions 1 and 2: parse the header with which a TCP proxy names its client.

The header precedes the client's first byte. Pure: bytes in, an address out.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt; comments name its sections.
"""

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

V1_SIZE: Final = 107  # the most bytes of a whole header (2.1)
V2_SIZE: Final = 4096  # the most bytes behind the fixed part; our own limit
_V1_START: Final = b"PROXY "
_V2_START: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16  # bytes up to the addresses (2.2)

# Parts are separated by one space; numbers have no leading zeros (2.1).
_V1_LINE: Final = re.compile(
    r"PROXY (?:UNKNOWN(?: [ -~]*)?|"
    r"(?P<family>TCP[46]) (?P<source>[0-9A-Fa-f.:]+) (?P<target>[0-9A-Fa-f.:]+)"
    r" (?P<source_port>0|[1-9][0-9]{0,4}) (?P<target_port>0|[1-9][0-9]{0,4}))"
)


class BadProxyHeader(ValueError):
    """The connection does not begin with a valid PROXY header."""


class ProxyHeader(NamedTuple):
    """A parsed header.

    size: of the header in bytes.
    source: the client's address; None: the connection is the proxy's own, or it is unknown.
    """

    size: int
    source: str | None


def parse_header(data: bytes) -> ProxyHeader | None:
    """Parse the header at the start of a connection; None: data ends inside the header.

    Raises:
        BadProxyHeader: data cannot become a valid header, whatever follows.
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
    if match["family"] is None:  # UNKNOWN: the receiver must ignore the rest of the line
        return ProxyHeader(size, None)
    kind = IPv4Address if match["family"] == "TCP4" else IPv6Address
    try:
        source = kind(match["source"])
        kind(match["target"])
    except ValueError:
        raise BadProxyHeader("bad address in the PROXY line") from None
    if max(int(match["source_port"]), int(match["target_port"])) > 65535:
        raise BadProxyHeader("bad port in the PROXY line")
    return ProxyHeader(size, _format(source))


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
    # LOCAL: a health check by the proxy itself. Datagrams and Unix sockets have no client address.
    if command == 0 or transport != 1 or family not in (1, 2):
        return ProxyHeader(size, None)
    width = 4 if family == 1 else 16
    if length < 2 * width + 4:  # two addresses and two ports; TLV fields may follow
        raise BadProxyHeader("the PROXY header is too short for its addresses")
    raw = data[_V2_FIXED : _V2_FIXED + width]
    source = IPv4Address(raw) if family == 1 else IPv6Address(raw)
    return ProxyHeader(size, _format(source))


def _format(address: IPv4Address | IPv6Address) -> str:
    """Return an address as text; an IPv4-mapped one becomes the IPv4 address."""
    return str(getattr(address, "ipv4_mapped", None) or address)
