"""Repositories on disk: refs, commits and what they list.

repos/{kind}s--{owner}--{name}/
    repo.json       private, gated, who made it and when
    refs.json       branches, tags and pull requests, each a commit id
    commits/        one JSON file for each commit, with all the files it lists
    links/          named by sha256: how the content came ("lfs", or a file hash); an upload writes
                    it, a commit reads it, so that knowing a sha256 is not enough to get at the content
    xet/            empty files named by file hash: what this repository's tokens may reconstruct
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from hashlib import sha1
from pathlib import Path
from typing import Any, Final, NamedTuple

from xetserve.origin.storage import RecentlyUsed, Storage

KINDS: Final = ("model", "dataset", "space")
MAX_COMMITS: Final = 8  # kept in memory; about 500 bytes for each file they list
DEFAULT_BRANCH: Final = "main"

_NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_COMMIT_ID = re.compile(r"[0-9a-f]{40}")
_REF_NAME = re.compile(r"(?!.*(?:\.\.|//|@\{))[^\s~^:?*\[\\/.][^\s~^:?*\[\\\x00-\x1f\x7f]{0,200}")


class RepoId(NamedTuple):
    """A repository: kind ("model", "dataset" or "space") and id, with or without an owner."""

    kind: str
    id: str

    @property
    def owner(self) -> str | None:
        """The part before the slash."""
        owner, slash, _ = self.id.partition("/")
        return owner if slash else None

    @property
    def url_path(self) -> str:
        """What the repository's pages start with, without a slash in front."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    @property
    def key(self) -> str:
        """One path segment that names it."""
        return f"{self.kind}s--{self.id.replace('/', '--')}"


def is_repo_name(text: str) -> bool:
    """Tell whether this may be an id: one or two names, no "--" or ".." in them."""
    parts = text.split("/")
    return len(parts) <= 2 and all(
        _NAME.fullmatch(part) is not None and not part.endswith(".git") for part in parts
    )


def is_ref_name(text: str) -> bool:
    """Tell whether this may be the name of a branch or tag."""
    return _REF_NAME.fullmatch(text) is not None and not text.endswith(("/", ".", ".lock"))


class PathEntry(NamedTuple):
    """One file of a commit.

    oid: git blob id, of the LFS pointer for what is not a plain file.
    sha256: hex, LFS and Xet files only. file_hash: string form, Xet files only.
    commit: the id of the commit that changed it last.
    """

    size: int
    oid: str
    sha256: str | None = None
    file_hash: str | None = None
    commit: str = ""

    @property
    def pointer_size(self) -> int:
        """Bytes of the LFS pointer."""
        return len(make_pointer(self.sha256 or "", self.size))


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit and everything it lists, by path."""

    id: str
    parent: str | None
    title: str
    description: str
    author: str
    date: str
    files: dict[str, PathEntry]


@dataclass(slots=True)
class Refs:
    """Names of commits."""

    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """Give the commit id of a branch, tag or ref; None: there is no such name."""
        if revision.startswith("refs/pr/"):
            return self.pull_requests.get(revision.removeprefix("refs/pr/"))
        for prefix, names in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            name = revision.removeprefix(prefix)
            if name in names:
                return names[name]
        return None


@dataclass(slots=True)
class RepoInfo:
    """What is said about a repository itself."""

    private: bool
    gated: bool
    creator: str | None
    created: str


def now_text() -> str:
    """Give the time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def make_pointer(sha256: str, size: int) -> bytes:
    """Write the LFS pointer that stands for a file in git."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def hash_blob(data: bytes) -> str:
    """Give the git blob id."""
    return sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class RepoFolder:
    """One repository. Every method reads or writes files; writers take turns, see Library."""

    def __init__(self, storage: Storage, repo: RepoId, commits: RecentlyUsed[Commit]) -> None:
        self.repo = repo
        self._storage = storage
        self._commits = commits
        self._path = storage.root / "repos" / repo.key

    def exists(self) -> bool:
        """Tell whether the repository has been made."""
        return (self._path / "repo.json").exists()

    def make(self, info: RepoInfo) -> None:
        """Make it, with a first commit that lists nothing."""
        for name in ("commits", "links", "xet"):
            (self._path / name).mkdir(parents=True, exist_ok=True)
        author = info.creator or "origin"
        first = self.add_commit(None, {}, "initial commit", "", author)
        self.save_refs(Refs(branches={DEFAULT_BRANCH: first.id}))
        self.save_info(info)

    def load_info(self) -> RepoInfo:
        """Read repo.json."""
        return RepoInfo(**self._load("repo.json"))

    def save_info(self, info: RepoInfo) -> None:
        """Write repo.json."""
        self._save("repo.json", asdict(info))

    def load_refs(self) -> Refs:
        """Read refs.json."""
        return Refs(**self._load("refs.json"))

    def save_refs(self, refs: Refs) -> None:
        """Write refs.json."""
        self._save("refs.json", asdict(refs))

    def _load(self, name: str) -> Any:
        return json.loads((self._path / name).read_bytes())

    def _save(self, name: str, value: object) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        self._storage.write(self._path / name, text.encode())

    def resolve(self, revision: str) -> str | None:
        """Give the commit id of a branch, tag, ref or full commit id."""
        known = self.load_refs().resolve(revision)
        if known is None and _COMMIT_ID.fullmatch(revision):
            return revision if (self._path / "commits" / f"{revision}.json").exists() else None
        return known

    def load_commit(self, commit_id: str) -> Commit:
        """Read a commit that exists."""
        return self._commits.get((self.repo, commit_id), lambda: self._load_commit(commit_id))

    def _load_commit(self, commit_id: str) -> Commit:
        value = self._load(f"commits/{commit_id}.json")
        files = {path: PathEntry(*entry) for path, entry in value.pop("files").items()}
        return Commit(files=files, **value)

    def add_commit(
        self,
        parent: str | None,
        files: dict[str, PathEntry],
        title: str,
        description: str,
        author: str,
    ) -> Commit:
        """Write a commit. Entries without a commit of their own are new with this one."""
        names = ("parent", "title", "description", "author", "date")
        head = dict(zip(names, (parent, title, description, author, now_text()), strict=True))
        ordered = sorted(files.items())
        text = json.dumps([self.repo.key, head, ordered]).encode()
        commit_id = sha1(text, usedforsecurity=False).hexdigest()
        stamped = {
            path: entry if entry.commit else entry._replace(commit=commit_id)
            for path, entry in ordered
        }
        lines = ",\n".join(
            f"  {json.dumps(path, ensure_ascii=False)}: {json.dumps(entry)}"
            for path, entry in stamped.items()
        )
        value = json.dumps({"id": commit_id, **head}, ensure_ascii=False)
        body = f'{value[:-1]}, "files": {{\n{lines}\n}}}}\n'
        self._storage.write(self._path / f"commits/{commit_id}.json", body.encode())
        return self.load_commit(commit_id)

    def get_link(self, sha256: str) -> str | None:
        """Tell how content came to this repository: "lfs", a file hash, or None for not at all."""
        try:
            return (self._path / "links" / sha256).read_text()
        except FileNotFoundError:
            return None

    def add_link(self, sha256: str, target: str) -> None:
        """Note how content came; what came as Xet stays so."""
        known = self.get_link(sha256)
        if known is None or (known == "lfs" and target != "lfs"):
            self._storage.write(self._path / "links" / sha256, target.encode())

    def is_reachable(self, file_hash: str) -> bool:
        """Tell whether any commit has listed this Xet file."""
        return (self._path / "xet" / file_hash).exists()

    def add_reachable(self, file_hashes: Iterable[str]) -> None:
        """Note the Xet files that a commit lists."""
        for name in file_hashes:
            (self._path / "xet" / name).touch()


def is_file_path(path: str) -> bool:
    """Tell whether a commit may list this path."""
    parts = path.split("/")
    return len(path) <= 1000 and all(
        part not in ("", ".", "..", ".git") and not any(c < " " or c == "\x7f" for c in part)
        for part in parts
    )


def find_conflict(paths: Iterable[str]) -> str | None:
    """Give a path that is a file and a folder at once, if there is one."""
    known = set(paths)
    for path in known:
        parts = path.split("/")
        for count in range(1, len(parts)):
            folder = "/".join(parts[:count])
            if folder in known:
                return folder
    return None


def open_folder(root: Path) -> Storage:
    """Open an origin's folder."""
    return Storage(root)
