"""Clients behind proxies: read X-Forwarded-For, -Proto, -Host, -Port and -Prefix, or Forwarded.

Any client can send these fields, so an entry counts only if a trusted proxy wrote it. Each proxy
appends the address of its peer. The list is therefore read from its end, past the trusted proxies,
to the first address that is not a trusted proxy: that is the client. The operator sets which of the
two kinds is read (Forwarded: RFC 7239). A proxy that writes one kind passes on the other as the
client sent it.
"""

import re
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final

from xetserve.base.path_prefix import PATH_PREFIX
from xetserve.http.messages import Headers, Request
from xetserve.http.request import has_port, is_host

UNIX: Final = "unix"
FORWARDED: Final = "forwarded"
X_FORWARDED: Final = "x-forwarded"
MAX_HOPS: Final = 32  # entries read, from the end of the list

# parameter = token "=" value; quoted strings may hold the separators (RFC 7239, 4). Each match
# starts where the last one ended. Blanks match possessively ("*+"): a parameter may be missing, and
# backtracking over a long run of blanks takes seconds.
_PAIR: Final = re.compile(
    r"""[ \t]*+(?:(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]++)="""
    r"""(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<token>[!#$%&'*+.^_`|~0-9A-Za-z-]++)))?+"""
    r"""[ \t]*+(?P<end>[;,]|$)"""
)
# An address in these fields, with or without a port.
_NODE: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+))(?::[0-9A-Za-z._-]{1,16})?"
    r"|(?P<bare>[0-9A-Fa-f:.]+)"
)


class TrustedProxies:
    """The addresses of the trusted proxies.

    Args:
        text: networks separated by commas; "unix" trusts all peers on a Unix socket.

    Raises:
        ValueError: an item is not a network.
    """

    def __init__(self, text: str = "") -> None:
        names = [name.strip() for name in text.split(",") if name.strip()]
        self._unix = UNIX in names
        self._networks: list[IPv4Network | IPv6Network] = [
            ip_network(name) for name in names if name != UNIX
        ]

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, address: str) -> bool:
        """Return whether a peer is a trusted proxy; "" is a peer on a Unix socket."""
        if not address:
            return self._unix
        parsed = _parse_address(address)
        return parsed is not None and any(parsed in network for network in self._networks)


@dataclass(frozen=True, slots=True)
class _Hop:
    """One proxy's entry about its peer; "" for a value that the proxy did not send."""

    address: str = ""
    proto: str = ""
    host: str = ""
    port: str = ""
    prefix: str = ""


class Forwarding:
    """A policy that finds the client behind trusted proxies.

    Args:
        kind: FORWARDED or X_FORWARDED, the kind of fields that these proxies write.
    """

    def __init__(self, trusted: TrustedProxies, kind: str = X_FORWARDED) -> None:
        self._trusted = trusted
        self._read = _read_forwarded if kind == FORWARDED else _read_x_forwarded

    def apply(self, request: Request) -> None:
        """Set the request's peer, secure, host and prefix to what trusted proxies sent.

        A port counts only for a host without one: many proxies send the port on which they
        listen, which another proxy or a container may map to a different one.

        An attribute without such a value stays unchanged.
        """
        if request.peer not in self._trusted:
            return
        proto = host = port = prefix = ""
        for hop in self._read(request.headers):
            proto, host, port = hop.proto or proto, hop.host or host, hop.port or port
            prefix = hop.prefix or prefix
            address = normalize_address(hop.address)
            if not address:  # "unknown", an obfuscated name, or malformed: the list ends here
                break
            request.peer = address
            if address not in self._trusted:
                break
        if proto.lower() in ("http", "https"):
            request.secure = proto.lower() == "https"
        prefix = prefix.rstrip("/")
        if is_prefix(prefix):
            request.prefix = prefix
        if not is_host(host) or host.startswith(":"):
            host = ""
        own = request.headers.get("host") or ""
        host = _add_port(host or own, port, secure=request.secure)
        if host != own:
            others = [field for field in request.headers if field[0].lower() != "host"]
            request.headers = Headers([("host", host), *others])


def is_prefix(text: str) -> bool:
    """Return whether text may stand before the paths of this server: "/a/b", or "".

    Its characters need no escape and no quotes, wherever a link is written.
    """
    return PATH_PREFIX.fullmatch(text) is not None


def _add_port(host: str, port: str, *, secure: bool) -> str:
    """Return a host with a port, unless it has one or the port is the scheme's default."""
    is_port = re.fullmatch(r"[1-9][0-9]{0,4}", port) and int(port) <= 65535
    if not host or not is_port or port == ("443" if secure else "80") or has_port(host):
        return host
    return f"{host}:{port}"


def normalize_address(text: str) -> str:
    """Return an address without port, brackets or zone; "" if text is not an address.

    An IPv4-mapped IPv6 address becomes the IPv4 address.
    """
    match = _NODE.fullmatch(text.strip(" \t"))
    if match is None:
        return ""
    parsed = _parse_address(match["six"] or match["four"] or match["bare"])
    return "" if parsed is None else str(parsed)


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _read_x_forwarded(headers: Headers) -> list[_Hop]:
    """Return the hops, the nearest proxy's entry first.

    Often only one of several proxies sets the other fields, so their lists may be shorter than the
    list of addresses.
    """
    addresses = _list(headers, "x-forwarded-for")
    protos = _list(headers, "x-forwarded-proto")
    hosts = _list(headers, "x-forwarded-host")
    ports = _list(headers, "x-forwarded-port")
    prefixes = _list(headers, "x-forwarded-prefix")

    def at(values: list[str], index: int) -> str:
        return values[index] if index < len(values) else ""

    others = (protos, hosts, ports, prefixes)
    count = max(len(addresses), 1 if any(others) else 0)
    return [_Hop(at(addresses, i), *(at(values, i) for values in others)) for i in range(count)]


def _list(headers: Headers, name: str) -> list[str]:
    """Return the items of a list field, the last one first, at most MAX_HOPS."""
    values = ",".join(headers.get_all(name)).split(",")
    found = [value.strip(" \t") for value in values]
    return [value for value in reversed(found) if value][:MAX_HOPS]


def _read_forwarded(headers: Headers) -> list[_Hop]:
    """Return the hops, the nearest proxy's entry first; none if any part is malformed."""
    text = ",".join(headers.get_all("forwarded"))
    hops = []
    pairs: dict[str, str] = {}
    position = 0
    while position <= len(text):
        match = _PAIR.match(text, position)
        if match is None:
            return []
        if match["name"] is not None:
            name = match["name"].lower()
            if name in pairs:
                return []
            quoted = match["quoted"]
            pairs[name] = match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        if match["end"] != ";":
            if pairs:
                hops.append(
                    _Hop(pairs.get("for", ""), pairs.get("proto", ""), pairs.get("host", ""))
                )
            pairs = {}
        position = match.end() if match["end"] else len(text) + 1
    return hops[::-1][:MAX_HOPS]
