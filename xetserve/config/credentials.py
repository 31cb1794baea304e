"""Credentials: files with secrets that a service manager passes to its service (systemd.exec(5)).

CREDENTIALS_DIRECTORY names the folder. A file "xetserve.NAME" holds the value of the setting NAME;
other files are ignored.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xetserve.errors import ConfigError

VARIABLE: Final = "CREDENTIALS_DIRECTORY"
PREFIX: Final = "xetserve."
MAX_SECRET_SIZE: Final = 64 * 1024  # bytes


def find_credentials(environ: Mapping[str, str]) -> dict[str, Path]:
    """Return setting name -> credential file.

    Raises:
        ConfigError: the folder cannot be read.
    """
    folder = environ.get(VARIABLE, "")
    if not folder:
        return {}
    try:
        files = sorted(Path(folder).glob(f"{PREFIX}*"))
    except OSError as exc:
        raise ConfigError(f"cannot read {VARIABLE}: {exc.strerror}") from None
    return {file.name.removeprefix(PREFIX): file for file in files}


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
