"""Files on disk that are whole or not there: written aside, then renamed."""

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Hashable
from pathlib import Path
from typing import Final, Generic, TypeVar

from xetserve.errors import ConfigError

STALE_AGE: Final = 86400.0  # seconds after which a temporary file has no owner any more

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class TemporaryFiles:
    """The folder where files grow until they are renamed into place, on the same file system.

    What a crash has left is removed at the next start, once it is a day old: another process may be
    writing into the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        make_folder(folder)
        oldest = time.time() - STALE_AGE
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def make_path(self) -> Path:
        """Give a name that nobody uses."""
        return self._folder / f"{os.getpid()}-{os.urandom(8).hex()}"

    def write(self, target: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Put a small file in place; readers see the old one or the new one."""
        path = self.make_path()
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(data)
            publish(path, target)
        finally:
            path.unlink(missing_ok=True)


def publish(path: Path, target: Path) -> None:
    """Move a finished file into place, over an older one; its folder is made when missing."""
    try:
        path.replace(target)
    except FileNotFoundError:
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def make_folder(path: Path) -> Path:
    """Make a folder and its parents where they are missing.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot make the folder {path}: {exc.strerror}") from None
    return path


class LruCache(Generic[Key, Value]):
    """The values that were used last, at most max_entries of them."""

    def __init__(self, max_entries: int) -> None:
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._max_entries = max_entries

    def get(self, key: Key) -> Value | None:
        """Give a value, and keep it for longer."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, at the expense of the one that was not used for longest."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
