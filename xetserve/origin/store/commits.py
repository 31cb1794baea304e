"""Kinds of repositories, commits and their files, as values."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from xetserve.origin.store.git_ids import GitObject, hash_trees
from xetserve.xet.hashes import format_hash, parse_hash


class RepoType(NamedTuple):
    """A kind of repository: its name, its plural for API paths, and the start of its URLs."""

    name: str
    plural: str
    url_prefix: str


MODEL: Final = RepoType("model", "models", "/")
DATASET: Final = RepoType("dataset", "datasets", "/datasets/")
SPACE: Final = RepoType("space", "spaces", "/spaces/")
KERNEL: Final = RepoType("kernel", "kernels", "/kernels/")
BUCKET: Final = RepoType("bucket", "buckets", "/buckets/")  # see origin/api/buckets.py
REPO_TYPES: Final = {kind.name: kind for kind in (MODEL, DATASET, SPACE, KERNEL, BUCKET)}
REPO_TYPES_BY_PLURAL: Final = {kind.plural: kind for kind in REPO_TYPES.values()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a commit.

    oid: git id; for a large file that of its pointer.
    sha256, file_hash: of a large file; both None for a git blob.
    changed_in: id of the commit that put this content at this path.
    """

    path: str
    size: int
    oid: str
    sha256: str | None = None
    file_hash: bytes | None = None
    changed_in: str = ""

    def is_same_content(self, other: "Entry | None") -> bool:
        """Return whether both have the same content, from whichever commit."""
        return other is not None and (self.oid, self.file_hash) == (other.oid, other.file_hash)


@dataclass(frozen=True)
class Commit:
    """A state of a repository. date: Unix seconds. entries: by path, in order of their paths."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: int
    entries: dict[str, Entry] = field(repr=False)

    @cached_property
    def trees(self) -> dict[str, str]:
        """The git ids of the folders by path; "" is the root."""
        return hash_trees(GitObject(entry.path, entry.oid) for entry in self.entries.values())


class CommitInfo(NamedTuple):
    """The title, message and author of a commit."""

    title: str
    message: str
    author: str


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Return the JSON form of an entry."""
    value: dict[str, Any] = {"path": entry.path, "size": entry.size, "oid": entry.oid}
    if entry.file_hash is not None:
        value |= {"sha256": entry.sha256, "xet": format_hash(entry.file_hash)}
    return value | {"changed_in": entry.changed_in}


def entry_from_json(value: dict[str, Any]) -> Entry:
    """Parse the JSON form of an entry."""
    xet = value.get("xet")
    return Entry(
        value["path"],
        value["size"],
        value["oid"],
        value.get("sha256"),
        parse_hash(xet) if xet else None,
        value["changed_in"],
    )
