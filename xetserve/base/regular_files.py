"""Our files in folders that may hold other things, too: only regular files are opened.

Somebody else may have put a link, a FIFO or a file of their own there. Such a file must not lead
elsewhere, block its reader, or end a walk over the other files. It is skipped, and logged once.
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from xetserve.base.atomic_file import give_to_owner
from xetserve.base.lru_dict import LruDict

logger = logging.getLogger(__name__)

MAX_LOGGED: Final = 1000  # paths that are not logged again

_logged: Final[LruDict[str, None]] = LruDict(max_num=MAX_LOGGED)
_skips: dict[str, str] | None = None  # see collecting_skips


class NotRegular(FileNotFoundError):
    """Something other than a regular file has this name; for readers, there is no file."""


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a file and return its descriptor; a new file is readable by our own user only.

    A new file of root belongs to the owner of its folder, see give_to_owner.

    A symbolic link is not followed, and a FIFO without a writer does not block.

    Raises:
        NotRegular: it is not a regular file.
        OSError: it does not exist, or cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        # A link; a FIFO without a reader, or a socket; a folder opened for writing.
        if exc.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _make_error(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _make_error(path)
    if flags & os.O_CREAT:
        give_to_owner(fd, os.path.dirname(path) or ".")
    return fd


def pass_over(path: str | Path, reason: OSError | str) -> None:
    """Log that something in a folder is skipped, once for each path."""
    text = reason if isinstance(reason, str) else reason.strerror or str(reason)
    if _skips is not None:
        _skips[str(path)] = text
        return
    if str(path) not in _logged:
        logger.warning("passed over in a folder of the cache: %s: %s", path, text)
    _logged.put(str(path), None)


@contextlib.contextmanager
def collecting_skips() -> Iterator[dict[str, str]]:
    """Collect what is skipped in the block, path -> reason, instead of logging it."""
    global _skips
    _skips = {}
    try:
        yield _skips
    finally:
        _skips = None


def scan(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the items of a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as items:
            return list(items)
    except FileNotFoundError:
        return []
    except OSError as exc:
        pass_over(folder, exc)
        return []


def is_folder(item: os.DirEntry[str]) -> bool:
    """Return whether an item is a folder, and not a link to one."""
    with contextlib.suppress(OSError):
        return item.is_dir(follow_symlinks=False)
    return False


def _make_error(path: str | Path) -> NotRegular:
    return NotRegular(errno.ENOENT, f"{os.path.basename(path)} is not a regular file")
