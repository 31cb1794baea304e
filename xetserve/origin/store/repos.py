"""Repositories on disk: refs, commits and what the commits hold.

    repos/{type}s/{owner}--{name}/   or {name}, for an id without an owner
      repo.json                      type, id, owner (who made it), private, created, gated, granted
      refs.json                      {"refs/heads/main": commit id, ...}
      commits/{id}.json              tree id, parent, title, message, author, date
      commits/{id}.entries           files of the commit, one JSON object a line, sorted by path
      uploads/{sha256}               large content uploaded to the repository: its file hash
      files/{file hash}              an empty file for each Xet file that a commit has named
    blobs/{git id}                   content of git blobs

A repository is used by one process at a time.
"""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from xetserve.base.lru_dict import LruDict
from xetserve.origin.store.blobs import TemporaryFiles, make_private_folder
from xetserve.origin.store.commits import (
    REPO_TYPES,
    Commit,
    CommitInfo,
    Entry,
    RepoType,
    entry_from_json,
    entry_to_json,
)
from xetserve.origin.store.git_ids import GitObject, hash_commit, hash_trees
from xetserve.origin.store.names import is_valid_id
from xetserve.xet.hashes import format_hash, parse_hash

MAX_CACHED_COMMITS: Final = 16

_COMMIT_ID: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class Repo:
    """One repository. A caller that changes it must hold the lock."""

    def __init__(
        self, folder: Path, temporary: TemporaryFiles, info: dict[str, Any], refs: dict[str, str]
    ) -> None:
        self._folder = folder
        self._temporary = temporary
        self.type = REPO_TYPES[info["type"]]
        self.id: str = info["id"]
        self.owner: str | None = info["owner"]
        self.created: int = info["created"]
        self.refs = refs
        self.lock = asyncio.Lock()
        self._info = info
        self._commits: LruDict[str, Commit] = LruDict(max_num=MAX_CACHED_COMMITS)

    @property
    def private(self) -> bool:
        """Whether only its owners may see it."""
        return bool(self._info["private"])

    @property
    def gated(self) -> str | None:
        """How users ask for access to the files, in the Hub's words; None: everybody has it."""
        gated: str | None = self._info.get("gated")
        return gated

    @property
    def granted(self) -> Mapping[str, int]:
        """The users who have access to the files of a gated repository, and since when."""
        granted: dict[str, int] = self._info.get("granted", {})
        return granted

    @property
    def namespace(self) -> str:
        """The part of the id before the slash; "" if there is none."""
        return self.id.rpartition("/")[0]

    @property
    def url_path(self) -> str:
        """The start of the repository's URLs."""
        return self.type.url_prefix + self.id

    def find_ref(self, revision: str) -> str | None:
        """Return the full name of the ref that a revision names."""
        convert = revision.replace("~", "refs/convert/", 1)  # no ref has a ~ in its name
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}", convert):
            if name in self.refs:
                return name
        return None

    def find_commit_id(self, revision: str) -> str | None:
        """Return the commit that a branch, tag, ref or commit id names; None: there is none."""
        ref = self.find_ref(revision)
        if ref is not None:
            return self.refs[ref]
        if _COMMIT_ID.fullmatch(revision) and self._commit_path(revision).exists():
            return revision
        return None

    async def get_commit(self, revision: str) -> Commit | None:
        """Return the commit that a revision names; None: there is none."""
        commit_id = self.find_commit_id(revision)
        if commit_id is None:
            return None
        commit = self._commits.get(commit_id)
        if commit is None:
            commit = await asyncio.to_thread(self._load_commit, commit_id)
            self._commits.put(commit_id, commit)
        return commit

    async def load_commit_info(self, commit_id: str) -> dict[str, Any]:
        """Return a commit without its entries, as it is stored."""
        data = await asyncio.to_thread(self._commit_path(commit_id).read_bytes)
        info: dict[str, Any] = json.loads(data)
        return info

    async def add_commit(
        self, ref: str, parent: Commit | None, entries: Iterable[Entry], info: CommitInfo
    ) -> Commit:
        """Make a commit and let the ref point to it. The lock must be held.

        An entry with the same content as in the parent keeps the commit that changed it.
        """
        commit = await asyncio.to_thread(self._add_commit, ref, parent, list(entries), info)
        self._commits.put(commit.id, commit)
        return commit

    def _add_commit(
        self, ref: str, parent: Commit | None, entries: list[Entry], info: CommitInfo
    ) -> Commit:
        entries.sort(key=lambda entry: entry.path)
        tree = hash_trees(GitObject(entry.path, entry.oid) for entry in entries)[""]
        parent_id = parent.id if parent else None
        # Two equal commits within a second would have the same id, so the second one is dated
        # later.
        date = max(int(time.time()), parent.date + 1 if parent else 0)
        message = f"{info.title}\n\n{info.message}" if info.message else info.title
        commit_id = hash_commit(tree, parent_id, info.author, date, message)
        known = parent.entries if parent else {}
        kept = {}
        for entry in entries:
            old = known.get(entry.path)
            changed_in = old.changed_in if old and entry.is_same_content(old) else commit_id
            kept[entry.path] = replace(entry, changed_in=changed_in)
        commit = Commit(commit_id, parent_id, info.title, info.message, info.author, date, kept)
        self._write_commit(commit, tree)
        self._set_ref(ref, commit_id)
        return commit

    def _write_commit(self, commit: Commit, tree: str) -> None:
        lines = [json.dumps(entry_to_json(entry)) + "\n" for entry in commit.entries.values()]
        path = self._commit_path(commit.id)
        self._temporary.write(path.with_suffix(".entries"), "".join(lines).encode())
        value = {
            "tree": tree,
            "parent": commit.parent,
            "title": commit.title,
            "message": commit.message,
            "author": commit.author,
            "date": commit.date,
        }
        self._temporary.write(path, json.dumps(value, indent=1).encode() + b"\n")
        for entry in commit.entries.values():
            if entry.file_hash is not None and entry.changed_in == commit.id:
                path = self._file_path(entry.file_hash)
                if not path.exists():
                    self._temporary.write(path, b"")
                self.add_upload(entry.sha256 or "", entry.file_hash)

    def _load_commit(self, commit_id: str) -> Commit:
        path = self._commit_path(commit_id)
        info = json.loads(path.read_bytes())
        entries = {}
        with path.with_suffix(".entries").open("rb") as lines:
            for line in lines:
                entry = entry_from_json(json.loads(line))
                entries[entry.path] = entry
        return Commit(
            commit_id,
            info["parent"],
            info["title"],
            info["message"],
            info["author"],
            info["date"],
            entries,
        )

    def set_ref(self, ref: str, commit_id: str) -> Awaitable[None]:
        """Point a ref to a commit. The lock must be held."""
        return asyncio.to_thread(self._set_ref, ref, commit_id)

    def delete_ref(self, ref: str) -> Awaitable[None]:
        """Delete a ref. The lock must be held."""
        return asyncio.to_thread(self._set_ref, ref, None)

    def _set_ref(self, ref: str, commit_id: str | None) -> None:
        refs = dict(self.refs)
        if commit_id is None:
            del refs[ref]
        else:
            refs[ref] = commit_id
        self._temporary.write(
            self._folder / "refs.json", json.dumps(refs, indent=1).encode() + b"\n"
        )
        self.refs = refs

    async def change_info(self, **changes: Any) -> None:
        """Change private, gated or granted. The lock must be held."""
        info = {**self._info, **changes}
        await asyncio.to_thread(_write_info, self._temporary, self._folder, info)
        self._info = info

    def add_upload(self, sha256: str, file_hash: bytes) -> None:
        """Record uploaded content, so that a commit may name it."""
        path = self._upload_path(sha256)
        if not path.exists():
            self._temporary.write(path, format_hash(file_hash).encode() + b"\n")

    async def get_upload(self, sha256: str) -> bytes | None:
        """Return the file hash of uploaded content; None: it was not uploaded here."""
        if not _SHA256.fullmatch(sha256):
            return None
        try:
            text = await asyncio.to_thread(self._upload_path(sha256).read_text)
        except FileNotFoundError:
            return None
        return parse_hash(text.strip())

    async def has_file(self, file_hash: bytes) -> bool:
        """Return whether a commit of this repository has named a Xet file."""
        return await asyncio.to_thread(self._file_path(file_hash).exists)

    def _commit_path(self, commit_id: str) -> Path:
        return self._folder / "commits" / f"{commit_id}.json"

    def _upload_path(self, sha256: str) -> Path:
        return self._folder / "uploads" / sha256

    def _file_path(self, file_hash: bytes) -> Path:
        return self._folder / "files" / format_hash(file_hash)


class RepoStore:
    """The repositories of a folder, by type and id."""

    def __init__(self, root: Path, temporary: TemporaryFiles) -> None:
        self._folder = make_private_folder(root / "repos")
        self._temporary = temporary
        self._repos: dict[tuple[str, str], Repo] = {}
        self._lock = asyncio.Lock()

    async def get(self, repo_type: RepoType, repo_id: str) -> Repo | None:
        """Return a repository; None: there is none of that name."""
        key = (repo_type.name, repo_id)
        repo = self._repos.get(key)
        if repo is None and is_valid_id(repo_id):
            async with self._lock:
                repo = self._repos.get(key)
                if repo is None:
                    repo = await asyncio.to_thread(self._load, self._get_folder(repo_type, repo_id))
                    if repo is not None:
                        self._repos[key] = repo
        return repo

    async def create(
        self, repo_type: RepoType, repo_id: str, *, owner: str | None, private: bool
    ) -> Repo:
        """Make a repository with an empty first commit.

        Raises:
            ValueError: not a valid id.
            FileExistsError: there is one of that name.
        """
        if not is_valid_id(repo_id):
            raise ValueError(f"{repo_id!r} is not a repository id")
        if await self.get(repo_type, repo_id) is not None:
            raise FileExistsError(repo_id)
        async with self._lock:
            folder = self._get_folder(repo_type, repo_id)
            if (folder / "repo.json").exists():
                raise FileExistsError(repo_id)
            info = {
                "type": repo_type.name,
                "id": repo_id,
                "owner": owner,
                "private": private,
                "created": int(time.time()),
            }
            repo = Repo(folder, self._temporary, info, {})
            async with repo.lock:
                await repo.add_commit(
                    "refs/heads/main", None, (), CommitInfo("initial commit", "", owner or "user")
                )
            # Written last: a folder without it is not a repository yet.
            _write_info(self._temporary, folder, info)
            self._repos[(repo_type.name, repo_id)] = repo
        return repo

    async def list_all(self, repo_type: RepoType) -> list[Repo]:
        """Return the repositories of a type in order of their ids."""
        names = await asyncio.to_thread(_list_ids, self._folder / repo_type.plural)
        found = [await self.get(repo_type, repo_id) for repo_id in sorted(names)]
        return [repo for repo in found if repo is not None]

    async def delete(self, repo: Repo) -> None:
        """Delete a repository. Its lock must be held; content that others may name stays."""
        async with self._lock:
            self._repos.pop((repo.type.name, repo.id), None)
            folder = self._get_folder(repo.type, repo.id)
            await asyncio.to_thread(_delete_folder, folder, self._temporary.make_path())

    def _get_folder(self, repo_type: RepoType, repo_id: str) -> Path:
        return self._folder / repo_type.plural / repo_id.replace("/", "--")

    def _load(self, folder: Path) -> Repo | None:
        try:
            info = json.loads((folder / "repo.json").read_bytes())
            refs = json.loads((folder / "refs.json").read_bytes())
        except FileNotFoundError:
            return None
        return Repo(folder, self._temporary, info, refs)


def _write_info(temporary: TemporaryFiles, folder: Path, info: dict[str, Any]) -> None:
    temporary.write(folder / "repo.json", json.dumps(info, indent=1).encode() + b"\n")


def _list_ids(folder: Path) -> list[str]:
    """Return the ids of the repositories in a folder: no part of an id has "--"."""
    return [path.parent.name.replace("--", "/") for path in folder.glob("*/repo.json")]


def _delete_folder(folder: Path, aside: Path) -> None:
    folder.rename(aside)  # at once; leftovers of a crash do no harm there
    shutil.rmtree(aside, ignore_errors=True)
