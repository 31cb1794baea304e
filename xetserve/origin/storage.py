"""The origin's folder: what lies where, and how files get there.

    secret          signs data URLs and CAS tokens
    xorbs/          chunk records, named by xorb hash; any web server may serve them
    index/          record offsets, decoded sizes and chunk hashes of each xorb; rebuilt if missing
    files/          terms of each Xet file, named by file hash, JSON
    blobs/          plain files, named by git blob id
    lfs/            LFS objects that did not come as Xet, named by sha256
    repos/          one folder for each repository: see repos.py
    tmp/            uploads under way

A file appears under its name complete or not at all: it is written elsewhere and then renamed.
"""

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

_FOLDERS: Final = ("xorbs", "index", "files", "blobs", "lfs", "repos", "tmp")
_STALE_AFTER: Final = 24 * 3600.0  # seconds; no upload takes a day


class Storage:
    """The folder, made if it is not there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in _FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        self._remove_stale()

    def _remove_stale(self) -> None:
        """Remove what a crash left behind; another process may be uploading just now."""
        limit = time.time() - _STALE_AFTER
        for path in (self.root / "tmp").iterdir():
            try:
                if path.stat().st_mtime < limit:
                    path.unlink()
            except FileNotFoundError:
                continue

    def make_temporary(self) -> Path:
        """Give a new path on the same filesystem; nothing is there yet."""
        return self.root / "tmp" / secrets.token_hex(16)

    def write(self, path: Path, data: bytes) -> None:
        """Put a small file in its place, in one step."""
        temporary = self.make_temporary()
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load_secret(self) -> bytes:
        """Give the secret of this folder; made at the first call, the same ever after."""
        path = self.root / "secret"
        temporary = self.make_temporary()
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            # A link, unlike a rename, does not replace the secret of a process that was faster.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        return bytes.fromhex(path.read_text())


V = TypeVar("V")


class RecentlyUsed(Generic[V]):
    """The last few values that were loaded. For values that never change once they exist."""

    def __init__(self, max_values: int) -> None:
        self._max_values = max_values
        self._values: OrderedDict[object, V] = OrderedDict()

    def get(self, key: object, load: Callable[[], V]) -> V:
        """Give the value of key, loading it if it is not at hand. Threads may call this at once."""
        value = self._values.pop(key, None)
        if value is None:
            value = load()
        self._values[key] = value
        while len(self._values) > self._max_values:
            try:
                self._values.popitem(last=False)
            except KeyError:
                break
        return value
