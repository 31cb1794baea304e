import pytest

from xetserve.origin.store.git_ids import (
    GitObject,
    hash_commit,
    hash_object,
    hash_trees,
    make_pointer,
)

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
EMPTY_BLOB = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


@pytest.mark.parametrize(
    ("content", "oid"),
    [
        pytest.param(b"", EMPTY_BLOB, id="empty"),
        pytest.param(b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a", id="hello"),
    ],
)
def test_a_blob_has_the_id_that_git_gives_it(content: bytes, oid: str) -> None:
    assert hash_object("blob", content) == oid


def test_trees_have_the_ids_that_git_gives_them() -> None:
    """Made with `git mktree`; "a.b" sorts before the folder "a", "a-" before both."""
    hello = "ce013625030ba8dba906f756967f9e9ca394464a"
    blobs = [GitObject(path, hello) for path in ("a/x", "a/y/z", "a.b", "a-", "größe")]
    assert hash_trees(blobs) == {
        "a/y": "f0ad4b1a526fb17e17c6e9e6dbb468846f523176",
        "a": "30056b9e1fe0aa5e4c7a03792ebe2cb5fe98cf4b",
        "": "7fd3f4465bfe3831572f7f0b41161171cd977b9a",
    }


def test_no_files_are_the_empty_tree() -> None:
    assert hash_trees([]) == {"": EMPTY_TREE}


def test_a_commit_has_the_id_that_git_gives_it() -> None:
    first = hash_commit(EMPTY_TREE, None, "me", 1_800_000_000, "first")
    assert first == "263896c7a1971b2933419243f788e8da187fdcef"
    second = hash_commit(EMPTY_TREE, first, "me", 1_800_000_001, "second\n\nwith a body")
    assert second == "fe02a9924ad1c9545666d9acf4b3cbb5a183cce1"


def test_an_author_cannot_break_out_of_the_commit() -> None:
    assert hash_commit(EMPTY_TREE, None, "me>\n<", 0, "x") == hash_commit(
        EMPTY_TREE, None, "me", 0, "x"
    )


def test_a_pointer_is_what_git_lfs_writes() -> None:
    assert make_pointer("ab" * 32, 5) == (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 5\n"
    )
