"""git with nobody's settings, and LFS pointers."""

import hashlib
import subprocess
from pathlib import Path

from tests.conftest import clean_environment, need_program


def git(
    folder: Path, *arguments: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, with nobody's settings."""
    done = subprocess.run(
        [need_program("git"), *arguments],
        cwd=folder,
        env=clean_environment(
            HOME=str(folder.parent),
            GIT_CONFIG_NOSYSTEM="1",
            GIT_TERMINAL_PROMPT="0",
            **environment,
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def make_pointer(content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{digest}")
    return "\n".join((*lines, f"size {len(content)}", "")).encode()
