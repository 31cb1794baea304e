"""Importing an archive into a cache; see archive.py."""

import json
import os
import tarfile
from collections.abc import Callable
from typing import BinaryIO, Self

from xetserve.base.sizes import format_size
from xetserve.cachetools.answer_importer import AnswerImporter, Incoming
from xetserve.cachetools.archive import (
    BLOCK_SIZE,
    END,
    ENTRY_NAME,
    FORMAT,
    MANIFEST,
    MAX_DOCUMENT_SIZE,
    MAX_ENTRY_SIZE,
    MAX_META_SIZE,
    META_NAME,
    VERSION,
    ArchiveError,
    Counted,
    forget_members,
    make_file_check,
)
from xetserve.cachetools.verify import check_entry, is_whole_xorb
from xetserve.errors import FormatError
from xetserve.pipeline.cache.blob_file import MAX_SMALL_SIZE
from xetserve.pipeline.cache.entry import EntryKey, Standing
from xetserve.pipeline.cache.indexes import read_index
from xetserve.pipeline.cache.layout import (
    LARGE,
    META,
    PLAIN,
    SUBFOLDERS,
    Stored,
    list_entries,
    make_file_path,
    make_xorb_path,
)
from xetserve.pipeline.cache.quota import HYSTERESIS
from xetserve.pipeline.cache.store import MAX_XORB_ENTRIES, CacheStore
from xetserve.pipeline.cache.temporary import Temporary
from xetserve.pipeline.verify.ledger import MAX_FILE_MEMORY
from xetserve.upstream.imported_answers import Unwanted
from xetserve.xet.hashes import parse_hash
from xetserve.xet.reconstruction import ChunkRange


class _Member(tarfile.TarInfo):
    """A header of a regular file. Other kinds are refused before they are read, long names
    included.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ArchiveError(f"{member.name!r} is not a regular file")
        return member


class Importer:
    """Import an archive.

    Args:
        max_answers: bytes that all imported answers of the Hub may take; 0: answers are left out.
        on_start: called with the approximate number of files and bytes.
        on_bytes: called with the number of bytes read, again and again.
        on_skip: called with the name of an answer and the reason why it is left out.
    """

    def __init__(
        self,
        store: CacheStore,
        *,
        max_answers: int = 0,
        on_start: Callable[[int, int], object] = lambda _, __: None,
        on_bytes: Callable[[int], object] = lambda _: None,
        on_skip: Callable[[str, str], object] = lambda _, __: None,
    ) -> None:
        self._store = store
        self._answers = AnswerImporter(store, max_answers) if max_answers else None
        self._on_skip = on_skip
        self._on_start = on_start
        self._on_bytes = on_bytes
        self._num = self._size = self._num_skipped = self._num_left_out = 0
        self._num_unproven = 0
        self._name = MANIFEST  # of the member that is being read

    def run(self, stream: BinaryIO) -> Counted:
        """Read an archive to its end; files that are here already are skipped.

        Raises:
            ArchiveError: it is not an archive, is damaged or cut, or there is no room.
            OSError: the stream cannot be read, or the disk fails.
        """
        try:
            with tarfile.open(
                mode="r|", fileobj=stream, bufsize=BLOCK_SIZE, tarinfo=_Member
            ) as archive:
                try:
                    return self._read(archive)
                finally:
                    if self._answers is not None:
                        self._answers.finish()
        except tarfile.TarError as exc:
            raise ArchiveError(f"not an archive of a cache, or one that was cut: {exc}") from None
        except FormatError as exc:
            raise ArchiveError(f"{self._name!r}: {exc}") from None

    def _read(self, archive: tarfile.TarFile) -> Counted:
        first = archive.next()
        if first is None or first.name != MANIFEST:
            raise ArchiveError("not an archive of a cache: it does not begin with its manifest")
        self._read_manifest(_read_document(archive, first))
        num_seen = 0
        while (member := archive.next()) is not None:
            forget_members(archive)
            self._name = member.name
            if member.name == END:
                if _read_document(archive, member).get("files") != num_seen:
                    raise ArchiveError("files are missing from the archive")
                counts = (self._num, self._size, self._num_skipped, self._num_left_out)
                return Counted(*counts, self._num_unproven)
            num_seen += 1
            self._take(archive, member)
        raise ArchiveError("the archive was cut: it has no end")

    def _read_manifest(self, manifest: dict[str, object]) -> None:
        num, size = manifest.get("files"), manifest.get("bytes")
        if manifest.get("format") != FORMAT or not isinstance(num, int):
            raise ArchiveError("not an archive of a cache")
        if manifest.get("version") != VERSION:
            raise ArchiveError(
                f"an archive of version {manifest.get('version')}, expected {VERSION}"
            )
        if not isinstance(size, int):
            raise ArchiveError("not an archive of a cache")
        self._check_room(size)
        self._on_start(num, size)

    def _check_room(self, size: int) -> None:
        quota = self._store.quota.max_size
        if size > quota - quota // HYSTERESIS:
            room = quota - quota // HYSTERESIS
            raise ArchiveError(
                f"the archive holds {format_size(size)}, and a cache of {format_size(quota)} has "
                f"room for {format_size(room)}: raise cache_size, or export less (--repo)"
            )

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Import or skip one file."""
        if member.name.startswith(f"{META}/"):
            is_taken = self._take_answer(archive, member)
        else:
            is_taken = self._take_named(archive, member)
        if is_taken is None:
            self._num_left_out += 1
            self._on_bytes(member.size)
        elif is_taken:
            self._num += 1
            self._size += member.size
            self._check_room(self._size)  # the manifest may have named a smaller size
        else:
            self._num_skipped += 1
            self._on_bytes(member.size)

    def _take_answer(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool | None:
        """Import an answer of the Hub; None: it is left out."""
        if not META_NAME.fullmatch(member.name):
            raise FormatError("a cache holds nothing of that name")
        _check_size(member, MAX_META_SIZE)
        if self._answers is None:
            return None
        source = archive.extractfile(member)
        assert source is not None  # it is a regular file
        try:
            is_taken = self._answers.take(member.name.partition("/")[2], source.read())
        except Unwanted as exc:
            self._on_skip(member.name, str(exc))
            return None
        if is_taken:
            self._on_bytes(member.size)
        return is_taken

    def _take_named(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
        name, store = member.name, self._store
        subfolder, _, rest = name.partition("/")
        if (match := ENTRY_NAME.fullmatch(name)) is not None:
            return self._take_entry(
                archive, member, parse_hash(match[1]), ChunkRange(int(match[2]), int(match[3]))
            )
        if subfolder in SUBFOLDERS and SUBFOLDERS[subfolder].fullmatch(rest):
            _check_size(member, self._get_limit(subfolder))
            if os.path.exists(make_file_path(store.folder, subfolder, rest)):
                return False
            stored = Stored(rest, member.size, 0.0)
            with Incoming(store, member.size) as incoming:
                self._copy(archive, member, incoming.temporary)
                make_file_check(subfolder, stored)(incoming.temporary.fd)
                store.place(incoming.temporary, subfolder, rest)
                incoming.is_placed = True
            return True
        raise FormatError("a cache holds nothing of that name")

    def _get_limit(self, subfolder: str) -> int:
        """Return the largest size of a file in a subfolder, in bytes."""
        limits = {PLAIN: MAX_SMALL_SIZE, LARGE: self._store.max_entry_size}
        return limits.get(subfolder, MAX_FILE_MEMORY)

    def _take_entry(
        self,
        archive: tarfile.TarFile,
        member: tarfile.TarInfo,
        xorb_hash: bytes,
        chunks: ChunkRange,
    ) -> bool:
        store = self._store
        if chunks.start >= chunks.end:
            raise FormatError("its range has no chunks")
        _check_size(member, min(MAX_ENTRY_SIZE, store.max_entry_size))
        folder = make_xorb_path(store.folder, xorb_hash)
        present = list_entries(folder)
        if any(
            found.contains(chunks) and not store.is_of_other_version(stored, xorb_hash, found)
            for stored, found in present
        ):
            return False
        if len(present) >= MAX_XORB_ENTRIES:
            raise FormatError(f"more than {MAX_XORB_ENTRIES} entries of one xorb")
        with Incoming(store, member.size) as incoming:
            fd = incoming.temporary.fd
            self._copy(archive, member, incoming.temporary)
            index = read_index(fd, xorb_hash, chunks)
            leaves = check_entry(fd, index, lambda _: None)
            # The checks come with the archive, so they prove nothing. The xorb hash does.
            is_proven = is_whole_xorb(xorb_hash, chunks, leaves)
            standing = Standing.PROVEN if is_proven else Standing.IMPORTED
            self._num_unproven += not is_proven
            key = EntryKey(xorb_hash, chunks, index.key.byte_range)
            store.publish(incoming.temporary, key, standing)
            incoming.is_placed = True
        return True

    def _copy(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, temporary: Temporary
    ) -> None:
        """Write the content of a member into a file."""
        source = archive.extractfile(member)
        assert source is not None  # it is a regular file
        left = member.size
        while left:
            data = source.read(min(BLOCK_SIZE, left))
            if not data:
                raise ArchiveError("the archive was cut")
            self._store.write(temporary, data)
            self._on_bytes(len(data))
            left -= len(data)


def _check_size(member: tarfile.TarInfo, limit: int) -> None:
    if not 0 <= member.size <= limit:
        raise FormatError(f"{member.size} bytes, expected at most {limit}")


def _read_document(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, object]:
    _check_size(member, MAX_DOCUMENT_SIZE)
    source = archive.extractfile(member)
    assert source is not None
    try:
        value = json.loads(source.read())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArchiveError(f"{member.name} is damaged")
    return value
