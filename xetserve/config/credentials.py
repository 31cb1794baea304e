"""Files that a service manager hands over for its service's eyes only: systemd's credentials
(systemd.exec(5)).

Each is a file in the folder that CREDENTIALS_DIRECTORY names. Those that are ours are called
"xetserve." and the name of a setting; others are none of our business.
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
    """Return the files that we were handed, by the names of their settings.

    Raises:
        ConfigError: there is a folder, but it cannot be read.
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
        ConfigError: it cannot be read, or is no text.
    """
    try:
        return read_secret_file(file)
    except OSError as exc:
        raise ConfigError(f"cannot read the credential {file.name}: {exc.strerror}") from None
    except ValueError as exc:
        raise ConfigError(f"the credential {file.name} {exc}") from None


def read_secret_file(path: Path) -> str:
    """Return the text of a file that holds a secret.

    A link is followed: container platforms make them. A FIFO is not waited for.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text, no file, larger than a secret, or everybody's to change.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError("is not a regular file")
        if mode & stat.S_IWOTH:
            raise ValueError("may be changed by everybody: chmod o-w")
        data = file.read(MAX_SECRET_SIZE + 1)
    if len(data) > MAX_SECRET_SIZE:
        raise ValueError(f"has more than {MAX_SECRET_SIZE} bytes")
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
