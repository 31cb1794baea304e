"""Errors of the system in sentences that name the file, its owner, this process, and the remedy."""

import errno
import os
import shlex
from itertools import pairwise
from pathlib import Path


def describe_os_error(error: OSError, path: str | os.PathLike[str] | None = None) -> str:
    """Return "PATH: reason"; if permission is missing, also who owns what, and who we are.

    Args:
        path: named where the error names no file.
    """
    reason = error.strerror or str(error)
    named = error.filename2 or error.filename
    path = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else path
    if not path:
        return reason
    if error.errno in (errno.EACCES, errno.EPERM):
        reason += f": {describe_refusal(Path(path))}"
    return f"{path}: {reason}"


def describe_refusal(path: Path) -> str:
    """Return who owns what cannot be used on the way to a path, and who this process is."""
    barrier = find_barrier(path)
    what = "it" if barrier == path else str(barrier)
    return f"{what} belongs to uid {find_owner(path)}, and this process runs as uid {os.geteuid()}"


def find_owner(path: Path) -> int:
    """Return the uid of the owner of what cannot be used on the way to a path."""
    return find_barrier(path).lstat().st_uid


def find_barrier(path: Path) -> Path:
    """Return the first folder on the way to a path that this process may not enter.

    If it may enter all of them: the path, or the last folder on the way that exists.
    """
    way = [*reversed(path.absolute().parents), path]
    for before, here in pairwise(way):
        if not os.access(before, os.X_OK, effective_ids=True):
            return before
        if not os.path.lexists(here):
            return before
    return path


def advise_on_folder(folder: Path) -> str:
    """Return ": as root: COMMAND", which lets this process write to a folder; "": nobody can say.

    A folder above that this process may not enter stays as it is: it is not ours to open.
    """
    user = f"{os.geteuid()}:{os.getegid()}"
    quoted = shlex.quote(str(folder.absolute()))
    try:
        folder.lstat()
    except PermissionError:
        return ": choose another folder"
    except OSError:
        return f": as root: mkdir -p {quoted} && chown {user} {quoted}"
    return f": as root: chown -R {user} {quoted}"
