"""`xetserve help` as a process: into a pipe, and on a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.conftest import clean_environment
from xetserve.commands.help import find_chapters

HELP = [sys.executable, "-m", "xetserve", "help"]


def run_help(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HELP, *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_every_chapter_is_listed_and_printed() -> None:
    # Settings that are wrong keep nobody from reading about them.
    done = run_help(XETSERVE_PRT="1")
    names = {line.split()[0] for line in done.stdout.splitlines() if line[:1].strip()}
    assert (done.returncode, done.stderr) == (0, "")
    assert names == {*find_chapters(), "Print"}
    for name, path in find_chapters().items():
        assert run_help(name).stdout == path.read_text(encoding="utf-8")


def test_an_unknown_chapter() -> None:
    done = run_help("changelgo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "xetserve: unknown chapter 'changelgo'; did you mean 'changelog'?\n"


def test_on_a_terminal_a_pager_shows_it(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    leader, terminal = pty.openpty()
    try:
        subprocess.run(
            [*HELP, "changelog"],
            env=clean_environment(PAGER=f"cp /dev/stdin {shown}"),
            stdout=terminal,
            timeout=60,
            check=True,
        )
    finally:
        os.close(terminal)
        os.close(leader)
    assert shown.read_bytes() == find_chapters()["changelog"].read_bytes()


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [*HELP, "changelog"],
            env=clean_environment(),
            stdout=theirs,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
