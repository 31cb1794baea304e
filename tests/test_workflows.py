"""The workflows in .github: pinned, with few rights, and they run what there is."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))


def jobs(file: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(file.read_text())["jobs"]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_commit(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.fullmatch(r" *- uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_commit_everywhere() -> None:
    found = {
        pin for file in FILES for pin in re.findall(r"uses: (\S+)@(\S+) # (\S+)", file.read_text())
    }
    assert len(found) == len({action for action, _, _ in found})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_jobs_have_an_end_and_no_right_that_they_do_not_name(file: Path) -> None:
    assert yaml.safe_load(file.read_text())["permissions"] == {}
    for job in jobs(file).values():
        assert job["timeout-minutes"] <= 120
        assert job["permissions"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_scripts_are_there(file: Path) -> None:
    steps = [step for job in jobs(file).values() for step in job["steps"]]
    scripts = [step["run"].split()[0] for step in steps if step.get("run", "").startswith(".ci/")]
    assert scripts
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_the_image_has_its_contents_and_provenance() -> None:
    steps = jobs(ROOT / ".github/workflows/release.yml")["image"]["steps"]
    (build,) = [step["with"] for step in steps if "build-push-action" in step.get("uses", "")]
    assert (ROOT / build["file"]).exists()
    assert build["sbom"] is True
    assert build["provenance"] == "mode=max"
    assert build["platforms"].split(",") == ["linux/amd64", "linux/arm64"]
    arguments = {line.partition("=")[0] for line in build["build-args"].splitlines()}
    declared = set(re.findall(r"(?m)^ARG (\w+)", (ROOT / build["file"]).read_text()))
    assert arguments <= declared
