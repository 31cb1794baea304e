"""Files on disk that are complete or not there: written to a temporary name, then renamed.

Repositories may be private, so files and folders are for the origin's own user, whatever the umask.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

from xetserve.base.atomic_file import FOLDER_MODE, make_folders, replace_file
from xetserve.base.permissions import describe_os_error
from xetserve.errors import ConfigError

STALE_AGE: Final = 86400.0  # seconds after which a temporary file counts as a leftover


class TemporaryFiles:
    """The folder where files grow until they are renamed into place, on the same file system.

    Leftovers of a crash are removed at the next start, once they are a day old: another process may
    be writing into the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_private_folder(folder)
        oldest = time.time() - STALE_AGE
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def make_path(self) -> Path:
        """Return an unused path."""
        return self._folder / f"{os.getpid()}-{os.urandom(8).hex()}"

    def write(self, target: Path, data: bytes) -> None:
        """Put a small file in place; readers see the old one or the new one."""
        make_folders(target.parent)
        with replace_file(target, self.make_path()) as file:
            file.write(data)


def publish(path: Path, target: Path) -> None:
    """Move a finished file into place, over an older one; make its folder if it is missing."""
    try:
        path.replace(target)
    except FileNotFoundError:
        make_folders(target.parent)
        path.replace(target)


def make_folder(path: Path) -> Path:
    """Make a folder and its missing parents, for the origin's own user.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        make_folders(path)
    except OSError as exc:
        raise ConfigError(f"cannot make the folder {path}: {describe_os_error(exc)}") from None
    return path


def make_private_folder(path: Path) -> Path:
    """Make a folder of the store; if an older version made it, close it to other users.

    Raises:
        ConfigError: it cannot be made, or belongs to another user.
    """
    make_folder(path)
    try:
        path.chmod(FOLDER_MODE)
    except OSError as exc:
        raise ConfigError(f"cannot change the folder {path}: {exc.strerror}") from None
    return path
