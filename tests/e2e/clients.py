"""The plain HTTP clients that people download with, as command lines."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import need_program
from tests.e2e.conftest import TOKEN, environment_without_home

TIMEOUT = 60.0


def curl(url: str, target: Path, *options: str) -> list[str]:
    """curl, failing on error statuses."""
    return [
        *(need_program("curl"), "-q", "-sS", "-f", "--noproxy", "*"),
        *("-H", f"Authorization: Bearer {TOKEN}", "-o", str(target), *options, url),
    ]


def wget(url: str, target: Path, *options: str) -> list[str]:
    """wget, with one try: it would take a cut connection for a reason to go on."""
    return [
        *(need_program("wget"), "--no-config", "-nv", "--no-proxy", "--tries=1"),
        *(f"--header=Authorization: Bearer {TOKEN}", "-O", str(target), *options, url),
    ]


def aria2(url: str, target: Path, *options: str) -> list[str]:
    """aria2, in one piece."""
    return [
        *(need_program("aria2c"), "--no-conf", "-q", "--max-tries=1", "--no-netrc"),
        *("--allow-overwrite=true", f"--header=Authorization: Bearer {TOKEN}"),
        *("-d", str(target.parent), "-o", target.name, *options, url),
    ]


CLIENTS: Mapping[str, Callable[..., list[str]]] = {"curl": curl, "wget": wget, "aria2": aria2}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a client to its end."""
    return subprocess.run(
        command,
        env=environment_without_home(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
