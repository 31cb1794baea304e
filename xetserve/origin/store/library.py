"""The whole folder of the origin: repositories, git blobs, Xet files and xorbs."""

import asyncio
import stat
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import aiofiles

from xetserve.base.atomic_file import open_private
from xetserve.errors import ConfigError, IntegrityError, RequestError
from xetserve.http.ranges import Span
from xetserve.origin.store.blobs import TemporaryFiles, make_folder, make_private_folder, publish
from xetserve.origin.store.commits import BUCKET, REPO_TYPES, Commit, CommitInfo, Entry, RepoType
from xetserve.origin.store.files import FileStore
from xetserve.origin.store.git_ids import hash_object, make_pointer
from xetserve.origin.store.ingest import Ingest
from xetserve.origin.store.modes import MAX_PLAIN_SIZE, SAMPLE_SIZE, is_large_file
from xetserve.origin.store.names import is_valid_path
from xetserve.origin.store.repos import Repo, RepoStore
from xetserve.origin.store.signing import load_secret
from xetserve.origin.store.xorbs import BLOCK_SIZE, XorbStore

MAIN: Final = "refs/heads/main"
_LEFT_OUT: Final = (".git", ".cache")  # folders that an import skips


class AddFile(NamedTuple):
    """Put a file at its path; its content is already stored."""

    entry: Entry


class DeleteFile(NamedTuple):
    """Remove a file."""

    path: str


class DeleteFolder(NamedTuple):
    """Remove everything below a path."""

    path: str


Change = AddFile | DeleteFile | DeleteFolder


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """Content of a git blob that waits, under a temporary name, for its commit."""

    path: Path
    oid: str
    size: int


class Library:
    """The folder of an origin. One process uses it at a time.

    Raises:
        ConfigError: the folder cannot be made, or everybody may write to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = make_folder(root)
        if root.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(f"everybody may write to {root}: chmod o-w, or name another folder")
        self._temporary = TemporaryFiles(root / "tmp")
        self._blobs = make_private_folder(root / "blobs")
        self.xorbs = XorbStore(root, self._temporary)
        self.files = FileStore(root, self._temporary, self.xorbs)
        self.repos = RepoStore(root, self._temporary)

    def load_secret(self) -> bytes:
        """Return the folder's secret."""
        return load_secret(self.root, self._temporary)

    def make_ingest(self) -> Ingest:
        """Return a new Ingest."""
        return Ingest(self.xorbs, self.files)

    async def stage_blob(self, content: bytes) -> StagedBlob:
        """Write the content of a git blob to a temporary file."""
        path = self._temporary.make_path()
        try:
            await asyncio.to_thread(_write_aside, path, content)
        except OSError:
            path.unlink(missing_ok=True)  # a part of it would keep a full disk full
            raise
        return StagedBlob(path, hash_object("blob", content), len(content))

    async def publish_blobs(self, blobs: Iterable[StagedBlob]) -> None:
        """Move staged content to its place."""
        for blob in blobs:
            await asyncio.to_thread(publish, blob.path, self._blobs / blob.oid)

    async def discard_blobs(self, blobs: Iterable[StagedBlob]) -> None:
        """Remove staged content that was not published."""
        for blob in blobs:
            await asyncio.to_thread(blob.path.unlink, True)

    async def commit(
        self,
        repo: Repo,
        ref: str,
        base: Commit,
        changes: Iterable[Change],
        info: CommitInfo,
        *,
        blobs: Iterable[StagedBlob] = (),
    ) -> Commit:
        """Apply changes to base as a new commit, and let the ref point to it.

        The repo's lock must be held.

        Args:
            blobs: content of git blobs, published once the changes have been checked.

        Raises:
            RequestError: 404: a path to delete does not exist; 400: a path is a file and a folder
                at once.
        """
        entries = dict(base.entries)
        _apply(entries, changes)
        await self.publish_blobs(blobs)
        return await repo.add_commit(ref, base, entries.values(), info)

    def make_large_entry(self, path: str, sha256: str, size: int, file_hash: bytes) -> Entry:
        """Return the entry of a Xet file."""
        oid = hash_object("blob", make_pointer(sha256, size))
        return Entry(path, size, oid, sha256, file_hash)

    async def read_entry(self, entry: Entry, span: Span) -> AsyncGenerator[list[bytes], None]:
        """Yield a range of a file's content in blocks.

        Raises:
            IntegrityError: data on disk is damaged or missing.
        """
        if entry.file_hash is None:
            async with aclosing(self._read_blob(entry.oid, span)) as blocks:
                async for block in blocks:
                    yield [block]
            return
        record = await self.files.get(entry.file_hash)
        if record is None:
            raise IntegrityError(f"{entry.path}: its Xet file is missing on disk")
        async with aclosing(self.files.read(record, span)) as parts:
            async for part in parts:
                yield part

    async def _read_blob(self, oid: str, span: Span) -> AsyncGenerator[bytes, None]:
        async with aiofiles.open(self._blobs / oid, "rb", buffering=0) as file:
            await file.seek(span.start)
            left = span.size
            while left:
                block = await file.read(min(left, BLOCK_SIZE))
                if not block:
                    raise IntegrityError(f"blob {oid} is cut on disk")
                left -= len(block)
                yield block

    async def import_folder(
        self, repo_type: str, repo_id: str, folder: Path, *, private: bool = False
    ) -> Commit:
        """Import a local folder as a commit on main; make the repository if it is missing.

        Files of main that the folder lacks stay. If nothing differs, there is no new commit.

        Args:
            repo_type: a key of REPO_TYPES.
            private: for a repository that is made now.

        Raises:
            ValueError: not a repository type or id, or a file name that a repository cannot hold.
            OSError: the folder cannot be read.
        """
        kind = REPO_TYPES.get(repo_type)
        if kind is None:
            raise ValueError(f"{repo_type!r} is not a repository type")
        repo = await self.repos.get(kind, repo_id)
        if repo is None:
            repo = await self.repos.create(kind, repo_id, owner=None, private=private)
        ingest = self.make_ingest()
        blobs: list[StagedBlob] = []
        try:
            entries = []
            for path in await asyncio.to_thread(_list_files, folder):
                name = path.relative_to(folder).as_posix()
                entries.append(await self._import_file(path, name, ingest, blobs, kind))
            await ingest.publish()
            async with repo.lock:
                head = await repo.get_commit(MAIN)
                assert head is not None  # a repository begins with a commit on main
                if all(e.is_same_content(head.entries.get(e.path)) for e in entries):
                    return head
                info = CommitInfo(f"Import {folder.name}", "", "xetserve")
                changes = map(AddFile, entries)
                return await self.commit(repo, MAIN, head, changes, info, blobs=blobs)
        finally:
            await ingest.abort()
            await self.discard_blobs(blobs)

    async def _import_file(
        self, path: Path, name: str, ingest: Ingest, blobs: list[StagedBlob], kind: RepoType
    ) -> Entry:
        async with aiofiles.open(path, "rb", buffering=0) as file:
            size = (await asyncio.to_thread(path.stat)).st_size
            sample = await file.read(SAMPLE_SIZE)
            # No file of a bucket is in git.
            is_large = kind is BUCKET or is_large_file(name, size, sample)
            if size <= MAX_PLAIN_SIZE and not is_large:
                blob = await self.stage_blob(sample + await file.readall())
                blobs.append(blob)
                return Entry(name, blob.size, blob.oid)
            await file.seek(0)

            async def pieces() -> AsyncGenerator[bytes, None]:
                while piece := await file.read(BLOCK_SIZE):
                    yield piece

            ingested = await ingest.add_file(pieces())
        return self.make_large_entry(name, ingested.sha256, ingested.size, ingested.file_hash)


def _write_aside(path: Path, content: bytes) -> None:
    with open(path, "xb", opener=open_private) as file:
        file.write(content)


def _list_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder")
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part in _LEFT_OUT for part in parts):
            if not is_valid_path("/".join(parts)):
                raise ValueError(f"a repository cannot hold a file named {path}")
            found.append(path)
    return found


def _apply(entries: dict[str, Entry], changes: Iterable[Change]) -> None:
    for change in changes:
        if isinstance(change, AddFile):
            entries[change.entry.path] = change.entry
        elif isinstance(change, DeleteFile):
            if entries.pop(change.path, None) is None:
                raise RequestError(404, f"cannot delete {change.path}: there is no such file")
        else:
            prefix = change.path.rstrip("/") + "/"
            inside = [path for path in entries if path.startswith(prefix)]
            if not inside:
                raise RequestError(404, f"cannot delete {prefix}: there is no such folder")
            for path in inside:
                del entries[path]
    for path in entries:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in entries:
                raise RequestError(400, f"{parent} would be a file and a folder at once")
            parent = parent.rpartition("/")[0]
