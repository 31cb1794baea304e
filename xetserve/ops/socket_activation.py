"""Socket activation: take listening sockets from another process (sd_listen_fds(3)).

An inherited socket lets an operator replace a server without a gap, because the socket and the
clients in its queue outlive each process that has it. Start a second server with the same socket,
and send SIGTERM to the first one when the second one listens.

LISTEN_FDS is the number of sockets; the first one has descriptor 3. LISTEN_PID, if it is set, is
the process that they are for. LISTEN_FDNAMES has their names, separated by colons. One of them may
be CHANNEL, which does not listen: see ops.generations.
"""

import os
import re
import socket
from collections.abc import MutableMapping
from typing import Final, NamedTuple

from xetserve.errors import ConfigError

FIRST_DESCRIPTOR: Final = 3
MAX_SOCKETS: Final = 64
CHANNEL: Final = "xetserve-upgrade"
VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Inherited(NamedTuple):
    """A socket and its name; "unknown" if it has none, as in systemd."""

    name: str
    sock: socket.socket


def take_sockets(
    environ: MutableMapping[str, str], first: int = FIRST_DESCRIPTOR
) -> list[Inherited]:
    """Return the sockets that the environment passes to this process, which may be none.

    The variables are removed, so that child processes and later calls do not use them again.

    Args:
        first: descriptor of the first socket.

    Raises:
        ConfigError: a variable is invalid, or a descriptor is not a listening stream socket (for
            CHANNEL, a stream socket).
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
        Inherited(label, _take(descriptor, listens=label != CHANNEL))
        for descriptor, label in enumerate(labels[: int(count)], first)
    ]


def _take(descriptor: int, *, listens: bool) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise ConfigError(
            f"inherited descriptor {descriptor} is not a socket: {exc.strerror}"
        ) from None
    does_listen = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    if sock.type != socket.SOCK_STREAM or does_listen != listens:
        sock.detach()
        raise ConfigError(f"inherited descriptor {descriptor} is not a listening stream socket")
    os.set_inheritable(descriptor, False)
    sock.setblocking(False)
    return sock
