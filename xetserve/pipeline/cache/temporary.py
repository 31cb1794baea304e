"""Files of the cache that are being written.

A file in tmp is locked (flock) by the process that writes it. The lock goes with the process,
whichever way it ends, so a file that can be locked is what a crash has left.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple

CREATE_TRIES: Final = 5


class Temporary(NamedTuple):
    """A file that is being written, locked by us.

    size: bytes that are accounted for it.
    """

    path: str
    fd: int
    size: int


def open_temporary(folder: Path, size: int) -> Temporary | None:
    """Make a file of size bytes in the folder of what is being written, and lock it; None: sweeps
    took it for a leftover every time.

    Raises:
        OSError: the disk fails.
    """
    for _ in range(CREATE_TRIES):
        path = f"{folder}/{os.urandom(16).hex()}"
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its final size from the start: sweeping counts it as it will be.
            os.ftruncate(fd, size)
            if os.fstat(fd).st_nlink:
                return Temporary(path, fd, size)
            os.close(fd)
        except BlockingIOError:
            os.close(fd)
        except OSError:
            if fd >= 0:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        # A sweep came between open and flock, and has taken it for a leftover.
    return None


def rename_temporary(temporary: Temporary, target: str) -> None:
    """Put the very file that we have written at a path: whoever may write to tmp may put another in
    its place.

    Raises:
        OSError: that has happened, or the disk fails.
    """
    _check_same(temporary.fd, temporary.path)
    os.rename(temporary.path, target)
    try:
        _check_same(temporary.fd, target)
    except OSError:
        os.unlink(target)
        raise


def _check_same(fd: int, path: str) -> None:
    if not os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
        raise OSError(errno.ESTALE, "somebody has replaced a file in tmp")
