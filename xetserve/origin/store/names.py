"""Names that repositories, refs and files may have, as on the Hub."""

import re
from typing import Final

MAX_PATH_SIZE: Final = 4096  # bytes

_NAME: Final = re.compile(r"[A-Za-z0-9_.][\w.-]{0,95}", re.ASCII)
_REF_NAME: Final = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\]{1,244}")


def is_valid_id(repo_id: str) -> bool:
    """Return whether this can be a repository's id: name, or owner/name, as on the Hub."""
    parts = repo_id.split("/")
    return len(parts) <= 2 and all(
        _NAME.fullmatch(part)
        and "--" not in part
        and ".." not in part
        and not part.endswith((".git", ".", "-"))
        and part != "."
        for part in parts
    )


def is_valid_ref_name(name: str) -> bool:
    """Return whether this can be the name of a branch or tag (a subset of git check-ref-format)."""
    return (
        _REF_NAME.fullmatch(name) is not None
        and not name.startswith(("/", "-", "refs/"))
        and not name.endswith(("/", ".", ".lock"))
        and not any(bad in name for bad in ("..", "//", "@{", "/."))
    )


def is_valid_path(path: str) -> bool:
    """Return whether this can be the path of a file in a repository."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return False
    return (
        0 < size <= MAX_PATH_SIZE
        and not any(c < " " or c == "\x7f" for c in path)
        and all(part not in ("", ".", "..", ".git") for part in path.split("/"))
    )
