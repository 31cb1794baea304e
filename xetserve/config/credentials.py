"""Credentials: files with secrets that a service manager passes to its service (systemd.exec(5)).

CREDENTIALS_DIRECTORY names the folder. A file "xetserve.NAME" holds the value of the setting NAME;
other files are ignored. Where commands stand in for the service manager, more folders follow the
first one, separated by colons: its stores, from which it would pass on what the service asks for.
"""

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from xetserve.errors import ConfigError

VARIABLE: Final = "CREDENTIALS_DIRECTORY"
PREFIX: Final = "xetserve."
MAX_SECRET_SIZE: Final = 64 * 1024  # bytes


def find_credentials(environ: Mapping[str, str], known: Collection[str]) -> dict[str, Path]:
    """Return setting name -> credential file.

    Args:
        known: names of settings; from further folders, only their files are taken.

    Raises:
        ConfigError: a folder cannot be read.
    """
    found: dict[str, Path] = {}
    for number, folder in enumerate(environ.get(VARIABLE, "").split(":")):
        if not folder:
            continue
        try:
            files = sorted(Path(folder).glob(f"{PREFIX}*"))
        except OSError as exc:
            raise ConfigError(f"cannot read {VARIABLE}: {exc.strerror}") from None
        for file in files:
            name = file.name.removeprefix(PREFIX)
            if number == 0 or name in known:
                found.setdefault(name, file)
    return found


def read_credential(file: Path) -> str:
    """Return the text of a credential.

    Raises:
        ConfigError: the credential cannot be read, or is not text.
    """
    try:
        return read_secret_file(file)
    except OSError as exc:
        raise ConfigError(f"cannot read the credential {file.name}: {exc.strerror}") from None
    except ValueError as exc:
        raise ConfigError(f"the credential {file.name} {exc}") from None


def read_secret_file(path: Path) -> str:
    """Return the text of a file that holds a secret.

    Symbolic links are followed, since container platforms use them. A FIFO does not block.

    Raises:
        OSError: the file cannot be read.
        ValueError: the path is not a regular file, every user may write to it, or its content is
            not text or too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is not a regular file")
        if mode & stat.S_IWOTH:
            raise ValueError("is writable by every user: chmod o-w")
        data = file.read(MAX_SECRET_SIZE + 1)
    if len(data) > MAX_SECRET_SIZE:
        raise ValueError(f"has more than {MAX_SECRET_SIZE} bytes")
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
