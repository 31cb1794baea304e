"""Listening on a Unix socket: a file that outlives whoever made it."""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from xetserve.net.accept import BACKLOG


class UnixSocket(NamedTuple):
    """A listening socket and its file."""

    sock: socket.socket
    path: Path
    identity: tuple[int, int, int]

    def remove(self) -> None:
        """Remove the file, unless it is another server's by now."""
        with contextlib.suppress(OSError):  # it is gone, or the folder is not ours any more
            if _identify(self.path) == self.identity:
                self.path.unlink()


def bind_unix_socket(path: Path, mode: int) -> UnixSocket:
    """Listen at a path; a file that a dead server has left there is replaced.

    Args:
        mode: permissions of the file; who may write to it may connect.

    Raises:
        OSError: the path is taken by a server that lives, or by something else, or cannot be made.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # There must be no moment in which the file has other permissions.
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        sock.listen(BACKLOG)  # now: a socket that nobody listens on looks stale
    except OSError:
        sock.close()
        raise
    return UnixSocket(sock, path, _identify(path))


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is something else at this path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue is a server, too
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identify(path: Path) -> tuple[int, int, int]:
    # A number of a file may be used again; its time is set when it is made.
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mtime_ns
