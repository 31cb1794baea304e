"""A cache as one stream, to be carried to another site: a tar archive (ustar) of what is worth
moving.

    manifest.json                               what this is, and about how much follows
    xorbs/{64 hex: xorb hash}/{start}-{end}.xc  entries
    ledgers/{64 hex: file hash}.xl              ledgers of proven files
    plain/{git or sha256}-{hex}                 files that are not Xet
    large/{git or sha256}-{hex}                 large ones, see pipeline/cache/blob_file.py
    meta/...                                    what is remembered of the Hub's answers
    end.json                                    how much there was: without it, the stream was cut

The order is that of the names, and nothing tells when or where it was made: the same content makes
the same stream, but for the cuts of entries. No token is in a cache, so none is in here.

What is read is not trusted. Names are parsed, never used as paths; anything but regular files is
refused before it is looked at; every file is checked like a stored one before anybody can see it.
Nothing can prove the Hub's answers: they come only if that is wanted, into a place of their own
(brought.py), within a bound, and never in place of what is known here. Everything here blocks.
"""

import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO, Final, NamedTuple, Self

from xetserve.base.regular_files import open_regular
from xetserve.cachetools.select import Selection
from xetserve.cachetools.verify import check_entry, is_whole_xorb, read_index
from xetserve.errors import FormatError, XetserveError
from xetserve.pipeline.cache.blob_file import MAX_SMALL_SIZE, BlobKey, check_plain
from xetserve.pipeline.cache.entry import EntryKey, Standing, is_unproven
from xetserve.pipeline.cache.layout import (
    LARGE,
    META,
    PLAIN,
    SHELVES,
    Stored,
    iter_answers,
    iter_shelf,
    iter_tree,
    iter_xorbs,
    list_entries,
    make_shelf_path,
    make_xorb_path,
)
from xetserve.pipeline.cache.quota import HYSTERESIS
from xetserve.pipeline.cache.store import MAX_XORB_ENTRIES, CacheStore
from xetserve.pipeline.cache.temporary import Temporary
from xetserve.pipeline.verify.ledger import MAX_FILE_MEMORY
from xetserve.pipeline.verify.ledger_file import parse_ledger
from xetserve.upstream.answers.folder import BLOCK, IMPORTED, round_up
from xetserve.upstream.answers.question import REFUSAL, Subject
from xetserve.upstream.answers.stored_file import Stored as Remembered
from xetserve.upstream.answers.stored_file import unpack_file
from xetserve.upstream.imported_answers import Unwanted, check_answer, make_mark
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ChunkRange
from xetserve.xet.xorb import MAX_XORB_SIZE

FORMAT: Final = "xetserve-cache"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
END: Final = "end.json"
BLOCK_SIZE: Final = 1024 * 1024  # bytes
MAX_DOCUMENT_SIZE: Final = 65536  # bytes of manifest and end
MAX_META_SIZE: Final = 16 * 1024 * 1024
# A xorb holds at most so many payload bytes; headers and index come on top of them.
MAX_ENTRY_SIZE: Final = 2 * MAX_XORB_SIZE

_ENTRY: Final = re.compile(r"xorbs/([0-9a-f]{64})/(0|[1-9]\d{0,8})-([1-9]\d{0,8})\.xc", re.ASCII)
_META: Final = re.compile(r"meta(?:/[A-Za-z0-9_][A-Za-z0-9_.=-]{0,79}){1,5}")


class ArchiveError(XetserveError):
    """The stream is not what it should be, or there is no room for it. What came before is in
    place.
    """


class Counted(NamedTuple):
    """Files, their bytes, and those that were passed over: damaged (export), or here already
    (import).

    num_left_out: answers of the Hub that were not to come, or may not.
    num_unproven: entries that were left out because nothing speaks for them (export), or are such
        (import).
    """

    num: int
    size: int
    num_skipped: int
    num_left_out: int = 0
    num_unproven: int = 0


class _Source(NamedTuple):
    """A file that goes into an archive, and what checks it once it is open."""

    name: str
    stored: Stored
    check: Callable[[int], object]


# Writing.


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
    """Write what a cache holds. What is damaged is left out, and so is what goes meanwhile.

    Args:
        version: of the program.
        selection: what is to be written; None: everything.
        with_unproven: entries for which nothing speaks yet, too.
        on_start: told how many files and bytes there are, about.
        on_bytes: told how many bytes were written, again and again.
        on_skip: told of a name, and why it is left out.

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
            _forget_members(archive)
            num += 1
            size += info.size
        _add_document(archive, END, {"files": num, "bytes": size})
    return Counted(num, size, num_skipped, num_unproven=num_unproven)


def _iter_sources(store: CacheStore, selection: Selection | None = None) -> Iterator[_Source]:
    """Iterate over files, in the order of their names."""
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
    """Iterate over files that are not entries."""
    for shelf in sorted(SHELVES):
        if shelf == PLAIN:
            yield from _iter_meta(store)
        for stored in iter_shelf(store.folder, shelf):
            yield _Source(f"{shelf}/{stored.name}", stored, _make_shelf_check(shelf, stored))


def _iter_meta(store: CacheStore) -> Iterator[_Source]:
    for path, stored in iter_answers(store.folder):
        if _META.fullmatch(f"{META}/{path}") and stored.size <= MAX_META_SIZE:
            yield _Source(f"{META}/{path}", stored, lambda _: None)


def _make_shelf_check(shelf: str, stored: Stored) -> Callable[[int], object]:
    if shelf in (PLAIN, LARGE):
        return lambda fd: check_plain(fd, BlobKey.parse(shelf, stored.name, stored.size))
    file_hash = parse_hash(stored.name.partition(".")[0])
    return lambda fd: parse_ledger(os.pread(fd, stored.size + 1, 0), file_hash)


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
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object]) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_bytes(len(data))
        return data


# Reading.


class _Member(tarfile.TarInfo):
    """A header that may announce regular files only; nothing else is even looked at, long names
    included.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ArchiveError(f"{member.name!r} is not a regular file")
        return member


class Importer:
    """Takes an archive in.

    Args:
        max_answers: bytes that the Hub's answers may take, with those that were brought before; 0:
            they are left out.
        on_start: told how many files and bytes there are, about.
        on_bytes: told how many bytes were read, again and again.
        on_skip: told of an answer's name, and why it may not come.
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
        self._answers = _Answers(store, max_answers) if max_answers else None
        self._on_skip = on_skip
        self._on_start = on_start
        self._on_bytes = on_bytes
        self._num = self._size = self._num_skipped = self._num_left_out = 0
        self._num_unproven = 0
        self._name = MANIFEST  # of what is being read

    def run(self, stream: BinaryIO) -> Counted:
        """Read an archive to its end; whatever is here already is passed over.

        Raises:
            ArchiveError: it is none, it is damaged or cut, or there is no room.
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
            _forget_members(archive)
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
        quota = self._store.room.max_size
        if size > quota - quota // HYSTERESIS:
            raise ArchiveError(f"{size} bytes are too many for a cache of {quota}")

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Take one file in, or pass it over."""
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
            self._check_room(self._size)  # whatever the manifest has said
        else:
            self._num_skipped += 1
            self._on_bytes(member.size)

    def _take_answer(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool | None:
        """Take an answer of the Hub in; None: it is left out."""
        if not _META.fullmatch(member.name):
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
        shelf, _, rest = name.partition("/")
        if (match := _ENTRY.fullmatch(name)) is not None:
            return self._take_entry(
                archive, member, parse_hash(match[1]), ChunkRange(int(match[2]), int(match[3]))
            )
        if shelf in SHELVES and SHELVES[shelf].fullmatch(rest):
            _check_size(member, self._get_limit(shelf))
            if os.path.exists(make_shelf_path(store.folder, shelf, rest)):
                return False
            stored = Stored(rest, member.size, 0.0)
            with _Incoming(store, member.size) as incoming:
                self._copy(archive, member, incoming.temporary)
                _make_shelf_check(shelf, stored)(incoming.temporary.fd)
                store.place(incoming.temporary, shelf, rest)
                incoming.is_placed = True
            return True
        raise FormatError("a cache holds nothing of that name")

    def _get_limit(self, shelf: str) -> int:
        """Return the bytes that a file of a shelf may have."""
        limits = {PLAIN: MAX_SMALL_SIZE, LARGE: self._store.max_entry_size}
        return limits.get(shelf, MAX_FILE_MEMORY)

    def _take_entry(
        self,
        archive: tarfile.TarFile,
        member: tarfile.TarInfo,
        xorb_hash: bytes,
        chunks: ChunkRange,
    ) -> bool:
        store = self._store
        if chunks.start >= chunks.end:
            raise FormatError("a range without chunks")
        _check_size(member, min(MAX_ENTRY_SIZE, store.max_entry_size))
        folder = make_xorb_path(store.folder, xorb_hash)
        present = list_entries(folder)
        if any(found.contains(chunks) for _, found in present):
            return False
        if len(present) >= MAX_XORB_ENTRIES:
            raise FormatError(f"more than {MAX_XORB_ENTRIES} entries of one xorb")
        with _Incoming(store, member.size) as incoming:
            fd = incoming.temporary.fd
            self._copy(archive, member, incoming.temporary)
            index = read_index(fd, xorb_hash, chunks)
            leaves = check_entry(fd, index, lambda _: None)
            # Its checks are the archive's own. Only the hash of the xorb is not.
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


class _Answers:
    """The Hub's answers that were brought, in their place.

    Args:
        max_size: bytes that they may take, in blocks, folders included; never more than the cache
            may.
    """

    def __init__(self, store: CacheStore, max_size: int) -> None:
        self._store = store
        self._folder = store.folder / META
        self._max_size = min(max_size, store.room.max_size)
        self._marks: dict[str, bytes] = {}
        self._size = BLOCK + sum(
            round_up(stored.size) + BLOCK for stored in iter_tree(self._folder / IMPORTED)
        )

    def take(self, path: str, data: bytes) -> bool:
        """Take an answer in; False: it is known here.

        Raises:
            FormatError: it is damaged.
            Unwanted: it may not come.
            ArchiveError: there is no room for it.
        """
        brought = unpack_file(path, data)
        if brought is None:
            raise FormatError("damaged")
        question = check_answer(path, brought, time.time())
        is_note = question is not None and question.kind == REFUSAL
        if not is_note and os.path.lexists(self._folder / path):
            return False
        if not self._place(path, data, brought.said):
            return False
        if question is not None and not is_note:
            subject = Subject.parse(brought.about)
            assert subject is not None  # there is a question
            self._marks.update([make_mark(question, subject.realm)])
        return True

    def finish(self) -> None:
        """Mark where there is something to refuse now, unless a mark has come, too.

        Raises:
            ArchiveError: there is no room for it.
        """
        for path, content in self._marks.items():
            self._place(path, content, 0.0)
        self._marks.clear()

    def _place(self, path: str, data: bytes, said: float) -> bool:
        """Put a file in place, unless there is one that was said then or later."""
        target = self._folder / IMPORTED / path
        present = _read_answer(target, path)
        if present is not None and present.said >= said:
            return False
        cost = round_up(len(data)) + BLOCK
        # A mark for each may have to follow.
        if self._size + cost + 2 * BLOCK * len(self._marks) > self._max_size:
            raise ArchiveError(
                f"the Hub's answers need more than {self._max_size} bytes: see metadata_size"
            )
        with _Incoming(self._store, len(data)) as incoming:
            self._store.write(incoming.temporary, data)
            self._store.place_beside(incoming.temporary, str(target))
            incoming.is_placed = True
        self._size += cost
        return True


def _read_answer(target: Path, path: str) -> Remembered | None:
    try:
        with open(open_regular(target), "rb") as file:
            return unpack_file(path, file.read(MAX_META_SIZE))
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Incoming:
    """A file that is being written; removed in the end, unless it was put in place."""

    def __init__(self, store: CacheStore, size: int) -> None:
        self._store = store
        self._size = size
        self.is_placed = False

    def __enter__(self) -> Self:
        store = self._store
        temporary = store.create(self._size)
        if temporary is None:
            store.room.sweep(self._size)
            temporary = store.create(self._size)
        if temporary is None:
            raise ArchiveError("there is no room in the cache, or on its disk")
        self.temporary = temporary
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.is_placed:
            self._store.discard(self.temporary)
        with suppress(OSError):
            os.close(self.temporary.fd)


def _forget_members(archive: tarfile.TarFile) -> None:
    """Let an archive not remember every file that it has seen."""
    archive.members = []  # type: ignore[attr-defined]


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
