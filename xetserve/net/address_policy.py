"""Where connections may lead: URLs of others must not reach into the operator's own network.

A redirect, a CAS URL or a data URL comes from somebody else. What is checked is the address that is
about to be connected to, since a name can lead anywhere. The Hub is always allowed.
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
    """What an address leads to. RESERVED: nothing that a URL could mean.

    BENCHMARK: nothing either (RFC 2544), but there are proxies that have every name lead there, to
    themselves, and find the real address by it.
    """

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    BENCHMARK = "benchmark"
    RESERVED = "reserved"


# Source: the IANA special-purpose address registries. First match counts.
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
# IPv6 that carries IPv4, and how far it has to be shifted: mapped, translated (RFC 2765), NAT64
# (RFC 6052), 6to4 (RFC 3056).
_CARRIERS: Final = tuple(
    (IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),
        ("::ffff:0:0:0/96", 0),
        ("64:ff9b::/96", 0),
        ("2002::/16", 80),
    )
)
# Metadata services of clouds: they hand out credentials, so they have to be listed one by one.
_METADATA: Final = frozenset(
    map(
        ip_address,
        ("169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "192.0.0.192"),
    )
)
# By the kind of the Hub's address: what may be reached besides what is public.
_NEIGHBOURS: Final = {
    Kind.PRIVATE: {Kind.PRIVATE},
    Kind.LOOPBACK: {Kind.PRIVATE, Kind.LOOPBACK},
    Kind.LINK_LOCAL: {Kind.PRIVATE, Kind.LINK_LOCAL},
    Kind.BENCHMARK: {Kind.BENCHMARK},
}


class AddressPolicy:
    """Decides which addresses may be connected to.

    Args:
        hub: the Hub's origin, which is always allowed.
        networks: what is allowed besides public addresses. None: where the Hub's own address is
            private, other private ones; where it is loopback or link-local, those as well; where a
            proxy has made it up, others that it does.
            A metadata service has to be listed by its own address.
    """

    def __init__(self, hub: Origin, networks: Iterable[str] | None = None) -> None:
        self._hub = hub
        self._networks = None if networks is None else [ip_network(each) for each in networks]

    def is_free(self, origin: Origin) -> bool:
        """Return whether an origin is allowed wherever it leads."""
        return origin == self._hub

    async def allows(self, text: str) -> bool:
        """Return whether an address may be connected to.

        Args:
            text: a numeric address, perhaps with a zone.

        Raises:
            OSError: what the Hub's name leads to cannot be found out now.
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
            if exc.errno == socket.EAI_NONAME:  # behind a proxy, its name may mean nothing here
                return set()
            raise
        found: set[Kind] = set()
        for info in infos:
            address = unwrap(ip_address(str(info[4][0]).partition("%")[0]))
            found |= _NEIGHBOURS.get(find_kind(address), set())
        return found


def find_kind(address: Address) -> Kind:
    """Return the kind of an address that carries no other."""
    return next(kind for network, kind in _KINDS if address in network)


def unwrap(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one carries, or the address itself."""
    if isinstance(address, IPv6Address):
        for network, shift in _CARRIERS:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return address


def find_literal(host: str) -> str | None:
    """Return the address that a host is written as, in any form; None: it is a name."""
    host = host.partition("%")[0].rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return "127.0.0.1"
    try:
        infos = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(infos[0][4][0])
