"""Create and rename files of the cache that are being written.

The process that writes a file in tmp holds a lock on it (flock). The system releases the lock when
the process ends, in any way. So a file that can be locked is a leftover of a crash.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.atomic_file import give_to_owner

CREATE_TRIES: Final = 5


class Temporary(NamedTuple):
    """A file that this process is writing and has locked.

    size: bytes that the quota counts for it.
    """

    path: str
    fd: int
    size: int


def open_temporary(folder: Path, size: int) -> Temporary | None:
    """Create a file of size bytes in a folder, and lock it.

    Returns None if sweeps have removed it as a leftover CREATE_TRIES times.

    Raises:
        OSError: the disk fails.
    """
    for _ in range(CREATE_TRIES):
        path = f"{folder}/{os.urandom(16).hex()}"
        fd = -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            give_to_owner(fd, folder)
            # It has its final size from the start, so that a sweep counts it right.
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
        # A sweep ran between open and flock, and took the file for a leftover.
    return None


def rename_temporary(temporary: Temporary, target: str) -> None:
    """Rename the file, and check that the target is the file which this process has written.

    Another user who may write to tmp could have replaced it.

    Raises:
        OSError: the file was replaced, or the disk fails.
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
        raise OSError(errno.ESTALE, "another process has replaced a file in tmp")
