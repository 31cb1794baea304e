"""Exporting a cache into an archive; see archive.py."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, NamedTuple

from xetserve.base.regular_files import open_regular
from xetserve.cachetools.archive import (
    BLOCK_SIZE,
    END,
    FORMAT,
    MANIFEST,
    MAX_META_SIZE,
    META_NAME,
    VERSION,
    Counted,
    forget_members,
    make_file_check,
)
from xetserve.cachetools.select import Selection
from xetserve.cachetools.verify import check_entry
from xetserve.errors import FormatError
from xetserve.pipeline.cache.entry import is_unproven
from xetserve.pipeline.cache.indexes import read_index
from xetserve.pipeline.cache.layout import (
    META,
    PLAIN,
    SUBFOLDERS,
    Stored,
    iter_answers,
    iter_subfolder,
    iter_xorbs,
    list_entries,
)
from xetserve.pipeline.cache.store import CacheStore
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ChunkRange


class _Source(NamedTuple):
    """A file to export, and the function that checks it once it is open."""

    name: str
    stored: Stored
    check: Callable[[int], object]


def write_archive(
    store: CacheStore,
    stream: BinaryIO,
    *,
    version: str,
    selection: Selection | None = None,
    with_unproven: bool = False,
    on_start: Callable[[int, int], object] = lambda _, __: None,
    on_bytes: Callable[[int], object] = lambda _: None,
    on_skip: Callable[[str, str], object] = lambda _, __: None,
) -> Counted:
    """Export a cache. Files that are damaged, or removed meanwhile, are left out.

    Args:
        version: of the program.
        selection: the files to export; None: all.
        with_unproven: export unproven entries, too.
        on_start: called with the approximate number of files and bytes.
        on_bytes: called with the number of bytes written, again and again.
        on_skip: called with the name of a file and the reason why it is left out.

    Raises:
        OSError: the stream cannot be written.
    """
    total_num = total_size = 0
    for source in _iter_sources(store, selection):
        if is_unproven(source.stored.path) and not with_unproven:
            continue
        total_num += 1
        total_size += source.stored.size
    on_start(total_num, total_size)
    num = size = num_skipped = num_unproven = 0
    with tarfile.open(
        mode="w|",
        fileobj=stream,
        format=tarfile.USTAR_FORMAT,
        bufsize=BLOCK_SIZE,
    ) as archive:
        head = {"format": FORMAT, "version": VERSION, "xetserve": version}
        _add_document(archive, MANIFEST, {**head, "files": total_num, "bytes": total_size})
        for source in _iter_sources(store, selection):
            if is_unproven(source.stored.path) and not with_unproven:
                num_unproven += 1
                continue
            try:
                file = open(open_regular(source.stored.path), "rb", buffering=0)  # noqa: SIM115
            except FileNotFoundError:
                continue
            except OSError as exc:
                on_skip(source.name, exc.strerror or "it cannot be read")
                num_skipped += 1
                continue
            with file:
                info = tarfile.TarInfo(source.name)
                info.mode, info.size = 0o600, os.fstat(file.fileno()).st_size
                try:
                    source.check(file.fileno())
                    info.tobuf(tarfile.USTAR_FORMAT)
                except (FormatError, ValueError) as exc:
                    on_skip(source.name, str(exc))
                    num_skipped += 1
                    continue
                archive.addfile(info, _Counting(file, on_bytes))
            forget_members(archive)
            num += 1
            size += info.size
        _add_document(archive, END, {"files": num, "bytes": size})
    return Counted(num, size, num_skipped, num_unproven=num_unproven)


def _iter_sources(store: CacheStore, selection: Selection | None = None) -> Iterator[_Source]:
    """Yield the files to export, in the order of their names."""
    folder = store.folder
    for source in _iter_named(store):
        if selection is None or source.name in selection.names:
            yield source
    for xorb_hash, path in iter_xorbs(folder):
        if selection is not None and xorb_hash not in selection.spans:
            continue
        for stored, chunks in sorted(list_entries(path), key=lambda entry: entry[1]):
            if selection is None or selection.has_entry(xorb_hash, chunks):
                name = f"xorbs/{format_hash(xorb_hash)}/{chunks.start}-{chunks.end}.xc"
                yield _Source(name, stored, _make_entry_check(xorb_hash, chunks))


def _iter_named(store: CacheStore) -> Iterator[_Source]:
    """Yield the files that are not entries."""
    for subfolder in sorted(SUBFOLDERS):
        if subfolder == PLAIN:
            yield from _iter_meta(store)
        for stored in iter_subfolder(store.folder, subfolder):
            yield _Source(f"{subfolder}/{stored.name}", stored, make_file_check(subfolder, stored))


def _iter_meta(store: CacheStore) -> Iterator[_Source]:
    for path, stored in iter_answers(store.folder):
        if META_NAME.fullmatch(f"{META}/{path}") and stored.size <= MAX_META_SIZE:
            yield _Source(f"{META}/{path}", stored, lambda _: None)


def _make_entry_check(xorb_hash: bytes, chunks: ChunkRange) -> Callable[[int], object]:
    def check(fd: int) -> None:
        check_entry(fd, read_index(fd, xorb_hash, chunks), lambda _: None, decodes=False)

    return check


def _add_document(archive: tarfile.TarFile, name: str, value: object) -> None:
    data = json.dumps(value).encode() + b"\n"
    info = tarfile.TarInfo(name)
    info.mode, info.size = 0o600, len(data)
    archive.addfile(info, io.BytesIO(data))


class _Counting:
    """A file that reports how much of it was read."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(len(data))
        return data
