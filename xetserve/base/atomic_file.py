"""Files that are complete or not there: written under a temporary name, then renamed.

A reader sees the old file or the new one, never a part of it. Files and folders are for our own
user alone, whatever the umask.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
_TRIES: Final = 10  # another process may remove an empty folder before it has content


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file, for open(opener=...): through no link, and for our own user if it is made."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def give_to_owner(fd: int, folder: str | os.PathLike[str]) -> None:
    """Change the owner of a file or folder that root has just made to that of the folder it is in.

    So a service whose user owns the folder can use what the commands of root write there. For
    other users it does nothing, and where root may not do this, root stays the owner.
    """
    if os.geteuid() != 0:
        return
    made, owner = os.fstat(fd), os.stat(folder)
    is_other = (made.st_uid, made.st_gid) != (owner.st_uid, owner.st_gid)
    # A file with a second name may be one that somebody else has linked here.
    if is_other and made.st_uid == 0 and (stat.S_ISDIR(made.st_mode) or made.st_nlink == 1):
        with contextlib.suppress(OSError):
            os.fchown(fd, owner.st_uid, owner.st_gid)


@contextmanager
def replace_file(target: Path, temporary: Path, *, syncs: bool = False) -> Iterator[BinaryIO]:
    """Open a new file at a temporary path, and rename it to target when the block ends.

    If the block fails, the temporary file is removed and target stays as it was.

    Args:
        temporary: a path on the file system of target; nothing may be there.
        syncs: wait until the content is on disk before the rename, so that a power failure leaves
            no empty file behind.

    Raises:
        OSError: the file cannot be opened, written or renamed.
    """
    file = open(temporary, "xb", opener=open_private)  # noqa: SIM115 - outside of the try block
    try:
        with file:
            yield file
            if syncs:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def make_folders(folder: Path) -> int:
    """Make a folder and the missing ones above it; return how many were made.

    Path.mkdir(parents=True) would give its mode to the last of them only.

    Raises:
        OSError: one cannot be made, or something else has its name.
    """
    num_made = 0
    for _ in range(_TRIES - 1):
        try:
            return num_made + _make_folder(folder)
        except FileNotFoundError:
            num_made += make_folders(folder.parent)
    return num_made + _make_folder(folder)


def _make_folder(folder: Path) -> int:
    """Make one folder; return 1, or 0 if it is there.

    Raises:
        OSError: it cannot be made, or something else has its name, such as a link to nothing.
    """
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        if not os.path.lexists(folder) or folder.is_dir():
            return 0
        reason = "is not a folder" if folder.exists() else "is a link to a path that does not exist"
        raise FileExistsError(errno.EEXIST, reason, str(folder)) from None
    if os.geteuid() == 0 and folder.parent.stat().st_uid != 0:
        with contextlib.suppress(OSError):  # another process has removed it, since it is empty
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                give_to_owner(fd, folder.parent)
            finally:
                os.close(fd)
    return 1
