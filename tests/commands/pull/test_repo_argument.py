"""Repositories as command lines name them."""

import pytest

from xetserve.commands.pull.repo_argument import parse_target
from xetserve.errors import ConfigError
from xetserve.upstream.hub.entry import RepoRef


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("o/n", None, (RepoRef("model", "o/n"), "main")),
        ("o/n", "space", (RepoRef("space", "o/n"), "main")),
        ("gpt2", None, (RepoRef("model", "gpt2"), "main")),
        ("datasets/o/n@v1", None, (RepoRef("dataset", "o/n"), "v1")),
        ("datasets/squad", "dataset", (RepoRef("dataset", "squad"), "main")),
        ("models/o/n@refs/pr/1", None, (RepoRef("model", "o/n"), "refs/pr/1")),
        ("spaces/o/n", None, (RepoRef("space", "o/n"), "main")),
        ("kernels/o/n@v1", None, (RepoRef("kernel", "o/n"), "v1")),
    ],
)
def test_targets(text: str, kind: str | None, expected: tuple[RepoRef, str]) -> None:
    assert parse_target(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a/b/c", None), ("", None), ("o/n@", None), ("datasets/", None), ("o/n@a..b", None),
     ("datasets/o/n", "space"), ("datasets/a/b/c", None), ("o/../n", None)],
)  # fmt: skip
def test_what_names_none(text: str, kind: str | None) -> None:
    with pytest.raises(ConfigError):
        parse_target(text, kind)
