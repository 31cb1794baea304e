"""List the files in the folder of the cache. All functions block, and are for threads.

They list only files whose names are those of the cache, since the operator may have chosen a folder
with other files in it. A file that cannot be read is skipped, and does not end a walk.
"""

import heapq
import os
import re
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Final, NamedTuple

from xetserve.base.regular_files import is_folder, pass_over, scan
from xetserve.pipeline.cache.entry import parse_entry_name
from xetserve.upstream.answers.folder import IMPORTED
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ChunkRange

LEDGERS: Final = "ledgers"
PLAIN: Final = "plain"
LARGE: Final = "large"
META: Final = "meta"  # cached answers of the Hub
# Folders whose files are named by a hash. The pattern finds the hash in a name.
_CONTENT_NAME: Final = re.compile(r"(?:sha256-([0-9a-f]{64})|git-([0-9a-f]{40}))")
SUBFOLDERS: Final = {
    LEDGERS: re.compile(r"([0-9a-f]{64})\.xl"),
    PLAIN: _CONTENT_NAME,
    LARGE: _CONTENT_NAME,
}
BLOCK: Final = 4096  # bytes; files take whole blocks on disk
_HEX: Final = frozenset("0123456789abcdef")


class Stored(NamedTuple):
    """A file of the cache.

    used: the time of its last use, seconds since the epoch.
    """

    path: str
    size: int
    used: float

    @property
    def cost(self) -> int:
        """Bytes on disk, estimated: whole blocks."""
        return get_cost(self.size)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


def get_cost(size: int) -> int:
    """Return the bytes that a file of size bytes takes on disk, estimated: whole blocks."""
    return -(-size // BLOCK) * BLOCK


def make_file_path(folder: Path, subfolder: str, name: str) -> str:
    """Return the path of a file of a subfolder.

    Raises:
        ValueError: files of this subfolder have other names.
    """
    match = SUBFOLDERS[subfolder].fullmatch(name)
    if match is None:
        raise ValueError(f"not a name in {subfolder}")
    digest = match[match.lastindex or 0]
    return f"{folder}/{subfolder}/{digest[:2]}/{name}"


def make_xorb_path(folder: Path, xorb_hash: bytes) -> str:
    """Return the folder of a xorb's entries."""
    name = format_hash(xorb_hash)
    return f"{folder}/{name[:2]}/{name}"


def iter_xorbs(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Yield the hash and the folder of each xorb that has a folder, in the order of their names."""
    for group in _list_folders(folder, 2):
        for path in _list_folders(group, 64):
            yield parse_hash(path.rpartition("/")[2]), path


def list_entries(folder: str) -> list[tuple[Stored, ChunkRange]]:
    """Return the entries of one xorb, in no order."""
    return [
        (stored, chunks)
        for stored in _list_files(folder)
        if (chunks := parse_entry_name(stored.name)) is not None
    ]


def find_longest(
    entries: list[tuple[Stored, ChunkRange]], chunk: int
) -> tuple[Stored | None, ChunkRange]:
    """Return the entry that has a chunk and goes furthest after it, or None; and its chunks."""
    best: tuple[Stored | None, ChunkRange] = (None, ChunkRange(chunk, chunk))
    for stored, chunks in entries:
        if chunks.start <= chunk and chunks.end > best[1].end:
            best = (stored, chunks)
    return best


def iter_subfolder(folder: Path, subfolder: str) -> Iterator[Stored]:
    """Yield the files of a subfolder, sorted by folder and name."""
    for group in _list_folders(folder / subfolder, 2):
        for stored in sorted(_list_files(group)):
            if SUBFOLDERS[subfolder].fullmatch(stored.name):
                yield stored


def iter_stored(folder: Path) -> Iterator[Stored]:
    """Yield all files that count as used space and can be evicted."""
    for _, path in iter_xorbs(folder):
        for stored, _ in list_entries(path):
            yield stored
    for subfolder in SUBFOLDERS:
        yield from iter_subfolder(folder, subfolder)


def iter_tree(folder: Path) -> Iterator[Stored]:
    """Yield all files below a folder, sorted, without hidden ones."""
    for item in sorted(scan(folder), key=lambda item: item.name):
        if item.name.startswith("."):
            continue
        if is_folder(item):
            yield from iter_tree(Path(item.path))
        elif (stored := look_at(item)) is not None:
            yield stored


def iter_answers(folder: Path, under: str = "") -> Iterator[tuple[str, Stored]]:
    """Yield the Hub's cached answers: paths within the folder of answers, sorted by their parts.

    An answer from an archive is left out if the Hub has answered the same question here.

    Args:
        under: a folder of answers; others are left out.
    """

    def walk(root: Path) -> Iterator[tuple[list[str], Stored]]:
        for stored in iter_tree(root / under if under else root):
            yield stored.path[len(f"{root}/") :].split("/"), stored

    own, imported = walk(folder / META), walk(folder / META / IMPORTED)
    own = ((parts, stored) for parts, stored in own if parts[0] != IMPORTED)
    last: list[str] = []
    for parts, stored in heapq.merge(own, imported, key=lambda found: found[0]):
        if parts != last:
            yield "/".join(parts), stored
        last = parts


def look_at(item: os.DirEntry[str]) -> Stored | None:
    """Return a regular file; None if it is something else, or gone."""
    try:
        stat = item.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as exc:
        pass_over(item.path, exc)
        return None
    if not S_ISREG(stat.st_mode):
        return None
    return Stored(item.path, stat.st_size, stat.st_mtime)


def _list_files(folder: str) -> list[Stored]:
    return [stored for item in scan(folder) if (stored := look_at(item)) is not None]


def _list_folders(folder: str | Path, length: int) -> list[str]:
    """Return the folders in a folder whose names have length hex digits, sorted."""
    return sorted(
        item.path
        for item in scan(folder)
        if len(item.name) == length and not set(item.name) - _HEX and is_folder(item)
    )
