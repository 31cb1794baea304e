"""Listen on a Unix socket, and replace the stale socket file of a server that has died."""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from xetserve.net.accept import BACKLOG


class UnixSocket(NamedTuple):
    """A listening socket and its file. identity: device, inode and modification time."""

    sock: socket.socket
    path: Path
    identity: tuple[int, int, int]

    @property
    def label(self) -> str:
        """Return the identity as text, for find_unix_socket in another process."""
        return "-".join(map(str, self.identity))

    def remove(self) -> None:
        """Remove the file, unless another server has replaced it."""
        with contextlib.suppress(OSError):  # the file is gone, or the folder is read-only now
            if _identify(self.path) == self.identity:
                self.path.unlink()


def bind_unix_socket(path: Path, mode: int) -> UnixSocket:
    """Listen at a path; replace a socket file that no server listens on.

    Args:
        mode: permissions of the file; users with write permission may connect.

    Raises:
        OSError: a server listens at the path, another kind of file is there, or the file cannot be
            created.
    """
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Set the umask, so that the file never has wider permissions.
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        sock.listen(BACKLOG)  # at once: a socket without a listener looks stale
    except OSError:
        sock.close()
        raise
    return UnixSocket(sock, path, _identify(path))


def find_unix_socket(sock: socket.socket, label: str) -> UnixSocket | None:
    """Return an inherited socket with its file; None if the file is gone or another server's.

    Args:
        label: of the socket, from the process that has bound it.
    """
    path = Path(sock.getsockname())
    with contextlib.suppress(OSError):
        found = UnixSocket(sock, path, _identify(path))
        if found.label == label:
            return found
    return None


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # BlockingIOError: a server with a full queue
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _identify(path: Path) -> tuple[int, int, int]:
    # The kernel may reuse the inode of a deleted file, but a new file has another time.
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_mtime_ns
