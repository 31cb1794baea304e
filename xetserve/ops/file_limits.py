"""Who gets the files that a process may open: clients, upstream connections, and the rest.

Of 1000 files, 500 are for clients at most, 125 for what comes and goes (questions, entries of the
cache), 32 for the process itself. Each request under way may count on one of the 343 that are left,
for its data.
"""

from typing import Final, NamedTuple

from xetserve.errors import ConfigError

RESERVED: Final = 32  # event loop, listening sockets, logs, folders, resolver
MAX_PASSING: Final = 128  # files that come and go


class FileShares(NamedTuple):
    """How many may be open at a time.

    connections: of clients.
    requests: under way, each with an upstream connection.
    """

    connections: int
    requests: int


def share_files(max_files: int, max_connections: int) -> FileShares:
    """Divide the files that a process may open.

    Args:
        max_connections: that the operator wants at most; 0: as many as there can be.

    Raises:
        ConfigError: there are too few for a single download.
    """
    connections = max_files // 2
    if max_connections:
        connections = min(connections, max_connections)
    passing = min(max_files // 8, MAX_PASSING)
    requests = max_files - connections - passing - RESERVED
    if requests < 1:
        raise ConfigError(
            f"this process may open {max_files} files, which is too few: raise the hard limit "
            "(ulimit -Hn)"
        )
    return FileShares(connections, requests)
