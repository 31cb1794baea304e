"""Names that repositories, refs and files may have."""

import pytest

from xetserve.origin.store.names import is_valid_id, is_valid_path, is_valid_ref_name


@pytest.mark.parametrize(
    ("repo_id", "expected"),
    [
        pytest.param("me/repo", True, id="owner and name"),
        pytest.param("gpt2", True, id="name alone"),
        pytest.param("Me-1/re.po_2", True, id="dots, dashes, underscores"),
        pytest.param("", False, id="empty"),
        pytest.param("a/b/c", False, id="three parts"),
        pytest.param("a//b", False, id="an empty part"),
        pytest.param("../b", False, id="parent folder"),
        pytest.param("a/.", False, id="this folder"),
        pytest.param("a/b--c", False, id="two dashes separate owner and name on disk"),
        pytest.param("a/b.git", False, id="looks like a git URL"),
        pytest.param("-a/b", False, id="looks like a flag"),
        pytest.param("a/b\0", False, id="zero byte"),
        pytest.param("a/bé", False, id="not ASCII"),
        pytest.param("a" * 97, False, id="too long"),
    ],
)
def test_is_valid_id(repo_id: str, expected: bool) -> None:
    assert is_valid_id(repo_id) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("main", True, id="simple"),
        pytest.param("feature/größe.2", True, id="slash, dot, umlaut"),
        *(
            pytest.param(name, False, id=repr(name))
            for name in (
                "",
                "a b",
                "a..b",
                "/a",
                "a/",
                "a.lock",
                "-a",
                "a~1",
                "refs/heads/x",
                "a//b",
            )
        ),
    ],
)
def test_is_valid_ref_name(name: str, expected: bool) -> None:
    assert is_valid_ref_name(name) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("a", True, id="simple"),
        pytest.param("a b/größe/大.bin", True, id="any script"),
        pytest.param("x" * 4096, True, id="long"),
        *(
            pytest.param(path, False, id=repr(path)[:20])
            for path in ("", "/a", "a/", "a//b", "../a", "a/..", ".git/x", "a\nb", "a\0", "\udcff")
        ),
        pytest.param("x" * 4097, False, id="too long"),
    ],
)
def test_is_valid_path(path: str, expected: bool) -> None:
    assert is_valid_path(path) is expected
