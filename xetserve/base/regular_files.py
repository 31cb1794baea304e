"""Files of ours in folders that may hold other things: only regular files are opened, and what is
odd is passed over.

Somebody else may have put a link, a FIFO or a file of theirs there. Opening one must not lead
elsewhere, wait for ever, or end a walk over all the others.
"""

import contextlib
import errno
import logging
import os
import stat
from pathlib import Path
from typing import Final

from xetserve.base.lru_dict import LruDict

logger = logging.getLogger(__name__)

MAX_LOGGED: Final = 1000  # paths that are not logged again

_logged: Final[LruDict[str, None]] = LruDict(max_num=MAX_LOGGED)


class NotRegular(FileNotFoundError):
    """Something else than a regular file is there: for readers as good as nothing."""


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a file, and return its descriptor; a new one is for nobody else.

    A symbolic link is not followed, and the other end of a FIFO is not waited for.

    Raises:
        NotRegular: it is no regular file.
        OSError: there is none, or it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        # A link; a FIFO without a reader, or a socket; a folder that is to be written to.
        if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _make_error(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _make_error(path)
    return fd


def pass_over(path: str | Path, reason: OSError | str) -> None:
    """Log that something in a folder is left where it is, once for each path."""
    if str(path) not in _logged:
        text = reason if isinstance(reason, str) else reason.strerror or str(reason)
        logger.warning("passed over in a folder of the cache: %s: %s", path, text)
    _logged.put(str(path), None)


def scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """List what a folder holds; nothing, if it cannot be read."""
    try:
        with os.scandir(folder) as items:
            return list(items)
    except FileNotFoundError:
        return []
    except OSError as exc:
        pass_over(folder, exc)
        return []


def is_folder(item: os.DirEntry[str]) -> bool:
    """Return whether this is a folder, and no link to one."""
    with contextlib.suppress(OSError):
        return item.is_dir(follow_symlinks=False)
    return False


def _make_error(path: str | Path) -> NotRegular:
    return NotRegular(errno.ENOENT, f"{os.path.basename(path)} is not a regular file")
