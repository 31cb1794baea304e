"""`xetserve demo` as a process: the first command of README."""

import subprocess
import sys

from tests.conftest import clean_environment


def test_a_demo_that_ends_after_its_download() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "demo", "--once", "--port", "0"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "verified; the server's peak memory:" in done.stdout
