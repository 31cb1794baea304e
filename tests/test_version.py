"""The version stands in several files, and is the same in all of them."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

from xetserve import __version__

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        pytest.param("Dockerfile.alpine", r"(?m)^ARG VERSION=(\S+)", id="label of the image"),
        pytest.param(
            "xetserve/docs/operations.md", r"for xetserve (\d[\w.]*)", id="example of doctor"
        ),
    ],
)
def test_it_is_the_same_everywhere(name: str, pattern: str) -> None:
    found = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"))
    assert found == [__version__], name


def test_the_package_has_it_from_the_code() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in settings["project"]["dynamic"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "xetserve.__version__"}


def test_the_changelog_names_it_last() -> None:
    """Changes after it are "unreleased", in a part above."""
    text = (ROOT / "xetserve/docs/changelog.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^## (\S+), (.+)$", text)
    assert len(headings) == len(re.findall(r"(?m)^## ", text))
    released = [(version, when) for version, when in headings if when != "unreleased"]
    assert released[0][0] == __version__
    dates = [date.fromisoformat(when) for _, when in released]
    assert dates == sorted(dates, reverse=True)
