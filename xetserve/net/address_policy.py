"""Address policy: keep URLs from upstreams out of the operator's own network (SSRF protection).

Redirects, CAS URLs and data URLs come from other servers. The policy checks the address of a
connection before it is opened, since a host name can resolve to any address. The Hub is always
allowed.
"""

import asyncio
import socket
from collections.abc import Iterable
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from xetserve.net.url import Origin

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Kind(Enum):
    """The kind of network that an address belongs to.

    RESERVED: an address that no valid URL uses.
    BENCHMARK: 198.18.0.0/15 (RFC 2544). Some transparent proxies resolve every host name to an
        address in this network, which they map back to the real one.
    """

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    BENCHMARK = "benchmark"
    RESERVED = "reserved"


# Source: the IANA special-purpose address registries. The first match counts.
_KINDS: Final[tuple[tuple[Network, Kind], ...]] = tuple(
    (ip_network(network), kind)
    for kind, networks in (
        (Kind.LOOPBACK, "127.0.0.0/8 ::1/128"),
        (Kind.LINK_LOCAL, "169.254.0.0/16 fe80::/10"),
        (Kind.PRIVATE, "10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.168.0.0/16 fc00::/7"),
        (Kind.BENCHMARK, "198.18.0.0/15"),
        (Kind.RESERVED, "0.0.0.0/8 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24"),
        (Kind.RESERVED, "198.51.100.0/24 203.0.113.0/24"),
        (Kind.RESERVED, "224.0.0.0/3 2001::/23 2001:db8::/32 3fff::/20"),
        (Kind.PUBLIC, "0.0.0.0/0 2000::/3"),
        (Kind.RESERVED, "::/0"),
    )
    for network in networks.split()
)
# IPv6 networks whose addresses embed an IPv4 address, and the right shift in bits that extracts it:
# mapped, translated (RFC 2765), NAT64 (RFC 6052), 6to4 (RFC 3056).
_CARRIERS: Final = tuple(
    (IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),
        ("::ffff:0:0:0/96", 0),
        ("64:ff9b::/96", 0),
        ("2002::/16", 80),
    )
)
# Metadata services of clouds hand out credentials, so the operator must allow each by its address.
_METADATA: Final = frozenset(
    map(
        ip_address,
        ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "192.0.0.192"),
    )
)
# Kind of the Hub's address -> the kinds that are allowed besides public ones.
_NEIGHBOURS: Final = {
    Kind.PRIVATE: {Kind.PRIVATE},
    Kind.LOOPBACK: {Kind.PRIVATE, Kind.LOOPBACK},
    Kind.LINK_LOCAL: {Kind.PRIVATE, Kind.LINK_LOCAL},
    Kind.BENCHMARK: {Kind.BENCHMARK},
}


class AddressPolicy:
    """A policy that decides which addresses the server may connect to.

    Args:
        hub: the Hub's origin, which is always allowed.
        networks: networks allowed besides public addresses. None: derive them from the Hub's own
            address, see _NEIGHBOURS: for a private Hub private addresses, for a loopback or
            link-local Hub those as well, for a benchmark address other benchmark addresses.
            A metadata service is allowed only by its own address, never by a larger network.
    """

    def __init__(self, hub: Origin, networks: Iterable[str] | None = None) -> None:
        self._hub = hub
        self._networks = None if networks is None else [ip_network(each) for each in networks]

    def is_free(self, origin: Origin) -> bool:
        """Return whether an origin is allowed at any address."""
        return origin == self._hub

    async def allows(self, text: str) -> bool:
        """Return whether the server may connect to an address.

        Args:
            text: a numeric address, perhaps with a zone.

        Raises:
            OSError: the Hub's host name could not be resolved.
        """
        address = unwrap(ip_address(text.partition("%")[0]))
        if self._networks is not None:
            for network in self._networks:
                if address in network and (address not in _METADATA or network.num_addresses == 1):
                    return True
        kind = find_kind(address)
        if kind is Kind.PUBLIC or self._networks is not None or address in _METADATA:
            return kind is Kind.PUBLIC
        return kind in await self._find_neighbours()

    async def _find_neighbours(self) -> set[Kind]:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.getaddrinfo(self._hub.host, self._hub.port, type=socket.SOCK_STREAM)
        except UnicodeError:
            return set()
        except socket.gaierror as exc:
            if exc.errno == socket.EAI_NONAME:  # behind a proxy, the name need not resolve here
                return set()
            raise
        found: set[Kind] = set()
        for info in infos:
            address = unwrap(ip_address(str(info[4][0]).partition("%")[0]))
            found |= _NEIGHBOURS.get(find_kind(address), set())
        return found


def find_kind(address: Address) -> Kind:
    """Return the kind of an address; unwrap an embedded IPv4 address first."""
    return next(kind for network, kind in _KINDS if address in network)


def unwrap(address: Address) -> Address:
    """Return the IPv4 address embedded in an IPv6 address, or the address itself."""
    if isinstance(address, IPv6Address):
        for network, shift in _CARRIERS:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return address


def find_literal(host: str) -> str | None:
    """Return the address if host is a numeric address in any notation; None: host is a name."""
    host = host.partition("%")[0].rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return "127.0.0.1"
    try:
        infos = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(infos[0][4][0])
