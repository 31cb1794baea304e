"""What is locked is what pyproject.toml asks for, and all of it has hashes."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNNING: list[str] = PROJECT["project"]["dependencies"]
BUILDING: list[str] = PROJECT["dependency-groups"]["build"]
FOLDER = ROOT / "xetserve" / "deploy"
LOCKS = [("requirements.lock", RUNNING), ("build.lock", BUILDING)]
# What comes along: of blake3 on Python 3.11, and of setuptools_scm.
INDIRECT = {"typing-extensions", "packaging", "vcs-versioning"}


def read_lock(name: str) -> dict[str, tuple[Requirement, int]]:
    """Each locked package, by name, with the number of its hashes."""
    found: dict[str, tuple[Requirement, int]] = {}
    text = (FOLDER / name).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        requirement, *hashes = line.split(" --hash=")
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64} *", each) for each in hashes), line
        locked = Requirement(requirement)
        found[canonicalize_name(locked.name)] = (locked, len(hashes))
    return found


@pytest.mark.parametrize(("name", "wanted"), LOCKS)
def test_the_lock_is_what_the_project_asks_for(name: str, wanted: list[str]) -> None:
    locked = read_lock(name)
    asked = {canonicalize_name(each.name): each for each in map(Requirement, wanted)}
    assert set(asked) <= set(locked) <= set(asked) | INDIRECT
    for package, requirement in asked.items():
        (version,) = locked[package][0].specifier
        assert version.operator == "=="
        assert requirement.specifier.contains(version.version), f"{requirement}: renew {name}"


@pytest.mark.parametrize(("name", "wanted"), LOCKS)
def test_everything_has_hashes_and_no_address(name: str, wanted: list[str]) -> None:
    assert all(number >= 2 for _, number in read_lock(name).values())  # a wheel and an sdist
    assert not re.search(r"https?:|file:|/|@|--index", (FOLDER / name).read_text())


@pytest.mark.parametrize("package", ["blake3", "lz4", "uvloop", "zstandard"])
def test_what_is_compiled_has_a_wheel_for_each_python_and_machine(package: str) -> None:
    assert read_lock("requirements.lock")[package][1] > 3 * 2  # 3.11 to 3.13, two machines


@pytest.mark.parametrize(
    "text",
    [*RUNNING, *BUILDING, *PROJECT["project"]["optional-dependencies"]["test"],
     *PROJECT["build-system"]["requires"]],
)  # fmt: skip
def test_everything_has_an_upper_bound(text: str) -> None:
    assert any(each.operator == "<" for each in Requirement(text).specifier), text


def test_the_image_installs_what_is_locked() -> None:
    recipe = re.sub(r"\\\n", " ", (ROOT / "Dockerfile.alpine").read_text())
    installs = re.findall(r"pip install [^&\n]+", recipe)
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command or "--no-build-isolation --no-deps ." in command
