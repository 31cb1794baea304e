"""The files of a cache that a repository needs, to export one model instead of everything.

Stored data does not name the repositories that use it; only the Hub's answers do. They name the
files of a revision, the files have reconstructions or lie in a subfolder, and the reconstructions
name chunks of xorbs. Everything here blocks.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from xetserve.base.regular_files import open_regular, pass_over
from xetserve.errors import FormatError, OtherVersion, UpstreamError, UpstreamMissing, XetserveError
from xetserve.pipeline.cache.blob_file import BlobKey
from xetserve.pipeline.cache.layout import LEDGERS, META, iter_answers, list_entries, make_xorb_path
from xetserve.upstream.answers.folder import MAX_FILE_SIZE
from xetserve.upstream.answers.question import HOLDER, Subject, read_stored
from xetserve.upstream.answers.stored_file import Stored, unpack_file
from xetserve.upstream.cas.reconstruction_archive import make_plan_folder, parse_plan_name
from xetserve.upstream.hub.cached_api import list_commit_targets, read_commit
from xetserve.upstream.hub.cached_entries import COMMIT, unpack_entry, unpack_holder
from xetserve.upstream.hub.entry import FileEntry, RepoRef
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction, parse_reconstruction

S = TypeVar("S", ChunkRange, ByteRange)


class NotKnown(XetserveError):
    """Nothing is stored of a repository, or not of that revision."""


class Wanted(NamedTuple):
    """A repository and a revision of it."""

    repo: RepoRef
    revision: str


class Chosen(NamedTuple):
    """The stored part of a wanted repository.

    size: bytes of its files.
    incomplete: path -> the reason why the file is incomplete.
    """

    wanted: Wanted
    commit: str | None
    num_files: int
    size: int
    incomplete: dict[str, str]


@dataclass(slots=True)
class Selection:
    """Files of a cache.

    names: of answers and of files in subfolders, with their folder.
    spans: xorb hash -> chunk ranges, sorted and disjoint.
    """

    names: set[str] = field(default_factory=set)
    spans: dict[bytes, list[ChunkRange]] = field(default_factory=dict)
    chosen: list[Chosen] = field(default_factory=list)

    def has_entry(self, xorb_hash: bytes, chunks: ChunkRange) -> bool:
        """Return whether an entry has chunks that are needed."""
        spans = self.spans.get(xorb_hash, [])
        at = bisect_right(spans, chunks.end - 1, key=lambda span: span.start) - 1
        return at >= 0 and spans[at].end > chunks.start


class _File(NamedTuple):
    """The Hub's description of a file. entry: None: there is no such file."""

    name: str
    revision: str
    path: str
    entry: FileEntry | None
    answered_at: float


@dataclass(slots=True)
class _Known:
    """Stored answers about a repository of one Hub, by their names.

    grants: file hash as text -> permissions to read it.
    commits: question -> when it was answered, and with which commit.
    others: answers about the repository itself.
    """

    files: list[_File] = field(default_factory=list)
    grants: dict[str, list[str]] = field(default_factory=dict)
    commits: dict[str, tuple[float, str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def select_repos(folder: Path, wanted: Iterable[Wanted]) -> Selection:
    """Select the files that some repositories need, and find their incomplete files.

    Raises:
        NotKnown: nothing is stored of one of them, at that revision.
        OSError: the disk fails.
    """
    wanted = list(dict.fromkeys(wanted))
    known = _read_known(folder, {one.repo.name for one in wanted})
    selection = Selection()
    chooser = _Chooser(folder, selection)
    for one in wanted:
        found = [stored for (_, name), stored in known.items() if name == one.repo.name]
        num_before = len(selection.chosen)
        for stored in found:  # more than one if the folder serves several Hubs
            chooser.choose(one, stored)
        if len(selection.chosen) == num_before:
            reason = f"the cache has nothing of {one.repo.kind} {one.repo.id} at {one.revision}"
            raise NotKnown(f"{reason}: pull it first")
    return selection


def find_lack(folder: Path, entry: FileEntry) -> str | None:
    """Return why a cache cannot serve a file without the upstream; None: it can.

    Raises:
        OSError: the disk fails.
    """
    return _Chooser(folder, Selection()).add(entry)


# Reading answers.


def _read_known(folder: Path, names: set[str]) -> dict[tuple[str, str], _Known]:
    """Return the stored answers about repositories of these names, by Hub and name."""
    found: dict[tuple[str, str], _Known] = {}
    for path, file in iter_answers(folder):
        if path.startswith("plans/"):
            continue
        stored = _read_stored(Path(file.path), path)
        subject = None if stored is None else Subject.parse(stored.about)
        if stored is None or subject is None:
            continue
        if subject.kind == HOLDER:
            with suppress(FormatError):
                repo, _ = unpack_holder(read_stored(stored).data)
                subject = subject._replace(repo=repo.name)
        if subject.repo in names:
            known = found.setdefault((subject.realm, subject.repo), _Known())
            _sort_in(known, f"{META}/{path}", subject, stored)
    return found


def _read_stored(file: Path, path: str) -> Stored | None:
    try:
        with open(open_regular(file), "rb") as opened:
            return unpack_file(path, opened.read(MAX_FILE_SIZE + 1))
    except (FileNotFoundError, OtherVersion):
        return None
    except OSError as exc:
        pass_over(file, exc)
        return None


def _sort_in(known: _Known, name: str, subject: Subject, stored: Stored) -> None:
    answer = read_stored(stored)
    if subject.kind == "file":
        revision, _, path = subject.name.partition("\0")
        try:
            known.files.append(
                _File(name, revision, path, unpack_entry(answer), stored.answered_at)
            )
        except UpstreamMissing:
            known.files.append(_File(name, revision, path, None, stored.answered_at))
        except UpstreamError:
            return  # another version wrote it
    elif subject.kind in ("plan", HOLDER):
        known.grants.setdefault(subject.name, []).append(name)
    else:
        known.others.append(name)
        method, _, target = subject.name.partition("\0")
        target = target.partition("\0")[0]
        commit = read_commit(answer) if (subject.kind, method) == ("api", "GET") else None
        if commit is not None:
            newest = (stored.answered_at, commit)
            known.commits[target] = max(newest, known.commits.get(target, newest))


def _find_commit(known: _Known, wanted: Wanted) -> str | None:
    """Return the commit that a revision was when the Hub was last asked."""
    if COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    targets = list_commit_targets(*wanted)
    answers = [known.commits[target] for target in targets if target in known.commits]
    answers += [
        (file.answered_at, file.entry.commit)
        for file in known.files
        if file.revision == wanted.revision and file.entry and file.entry.commit
    ]
    return max(answers)[1] if answers else None


def _is_of(file: _File, revision: str, commit: str | None) -> bool:
    """Return whether an answer is about a revision; by name, it may be older than its commit."""
    if file.entry is None or file.entry.commit is None:
        return file.revision in (revision, commit)
    return file.entry.commit == commit


# Choosing.


class _Chooser:
    """A selection that grows, repository by repository."""

    def __init__(self, folder: Path, selection: Selection) -> None:
        self._folder = folder
        self._selection = selection
        self._present: dict[bytes, list[ChunkRange]] = {}  # stored chunk ranges of xorbs
        # (file hash, size) -> the reason why the file is incomplete.
        self._seen: dict[tuple[bytes, int | None], str | None] = {}

    def choose(self, wanted: Wanted, known: _Known) -> None:
        """Add the files of a repository; nothing if none is known at the revision."""
        commit = _find_commit(known, wanted)
        files = {}
        names = []
        for file in known.files:
            if _is_of(file, wanted.revision, commit):
                names.append(file.name)
                if file.entry is not None:
                    files[file.path] = file.entry
        if not files:
            return
        self._selection.names.update(names, known.others)
        incomplete = {}
        for path, entry in sorted(files.items()):
            if entry.file_hash is not None:
                grants = known.grants.get(format_hash(entry.file_hash), [])
                self._selection.names.update(grants)
            if (lack := self.add(entry)) is not None:
                incomplete[path] = lack
        size = sum(entry.size or 0 for entry in files.values())
        self._selection.chosen.append(Chosen(wanted, commit, len(files), size, incomplete))

    def add(self, entry: FileEntry) -> str | None:
        """Add a file; return the reason if it is incomplete."""
        if entry.file_hash is None:
            return self._add_plain(entry)
        return self._add_xet(entry.file_hash, entry.size)

    def _add_plain(self, entry: FileEntry) -> str | None:
        """Add a file that is not Xet; return the reason if it is incomplete."""
        if entry.size == 0:
            return None
        key = BlobKey.of(entry)
        if key is None:
            return "the Hub names no hash for it"
        with suppress(OSError, ValueError):
            if Path(key.get_path(self._folder)).stat().st_size == key.stored_size:
                self._selection.names.add(f"{key.subfolder}/{key.name}")
                return None
        return "it is not stored"

    def _add_xet(self, file_hash: bytes, size: int | None) -> str | None:
        """Add a Xet file; return the reason if it is incomplete."""
        seen = (file_hash, size)
        if seen not in self._seen:
            self._seen[seen] = self._add_new_xet(file_hash, size)
        return self._seen[seen]

    def _add_new_xet(self, file_hash: bytes, size: int | None) -> str | None:
        self._selection.names.add(f"{LEDGERS}/{format_hash(file_hash)}.xl")
        covered: list[ByteRange] = []
        lacking: set[str] = set()
        for part, answer in self._iter_plans(file_hash):
            covered = merge_spans([*covered, part])
            needed: dict[bytes, list[ChunkRange]] = {}
            for term in answer.terms:
                needed.setdefault(term.xorb_hash, []).append(term.chunks)
            for xorb_hash, spans in needed.items():
                known = self._selection.spans.get(xorb_hash, [])
                self._selection.spans[xorb_hash] = merge_spans([*known, *spans])
                present = self._list_present(xorb_hash)
                if not all(covers(present, span) for span in spans):
                    lacking.add(f"chunks of xorb {format_hash(xorb_hash)}")
        if size is None or (size and not covers(covered, ByteRange(0, size))):
            return "its reconstruction is not complete"
        if not lacking:
            return None
        first, num_more = min(lacking), len(lacking) - 1
        return f"it lacks {first}" + (f" and {num_more} more" if num_more else "")

    def _iter_plans(self, file_hash: bytes) -> Iterator[tuple[ByteRange, Reconstruction]]:
        """Add the stored reconstructions of a file, and yield them."""
        plans = make_plan_folder(file_hash)
        for path, file in iter_answers(self._folder, plans):
            self._selection.names.add(f"{META}/{path}")
            part = parse_plan_name(file.name)
            stored = None if part is None else _read_stored(Path(file.path), path)
            if part is not None and stored is not None:
                with suppress(FormatError):  # another version wrote it
                    yield part, parse_reconstruction(stored.body)

    def _list_present(self, xorb_hash: bytes) -> list[ChunkRange]:
        found = self._present.get(xorb_hash)
        if found is None:
            entries = list_entries(make_xorb_path(self._folder, xorb_hash))
            found = self._present[xorb_hash] = merge_spans(chunks for _, chunks in entries)
        return found


def merge_spans(spans: Iterable[S]) -> list[S]:
    """Return ranges sorted, those that touch joined."""
    merged: list[S] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end:
            if span.end > merged[-1].end:
                merged[-1] = merged[-1]._replace(end=span.end)
        else:
            merged.append(span)
    return merged


def covers(merged: list[S], wanted: S) -> bool:
    """Return whether one of several merged ranges contains a range."""
    at = bisect_right(merged, wanted.start, key=lambda span: span.start) - 1
    return at >= 0 and merged[at].end >= wanted.end
