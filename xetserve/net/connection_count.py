"""Who is connected: in all, and from one address."""

from collections import Counter
from ipaddress import IPv6Address
from typing import Any


def client_key(address: Any) -> str:
    """Return what stands for the client at a socket address; "" on a Unix socket.

    An IPv4 address stands for itself, an IPv6 address for its /64: one subscriber has at least that
    many.
    """
    if not isinstance(address, tuple):
        return ""
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    six = IPv6Address(host)
    if six.ipv4_mapped is not None:
        return str(six.ipv4_mapped)
    return f"{IPv6Address(int(six) >> 64 << 64)}/64"


class ConnectionCount:
    """Counts connections, and tells when there are too many.

    Args:
        max_connections: in all; 0: any number.
        max_per_client: from one client; 0: any number. Unix sockets are exempt: they have one
            address.
    """

    def __init__(self, max_connections: int = 0, max_per_client: int = 0) -> None:
        self._max_connections = max_connections
        self._max_per_client = max_per_client
        self._num_of: Counter[str] = Counter()
        self.num_connections = 0

    def find_excess(self, client: str) -> tuple[int, str] | None:
        """Return the status and the reason for refusing one more connection; None: there is
        room.
        """
        if self._max_connections and self.num_connections >= self._max_connections:
            return 503, "the server has as many connections as it may have; come again later"
        return self.find_excess_of(client)

    def find_excess_of(self, client: str) -> tuple[int, str] | None:
        """As find_excess, but for a connection that is counted already, though not as this
        client's.
        """
        limit = self._max_per_client
        if limit and client and self._num_of[client] >= limit:
            return 429, f"more than {limit} connections from one client"
        return None

    def set_limits(self, max_connections: int, max_per_client: int) -> None:
        """Change the limits; nobody who is there has to leave."""
        self._max_connections = max_connections
        self._max_per_client = max_per_client

    def add(self, client: str) -> None:
        """Count a connection."""
        self.num_connections += 1
        self._num_of[client] += 1

    def remove(self, client: str) -> None:
        """A connection of this client has ended."""
        self.num_connections -= 1
        self._num_of[client] -= 1
        if not self._num_of[client]:
            del self._num_of[client]
