"""Forward proxies: which one leads to an origin, by the variables that curl reads.

HTTPS_PROXY, HTTP_PROXY and ALL_PROXY name a proxy for each scheme of the origin, and NO_PROXY the
origins without one. They are read as curl reads them (CURLOPT_PROXY, CURLOPT_NOPROXY), with three
differences: HTTP_PROXY counts in upper case, too; an HTTP proxy without a port has 8080; and an
entry of NO_PROXY may have a port, as in Go and Python.
"""

import base64
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment

from xetserve.errors import UpstreamRefused
from xetserve.net.url import Origin

HTTP: Final = "http"
HTTPS: Final = "https"  # TLS to the proxy itself
SOCKS_LOCAL: Final = "socks5"  # this machine resolves the names of hosts
SOCKS: Final = "socks5h"  # the proxy does
# Scheme in the URL -> kind of proxy and default port. GNOME writes socks://.
_KINDS: Final = {
    "http": (HTTP, 8080),
    "https": (HTTPS, 443),
    "socks5": (SOCKS_LOCAL, 1080),
    "socks5h": (SOCKS, 1080),
    "socks": (SOCKS, 1080),
}
_MAX_LOGIN: Final = 255  # bytes of a user name or password for SOCKS (RFC 1929, 2)
_ADVICE: Final = "correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY"


class Proxy(NamedTuple):
    """A forward proxy.

    kind: HTTP, HTTPS, SOCKS_LOCAL or SOCKS.
    login: user and password; None: the proxy requires none.
    """

    kind: str
    host: str
    port: int
    login: tuple[str, str] | None = None

    @property
    def is_socks(self) -> bool:
        """Return whether the proxy speaks SOCKS 5, and not HTTP."""
        return self.kind in (SOCKS, SOCKS_LOCAL)

    @property
    def authorization(self) -> str | None:
        """Return the Proxy-Authorization to send to an HTTP proxy; None: it requires none."""
        if self.login is None:
            return None
        return "Basic " + base64.b64encode(":".join(self.login).encode()).decode("ascii")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self})"


class ProxyRules:
    """The values of HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY at the time of creation."""

    def __init__(self, proxies: Mapping[str, str] | None = None) -> None:
        self._proxies = dict(getproxies_environment() if proxies is None else proxies)
        self._exceptions = Exceptions(self._proxies.get("no", ""))

    def find(self, origin: Origin) -> Proxy | None:
        """Return the proxy for an origin; None: connect directly.

        Raises:
            UpstreamRefused: the proxy's URL is invalid or has an unknown scheme.
        """
        url = self._proxies.get(origin.scheme) or self._proxies.get("all")
        if not url or origin in self._exceptions:
            return None
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port, host = parts.port, parts.hostname
        except ValueError:  # urlsplit's message quotes the URL, which may hold a password
            port, host = None, None
        if not host or port == 0:
            raise UpstreamRefused(f"the URL of the proxy is invalid: {_ADVICE}")
        if parts.scheme not in _KINDS:
            raise UpstreamRefused(
                f"cannot use a proxy with scheme {parts.scheme!r}, only http, https, socks5 and "
                f"socks5h: {_ADVICE}, or name the host in NO_PROXY"
            )
        kind, default = _KINDS[parts.scheme]
        login = None
        if parts.username:
            login = (unquote(parts.username), unquote(parts.password or ""))
        proxy = Proxy(kind, host, port or default, login)
        if proxy.is_socks and any(len(each.encode()) > _MAX_LOGIN for each in login or ()):
            raise UpstreamRefused(
                f"the user or password of the proxy has more than {_MAX_LOGIN} bytes: {_ADVICE}"
            )
        return proxy


class Exceptions:
    """The origins that NO_PROXY names.

    Args:
        text: entries separated by commas or blanks: a host, which includes all hosts below it, with
            or without a dot in front; an address; or a network. Each may have a port behind a
            colon. "*" alone is every origin.
    """

    def __init__(self, text: str) -> None:
        self._is_all = text.strip() == "*"
        self._names: list[tuple[str, int | None]] = []
        self._networks: list[tuple[IPv4Network | IPv6Network, int | None]] = []
        for entry in text.replace(",", " ").split():
            if not self._add(entry, None):
                host, _, port = entry.rpartition(":")
                if host and port.isascii() and port.isdigit():
                    self._add(host, int(port))

    def _add(self, host: str, port: int | None) -> bool:
        """Add an entry; return False if it is none, or has a port."""
        try:
            network = ip_network(host.removeprefix("[").removesuffix("]"), strict=False)
        except ValueError:
            if ":" in host:
                return False
            self._names.append((host.lower().removesuffix(".").removeprefix("."), port))
        else:
            self._networks.append((network, port))
        return True

    def __contains__(self, origin: Origin) -> bool:
        """Return whether an origin is connected to directly."""
        if self._is_all:
            return True
        try:
            address = ip_address(origin.host)
        except ValueError:
            host = f".{origin.host.lower().removesuffix('.')}"
            return any(
                name and host.endswith(f".{name}") and port in (None, origin.port)
                for name, port in self._names
            )
        return any(
            address in network and port in (None, origin.port) for network, port in self._networks
        )
