"""Paths under /api/{type}s/."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.origin.api_path import ApiPath, parse_api_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("me/repo", ApiPath("me/repo", "", ())),
        ("repo", ApiPath("repo", "", ())),
        ("me/repo/tree/main", ApiPath("me/repo", "tree", ("main",))),
        ("me/repo/tree/main/a/b", ApiPath("me/repo", "tree", ("main", "a", "b"))),
        ("repo/tree/main/a", ApiPath("repo", "tree", ("main", "a"))),
        ("repo/tree/main", ApiPath("repo", "tree", ("main",))),
        ("repo/refs", ApiPath("repo", "refs", ())),
        ("me/repo/refs", ApiPath("me/repo", "refs", ())),
        ("me/refs/refs", ApiPath("me/refs", "refs", ())),
        ("me/tree/tree/main", ApiPath("me/tree", "tree", ("main",))),
        ("me/tree", ApiPath("me/tree", "", ())),
        ("me/repo/unknown", None),
        ("me/repo/tree", None),
        ("", ApiPath("", "", ())),
        ("/tree/main", None),
    ],
    ids=str,
)
def test_parse_api_path(path: str, expected: ApiPath | None) -> None:
    assert parse_api_path(path.split("/")) == expected


@given(st.lists(st.sampled_from(("", "a", "tree", "refs", "main", "tag"))))
def test_any_path_is_parsed_or_none(parts: list[str]) -> None:
    path = parse_api_path(parts)
    assert path is None or len(path.repo_id.split("/")) <= 2
