"""The list of programs that the tests need, as a new machine uses it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.conftest import clean_environment, need_program

ROOT = Path(__file__).parents[1]


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(programs.PACKAGES, "absent-program", "absent-package")
    assert programs.find_missing()["absent-program"] == "absent-package"
    with pytest.raises(AssertionError, match="apt-get install absent-package"):
        need_program("absent-program")


def test_the_script_names_packages_before_anything_is_installed(tmp_path: Path) -> None:
    path = ROOT / "tests" / "programs.py"
    environment = {**clean_environment(), "PATH": str(tmp_path)}
    command = [sys.executable, "-I", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert {"curl", "aria2", "nodejs"} <= set(done.stdout.split())


def test_contributing_names_the_same_packages() -> None:
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    command = re.search(r"sudo apt-get install ((?:[a-z0-9 -]|\\\n)+)", text)
    assert command is not None
    packages = set(command[1].replace("\\\n", " ").split())
    assert packages == {*programs.PACKAGES.values()} - {"coreutils"}
