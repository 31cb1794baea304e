"""Create and rename files of the cache that are being written.

The process that writes a file in tmp holds a lock on it (flock). The system releases the lock when
the process ends, in any way. So a file that can be locked is a leftover of a crash.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
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
            _allocate(fd, size)
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


def _allocate(fd: int, size: int) -> None:
    """Set the size of an empty file, and reserve its room on the disk if the file system can.

    Writing into reserved room takes about half of the CPU time (ext4), and a disk that is full is
    noticed before a download pays for it. os.posix_fallocate is no substitute: where the file
    system cannot reserve room, glibc writes a byte into each of its blocks instead.

    Raises:
        OSError: the disk fails, or has no room.
    """
    if not size:
        return  # fallocate refuses it
    if _fallocate is None or _fallocate(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if _fallocate is not None and code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
            raise OSError(code, os.strerror(code))
        os.ftruncate(fd, size)


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    """Return fallocate(fd, mode, offset, size) of the C library, see fallocate(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    # With 64-bit offsets on every machine; musl has only such ones.
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


_fallocate: Final = _find_fallocate()


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
