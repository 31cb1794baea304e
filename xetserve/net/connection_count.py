"""Count connections, in total and per client, and enforce both limits."""

from collections import Counter
from ipaddress import IPv6Address
from typing import Any


def client_key(address: Any) -> str:
    """Return the key that identifies the client at a socket address; "" on a Unix socket.

    The key is the IPv4 address, or the /64 of an IPv6 address: each subscriber has at least a /64.
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
    """A count of connections with two limits.

    Args:
        max_connections: in total; 0: no limit.
        max_per_client: from one client; 0: no limit. Clients on Unix sockets are exempt, because
            all of them have the same key.
    """

    def __init__(self, max_connections: int = 0, max_per_client: int = 0) -> None:
        self._max_connections = max_connections
        self._max_per_client = max_per_client
        self._num_of: Counter[str] = Counter()
        self.num_connections = 0

    def find_excess(self, client: str) -> tuple[int, str] | None:
        """Return the status and reason to refuse one more connection; None: accept it."""
        if self._max_connections and self.num_connections >= self._max_connections:
            return 503, "the server has reached its limit of connections: try again later"
        return self.find_excess_of(client)

    def find_excess_of(self, client: str) -> tuple[int, str] | None:
        """Return what find_excess does, but check only the limit of this client.

        Use it for a connection that is already in the total, for example after a PROXY header has
        named its client.
        """
        limit = self._max_per_client
        if limit and client and self._num_of[client] >= limit:
            return 429, f"more than {limit} connections from one client"
        return None

    def set_limits(self, max_connections: int, max_per_client: int) -> None:
        """Change the limits; existing connections stay open."""
        self._max_connections = max_connections
        self._max_per_client = max_per_client

    def add(self, client: str) -> None:
        """Count a new connection of a client."""
        self.num_connections += 1
        self._num_of[client] += 1

    def remove(self, client: str) -> None:
        """Stop counting a connection of a client that has ended."""
        self.num_connections -= 1
        self._num_of[client] -= 1
        if not self._num_of[client]:
            del self._num_of[client]
