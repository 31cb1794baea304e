"""File limits: divide the files that a process may open among clients, upstreams and the rest.

Of 1000 files, at most 500 are for clients, 125 for short uses (metadata requests, cache entries)
and 32 for the process itself. The other 343 are for upstream connections, one for each active
request.
"""

from typing import Final, NamedTuple

from xetserve.errors import ConfigError

RESERVED: Final = 32  # event loop, listening sockets, logs, folders, resolver
MAX_PASSING: Final = 128  # the most files for short uses


class FileShares(NamedTuple):
    """The limits that follow from the number of files.

    connections: open connections of clients.
    requests: active requests, each with an upstream connection.
    """

    connections: int
    requests: int


def share_files(max_files: int, max_connections: int) -> FileShares:
    """Divide the files that a process may open.

    Args:
        max_connections: the operator's limit of client connections; 0: as many as possible.

    Raises:
        ConfigError: the files do not suffice for one download.
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
