"""What lies in the folder of the cache, file by file. Everything here blocks, and is for threads.

Only what is surely ours is listed: the folder may have been one with other things in it.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.pipeline.cache_entry import parse_entry_name
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ChunkRange

LEDGERS: Final = "ledgers"
PLAIN: Final = "plain"
LARGE: Final = "large"
META: Final = "meta"  # what is remembered of the Hub's answers
# Shelves: folders of files that are named by a hash, and the hash in their names.
_CONTENT_NAME: Final = re.compile(r"(?:sha256-([0-9a-f]{64})|git-([0-9a-f]{40}))")
SHELVES: Final = {
    LEDGERS: re.compile(r"([0-9a-f]{64})\.xl"),
    PLAIN: _CONTENT_NAME,
    LARGE: _CONTENT_NAME,
}
_HEX: Final = frozenset("0123456789abcdef")


class Stored(NamedTuple):
    """A file of ours.

    used: when it was used last, in seconds since the epoch.
    """

    path: str
    size: int
    used: float

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


def make_shelf_path(folder: Path, shelf: str, name: str) -> str:
    """Give where a file of a shelf lies.

    Raises:
        ValueError: nothing on this shelf is named so.
    """
    match = SHELVES[shelf].fullmatch(name)
    if match is None:
        raise ValueError(f"not a name in {shelf}")
    digest = match[match.lastindex or 0]
    return f"{folder}/{shelf}/{digest[:2]}/{name}"


def make_xorb_path(folder: Path, xorb_hash: bytes) -> str:
    """Give where the entries of a xorb lie."""
    name = format_hash(xorb_hash)
    return f"{folder}/{name[:2]}/{name}"


def iter_xorbs(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Iterate over the xorbs that have a folder, in the order of their names: their hash, and the folder."""
    for group in _list_folders(folder, 2):
        for path in _list_folders(group, 64):
            yield parse_hash(path.rpartition("/")[2]), path


def list_entries(folder: str) -> list[tuple[Stored, ChunkRange]]:
    """List the entries of one xorb, in no order."""
    return [
        (stored, chunks)
        for stored in _list_files(folder)
        if (chunks := parse_entry_name(stored.name)) is not None
    ]


def iter_shelf(folder: Path, shelf: str) -> Iterator[Stored]:
    """Iterate over the files of a shelf, in the order of their names within folders that are in order."""
    for group in _list_folders(folder / shelf, 2):
        for stored in sorted(_list_files(group)):
            if SHELVES[shelf].fullmatch(stored.name):
                yield stored


def iter_stored(folder: Path) -> Iterator[Stored]:
    """Iterate over everything that is kept."""
    for _, path in iter_xorbs(folder):
        for stored, _ in list_entries(path):
            yield stored
    for shelf in SHELVES:
        yield from iter_shelf(folder, shelf)


def iter_tree(folder: Path) -> Iterator[Stored]:
    """Iterate over all files in a folder and those below it, in order, but not over hidden ones."""
    try:
        with os.scandir(folder) as items:
            found = sorted(items, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for item in found:
        try:
            if item.name.startswith("."):
                continue
            if item.is_dir(follow_symlinks=False):
                yield from iter_tree(Path(item.path))
            elif item.is_file(follow_symlinks=False):
                stat = item.stat(follow_symlinks=False)
                yield Stored(item.path, stat.st_size, stat.st_mtime)
        except FileNotFoundError:
            continue


def _list_files(folder: str) -> list[Stored]:
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as items:
        for item in items:
            with contextlib.suppress(FileNotFoundError):
                if item.is_file(follow_symlinks=False):
                    stat = item.stat(follow_symlinks=False)
                    found.append(Stored(item.path, stat.st_size, stat.st_mtime))
    return found


def _list_folders(folder: str | Path, length: int) -> list[str]:
    """List the folders in a folder whose names are so many hex digits, in order."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as items:
        return sorted(
            item.path
            for item in items
            if len(item.name) == length
            and not set(item.name) - _HEX
            and item.is_dir(follow_symlinks=False)
        )
    return []
