"""Runs of xetserve's own commands, and their summaries."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import clean_environment
from tests.e2e.conftest import REPO, TOKEN, Site

TIMEOUT = 60.0


def pull_command(site: Site, folder: Path, *arguments: str, repo: str = REPO) -> list[str]:
    """Return the command line of `xetserve pull` into a cache folder."""
    return [
        *(sys.executable, "-m", "xetserve", "pull", repo, "--hub-url", site.origin.url),
        *("--cache-dir", str(folder), "--cache-min-free", "0", *arguments),
    ]


def pull(
    site: Site, folder: Path, *arguments: str, repo: str = REPO, token: str = TOKEN
) -> subprocess.CompletedProcess[str]:
    """Run `xetserve pull`."""
    return subprocess.run(
        pull_command(site, folder, *arguments, repo=repo),
        env=clean_environment(HF_TOKEN=token),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def summary_of(done: subprocess.CompletedProcess[str], status: int = 0) -> dict[str, Any]:
    """Return the summary of a pull that ended with that status."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cache(
    folder: Path, *arguments: str, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run `xetserve cache ACTION` on a folder."""
    action, *rest = arguments
    return subprocess.run(
        [
            *(sys.executable, "-m", "xetserve", "cache", action, *rest),
            *("--cache-dir", str(folder), "--cache-min-free", "0"),
        ],
        env=clean_environment(),
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


def told(folder: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Run `xetserve cache ACTION` and return its summary."""
    done = cache(folder, *arguments, "--json")
    assert done.returncode == status, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_command(*arguments: str) -> None:
    """Run any command of xetserve that uses a cache and has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", *arguments, "--cache-min-free", "0"],
        env=clean_environment(HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
