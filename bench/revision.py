"""Build another revision of the project in its own environment, to measure it beside this one."""

import subprocess
import sys
from pathlib import Path

from bench.processes import BenchError, clean_environment

_PROJECT = Path(__file__).parents[1]


def build_revision(revision: str, folder: Path) -> Path:
    """Build a revision of this repository; return the Python of its environment.

    An environment that exists for the same commit is used again.

    Args:
        revision: any name of a commit that git accepts.
        folder: holds one environment for each commit.

    Raises:
        BenchError: the commit does not exist, or the build failed.
    """
    commit = _run("git", "-C", str(_PROJECT), "rev-parse", "--verify", f"{revision}^{{commit}}")
    target = folder / commit.strip()
    python = target / "venv" / "bin" / "python"
    marker = target / "is-built"
    if not marker.exists():
        source = target / "source"
        source.mkdir(parents=True, exist_ok=True)
        archive = target / "source.tar"
        _run("git", "-C", str(_PROJECT), "archive", "-o", str(archive), commit.strip())
        _run("tar", "-xf", str(archive), "-C", str(source))
        _run(sys.executable, "-m", "venv", "--clear", str(target / "venv"))
        _run(str(python), "-m", "pip", "install", "--quiet", str(source))
        marker.touch()
    return python


def _run(*command: str) -> str:
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
