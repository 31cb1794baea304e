"""Files that a service manager hands over for its service's eyes only: systemd's credentials (systemd.exec(5)).

Each is a file in the folder that CREDENTIALS_DIRECTORY names. Those that are ours are called "xetserve." and the name of a
setting; others are none of our business.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xetserve.errors import ConfigError

VARIABLE: Final = "CREDENTIALS_DIRECTORY"
PREFIX: Final = "xetserve."


def find_credentials(environ: Mapping[str, str]) -> dict[str, Path]:
    """Give the files that we were handed, by the names of their settings.

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
    """Give the text of a credential.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise ConfigError(f"cannot read the credential {file.name}: {exc.strerror}") from None
    except ValueError:
        raise ConfigError(f"the credential {file.name} is not UTF-8") from None
