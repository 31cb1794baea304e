"""Git object ids, as a real repository with the same content would have them.

Large files stand in the tree as LFS pointers, so their id is that of the pointer's text.

Source: git-scm.com, "Git Internals - Git Objects"; git-lfs docs/spec.md (pointer text).
"""

from collections.abc import Iterable
from hashlib import sha1
from typing import NamedTuple


class GitObject(NamedTuple):
    """A path in a tree and the id of the object there."""

    path: str
    oid: str


def hash_object(kind: str, content: bytes) -> str:
    """Return the id of a git object of a kind."""
    return sha1(
        b"%s %d\0" % (kind.encode(), len(content)) + content, usedforsecurity=False
    ).hexdigest()


def make_pointer(sha256: str, size: int) -> bytes:
    """Return the text of the LFS pointer of a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def hash_trees(blobs: Iterable[GitObject]) -> dict[str, str]:
    """Return the id of every folder by its path; "" is the root.

    Args:
        blobs: the files, in any order.
    """
    root: _Folder = {}
    for path, oid in blobs:
        *parents, name = path.split("/")
        folder = root
        for parent in parents:
            child = folder.setdefault(parent, {})
            assert isinstance(child, dict)
            folder = child
        folder[name] = oid
    trees: dict[str, str] = {}
    _hash_tree("", root, trees)
    return trees


_Folder = dict[str, "str | _Folder"]


def _hash_tree(path: str, folder: _Folder, trees: dict[str, str]) -> str:
    lines = []
    for name, child in folder.items():
        if isinstance(child, dict):
            oid = _hash_tree(f"{path}/{name}" if path else name, child, trees)
            # Folders sort as if their name ended in a slash.
            lines.append((name.encode() + b"/", b"40000 ", oid))
        else:
            lines.append((name.encode(), b"100644 ", child))
    lines.sort()
    content = b"".join(
        mode + name.removesuffix(b"/") + b"\0" + bytes.fromhex(oid) for name, mode, oid in lines
    )
    trees[path] = hash_object("tree", content)
    return trees[path]


def hash_commit(tree: str, parent: str | None, author: str, seconds: int, message: str) -> str:
    """Return the id of a commit."""
    name = "".join(c for c in author if c not in "<>\n\0") or "user"
    signature = f"{name} <{name}@localhost> {seconds} +0000"
    lines = [f"tree {tree}"]
    if parent is not None:
        lines.append(f"parent {parent}")
    lines += [f"author {signature}", f"committer {signature}", "", message]
    return hash_object("commit", "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n")
