"""Checking all files in the folder of the cache. Everything here blocks.

A read compares data with the checks of its entry. Here, every chunk is decoded and hashed as well.
If the entries of a xorb hold all of it, the xorb hash shows whether they are right. Servers may use
the folder meanwhile: files are complete or not there, and a file that vanishes is not damaged.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xetserve.base.format_version import check_version
from xetserve.base.regular_files import open_regular, pass_over
from xetserve.errors import FormatError, OtherVersion
from xetserve.pipeline.cache import blob_file, entry
from xetserve.pipeline.cache.blob_file import check_stored
from xetserve.pipeline.cache.entry import EntryIndex, Standing, is_unproven
from xetserve.pipeline.cache.indexes import read_index
from xetserve.pipeline.cache.layout import (
    LARGE,
    LEDGERS,
    META,
    PLAIN,
    Stored,
    iter_subfolder,
    iter_tree,
    iter_xorbs,
    list_entries,
)
from xetserve.pipeline.cache.store import CacheStore
from xetserve.pipeline.verify import ledger_file
from xetserve.pipeline.verify.ledger_file import parse_ledger
from xetserve.upstream.answers import stored_file
from xetserve.xet.hashes import MerkleTree, hash_chunk, parse_hash
from xetserve.xet.reconstruction import ChunkRange
from xetserve.xet.xorb import iter_records

BLOCK_SIZE: Final = 1024 * 1024  # bytes a read

Leaf = tuple[bytes, int]  # a chunk's hash, and its decoded size in bytes


@dataclass(slots=True)
class Tally:
    """The number of files of one kind, their bytes, and their last use in seconds since the epoch.

    cost: bytes in whole blocks.
    """

    num: int = 0
    size: int = 0
    cost: int = 0
    oldest: float | None = None
    newest: float | None = None

    def add(self, stored: Stored) -> None:
        """Count a file."""
        self.num += 1
        self.size += stored.size
        self.cost += stored.cost
        self.oldest = stored.used if self.oldest is None else min(self.oldest, stored.used)
        self.newest = stored.used if self.newest is None else max(self.newest, stored.used)


@dataclass(slots=True)
class Contents:
    """The files in a folder, counted by kind."""

    num_xorbs: int = 0
    entries: Tally = field(default_factory=Tally)
    unproven: Tally = field(default_factory=Tally)  # of the entries, the unproven ones
    imported: Tally = field(default_factory=Tally)  # of these, the imported ones
    ledgers: Tally = field(default_factory=Tally)
    plain: Tally = field(default_factory=Tally)
    meta: Tally = field(default_factory=Tally)
    writing: Tally = field(default_factory=Tally)
    # Of all these, files in a format of another version; see count_contents.
    other_versions: Tally = field(default_factory=Tally)

    @property
    def size(self) -> int:
        """Bytes that count against the quota."""
        return self.entries.cost + self.ledgers.cost + self.plain.cost + self.writing.cost


def count_contents(folder: Path, *, reads_versions: bool = False) -> Contents:
    """Count all files.

    Args:
        reads_versions: read the mark of every file; otherwise other_versions stays empty.
    """
    contents = Contents()

    def look(stored: Stored, *magics: bytes, at_end: bool) -> None:
        if reads_versions and _is_of_other_version(stored, magics, at_end=at_end):
            contents.other_versions.add(stored)

    for _, path in iter_xorbs(folder):
        found = list_entries(path)
        contents.num_xorbs += bool(found)
        for stored, _ in found:
            contents.entries.add(stored)
            look(stored, entry.MAGIC, at_end=True)
            if is_unproven(stored.path):
                contents.unproven.add(stored)
            if Standing.of(stored.path) is Standing.IMPORTED:
                contents.imported.add(stored)
    for stored in iter_subfolder(folder, LEDGERS):
        contents.ledgers.add(stored)
        look(stored, ledger_file.MAGIC, at_end=False)
    for subfolder in (PLAIN, LARGE):
        for stored in iter_subfolder(folder, subfolder):
            contents.plain.add(stored)
            if subfolder == LARGE:
                look(stored, blob_file.MAGIC, at_end=True)
    for stored in iter_tree(folder / META):
        contents.meta.add(stored)
        look(stored, stored_file.MAGIC, stored_file.OLD_MAGIC, at_end=False)
    for stored in iter_tree(folder / "tmp"):
        contents.writing.add(stored)
    return contents


def _is_of_other_version(stored: Stored, magics: Sequence[bytes], *, at_end: bool) -> bool:
    """Return whether the mark of a file is none of these, but one of another version."""
    size = len(magics[0])
    try:
        fd = open_regular(stored.path)
        try:
            found = os.pread(fd, size, max(0, stored.size - size) if at_end else 0)
        finally:
            os.close(fd)
        if found not in magics:
            check_version(found, magics[0])
    except OtherVersion:
        return True
    except FileNotFoundError:
        pass
    except OSError as exc:
        pass_over(stored.path, exc)
    return False


def check_entry(
    fd: int, index: EntryIndex, on_bytes: Callable[[int], object], *, decodes: bool = True
) -> list[Leaf]:
    """Read all of an open entry and return its chunks.

    Args:
        on_bytes: called with the number of bytes read, again and again.
        decodes: decode the chunks, too; otherwise only the checks are compared, and the result is
            empty.

    Raises:
        FormatError: it is damaged.
    """
    chunks = index.key.chunks
    leaves: list[Leaf] = []
    first = chunks.start
    while first < chunks.end:
        last = index.find_last(first, chunks.end, BLOCK_SIZE)
        start, end = index.offset_of(first), index.offset_of(last)
        if not start <= end <= index.key.byte_range.size:
            raise FormatError("its records overlap or exceed the range")
        data = os.pread(fd, end - start, start)
        if not index.is_intact(memoryview(data), first, last):
            raise FormatError(f"damaged in chunks {first} to {last}")
        if decodes:
            records = list(iter_records(data))
            if len(records) != last - first:
                raise FormatError(f"{len(records)} chunks, expected {last - first}")
            for record in records:
                decoded = record.decode()
                leaves.append((hash_chunk(decoded), len(decoded)))
        on_bytes(len(data))
        first = last
    if index.offset_of(chunks.end) != index.key.byte_range.size:
        raise FormatError("its records do not end at the end of the range")
    return leaves


@dataclass(slots=True)
class Report:
    """The result of a check. num_proven: xorbs that are complete and have their hash.

    unproven: paths below the folder of entries that are well-formed, but not proven.
    damaged: path below the folder -> the damage.
    other_versions: path below the folder -> the version of its format.
    """

    num_entries: int = 0
    num_xorbs: int = 0
    num_proven: int = 0
    num_ledgers: int = 0
    num_plain: int = 0
    size: int = 0
    unproven: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    other_versions: dict[str, str] = field(default_factory=dict)


class Checker:
    """Check a folder.

    Args:
        removes: remove damaged files, and mark entries that turn out to be proven.
        on_bytes: called with the number of bytes read, again and again.
        on_damage: called with a path and the damage.
    """

    def __init__(
        self,
        store: CacheStore,
        *,
        removes: bool,
        on_bytes: Callable[[int], object] = lambda _: None,
        on_damage: Callable[[str, str], object] = lambda _, __: None,
    ) -> None:
        self._store = store
        self._removes = removes
        self._on_bytes = on_bytes
        self._on_damage = on_damage
        self.report = Report()

    def run(self) -> Report:
        """Check all files."""
        folder, report = self._store.folder, self.report
        for xorb_hash, path in iter_xorbs(folder):
            self._check_xorb(xorb_hash, path)
        for stored in iter_subfolder(folder, LEDGERS):
            report.num_ledgers += self._check(stored, self._check_ledger) is not None
        for subfolder in (PLAIN, LARGE):

            def check(fd: int, stored: Stored, subfolder: str = subfolder) -> object:
                check_stored(fd, subfolder, stored.name, self._on_bytes)
                return True

            for stored in iter_subfolder(folder, subfolder):
                report.num_plain += self._check(stored, check) is not None
        return report

    def _check(self, stored: Stored, check: Callable[[int, Stored], object]) -> object:
        """Check one file; None: it is gone, damaged, unreadable or of another version."""
        try:
            fd = open_regular(stored.path)
            try:
                found = check(fd, stored)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OtherVersion as exc:
            self.report.other_versions[self._name(stored)] = str(exc)
            return None
        except FormatError as exc:
            self._condemn(stored, str(exc))
            return None
        except PermissionError as exc:
            pass_over(stored.path, exc)
            return None
        except OSError as exc:
            self._condemn(stored, exc.strerror or "it cannot be read")
            return None
        self.report.size += stored.size
        return found

    def _name(self, stored: Stored) -> str:
        return str(Path(stored.path).relative_to(self._store.folder))

    def _condemn(self, stored: Stored, reason: str) -> None:
        name = self._name(stored)
        self.report.damaged[name] = reason
        self._on_damage(name, reason)
        if self._removes:
            self._store.remove(stored.path)

    def _check_xorb(self, xorb_hash: bytes, path: str) -> None:
        known: dict[int, tuple[Leaf, Stored]] = {}
        conflicts: list[tuple[int, Stored, Stored]] = []
        found: list[tuple[Stored, ChunkRange, list[Leaf]]] = []
        num = 0
        for stored, chunks in sorted(list_entries(path), key=lambda found: found[1]):

            def check(fd: int, _: Stored, chunks: ChunkRange = chunks) -> list[Leaf]:
                return check_entry(fd, read_index(fd, xorb_hash, chunks), self._on_bytes)

            leaves = self._check(stored, check)
            if not isinstance(leaves, list):
                continue
            num += 1
            found.append((stored, chunks, leaves))
            for chunk, leaf in enumerate(leaves, chunks.start):
                other = known.setdefault(chunk, (leaf, stored))
                if other[0] != leaf:
                    conflicts.append((chunk, other[1], stored))
                    break
        self.report.num_entries += num
        self.report.num_xorbs += num > 0
        is_proven = num > 0 and _make_root(known) == xorb_hash
        self.report.num_proven += is_proven
        for chunk, first, second in conflicts:
            # Without the xorb hash or a proof for one of them, nothing shows which one is
            # wrong.
            wrong = [each for each in (first, second) if is_unproven(each.path)]
            if is_proven or not wrong:
                wrong = [second] if is_proven else [first, second]
            for stored in wrong:
                self._condemn(stored, f"chunk {chunk} differs from that of another entry")
        right: dict[int, Leaf] = {}
        if is_proven:
            right = {chunk: leaf for chunk, (leaf, _) in known.items()}
        else:
            for stored, chunks, leaves in found:
                if not is_unproven(stored.path):
                    right.update(enumerate(leaves, chunks.start))
        for stored, chunks, leaves in found:
            if is_unproven(stored.path):
                self._judge(stored, chunks, leaves, right)

    def _judge(
        self, stored: Stored, chunks: ChunkRange, leaves: list[Leaf], right: dict[int, Leaf]
    ) -> None:
        """Mark an entry whose chunks are all proven, or list it as unproven."""
        name = self._name(stored)
        if name in self.report.damaged:
            return
        if not all(right.get(chunk) == leaf for chunk, leaf in enumerate(leaves, chunks.start)):
            self.report.unproven.append(name)
        elif self._removes:
            self._store.mark_proven(stored.path)

    def _check_ledger(self, fd: int, stored: Stored) -> object:
        data = os.pread(fd, stored.size + 1, 0)
        self._on_bytes(len(data))
        return parse_ledger(data, parse_hash(stored.name.partition(".")[0]))


def is_whole_xorb(xorb_hash: bytes, chunks: ChunkRange, leaves: Sequence[Leaf]) -> bool:
    """Return whether the chunks of an entry have the xorb hash, which proves all of them."""
    if chunks.start:
        return False
    tree = MerkleTree()
    for leaf in leaves:
        tree.add(*leaf)
    return tree.xorb_hash() == xorb_hash


def _make_root(known: dict[int, tuple[Leaf, Stored]]) -> bytes | None:
    """Return the hash of a xorb with these chunks; None: some are missing."""
    tree = MerkleTree()
    for chunk in range(len(known)):
        if chunk not in known:
            return None
        tree.add(*known[chunk][0])
    return tree.xorb_hash()
