"""The settings of the deployed service, for commands on its machine.

They come from where the unit has them, drop-ins included: Environment=, EnvironmentFile=, the flags
of ExecStart=, and credentials.
"""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

SERVICE: Final = "xetserve.service"
PREFIX: Final = "XETSERVE_"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
# Where systemd puts the credentials of a running service, and where they come from.
CREDENTIALS: Final = (
    Path("/run/credentials") / SERVICE,
    Path("/etc/credstore"),
    Path("/run/credstore"),
    Path("/usr/lib/credstore"),
)
TIMEOUT: Final = 5.0  # seconds
_PROPERTIES: Final = "LoadState,Environment,EnvironmentFiles,ExecStart"
_ARGUMENTS: Final = re.compile(r"argv\[\]=(.*?) ;")


class ServiceSettings(NamedTuple):
    """Environment variables of the service, and its arguments."""

    environ: dict[str, str]
    arguments: list[str]


def find_service_settings(
    read_env_file: Callable[[Path], Mapping[str, str]],
    credentials: tuple[Path, ...] = CREDENTIALS,
) -> ServiceSettings | None:
    """Return the settings of the service on this machine; None: there is no such service.

    Args:
        read_env_file: reads a file of EnvironmentFile=; raises ConfigError.
    """
    try:
        done = subprocess.run(
            ("systemctl", "show", "--no-pager", f"--property={_PROPERTIES}", SERVICE),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    shown: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        shown.setdefault(name, []).append(value)
    if done.returncode or shown.get("LoadState") != ["loaded"]:
        return None
    environ: dict[str, str] = {}
    for value in shown.get("Environment", []):
        for word in shlex.split(value):
            variable, _, environ[variable] = word.partition("=")
    for value in shown.get("EnvironmentFiles", []):
        path = Path(value.partition(" (")[0])
        if path.is_file():
            environ.update(read_env_file(path))
    found = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    # A key that was put into a store since the start is not in the service's own folder yet.
    if any(os.access(folder, os.R_OK | os.X_OK) for folder in credentials):
        found[CREDENTIALS_VARIABLE] = ":".join(map(str, credentials))
    start = _ARGUMENTS.search(" ".join(shown.get("ExecStart", [])))
    return ServiceSettings(found, start[1].split()[1:] if start else [])
