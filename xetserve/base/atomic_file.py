"""Files that are complete or not there: written under a temporary name, then renamed.

A reader sees the old file or the new one, never a part of it. Files and folders are for our own
user alone, whatever the umask.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file, for open(opener=...): through no link, and for our own user if it is made."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


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
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        if folder.exists() and not folder.is_dir():
            raise
        return 0
    except FileNotFoundError:
        return make_folders(folder.parent) + make_folders(folder)
    return 1
