"""Listening sockets that another process has opened, as systemd hands them over (sd_listen_fds(3)).

They make a server replaceable without a gap: the socket and the clients in its queue outlive every
process that has it. Start a second server with the same socket, and once it listens send SIGTERM to
the first.

LISTEN_FDS is their number, the first one has descriptor 3; LISTEN_PID, where it is set, is whom
they are meant for; LISTEN_FDNAMES are their names, separated by colons.
"""

import os
import re
import socket
from collections.abc import MutableMapping
from typing import Final, NamedTuple

from xetserve.errors import ConfigError

FIRST_DESCRIPTOR: Final = 3
MAX_SOCKETS: Final = 64
VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Inherited(NamedTuple):
    """A socket and its name; "unknown" where it has none, as systemd says."""

    name: str
    sock: socket.socket


def take_sockets(
    environ: MutableMapping[str, str], first: int = FIRST_DESCRIPTOR
) -> list[Inherited]:
    """Take over the sockets that the environment tells of; none if it tells of none, or of another
    process's.

    The variables are removed: what we start is not meant. Each call gives what is left for it,
    once.

    Args:
        first: descriptor of the first socket.

    Raises:
        ConfigError: what is told makes no sense, or a descriptor is no listening stream socket.
    """
    values = [environ.pop(name, "") for name in VARIABLES]
    count, pid, names = values
    if not count:
        return []
    if pid and pid.strip() != str(os.getpid()):
        return []
    if not re.fullmatch(r"\d{1,3}", count, re.ASCII) or int(count) > MAX_SOCKETS:
        raise ConfigError(f"LISTEN_FDS must be a number up to {MAX_SOCKETS}, not {count!r}")
    labels = names.split(":") if names else ["unknown"] * int(count)
    if len(labels) != int(count):
        raise ConfigError(f"LISTEN_FDNAMES has {len(labels)} names for {count} sockets")
    return [
        Inherited(label, _take(descriptor))
        for descriptor, label in enumerate(labels[: int(count)], first)
    ]


def _take(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise ConfigError(
            f"inherited descriptor {descriptor} is no socket: {exc.strerror}"
        ) from None
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        sock.detach()
        raise ConfigError(f"inherited descriptor {descriptor} is not a listening stream socket")
    os.set_inheritable(descriptor, False)
    sock.setblocking(False)
    return sock
