import os
from pathlib import Path

import pytest

from xetserve.origin.store.blobs import TemporaryFiles
from xetserve.origin.store.commits import DATASET, MODEL, Commit, CommitInfo, Entry
from xetserve.origin.store.repos import Repo, RepoStore

INFO = CommitInfo("title", "message", "me")
OID = "ce013625030ba8dba906f756967f9e9ca394464a"


def open_store(root: Path) -> RepoStore:
    return RepoStore(root, TemporaryFiles(root / "tmp"))


@pytest.fixture
def store(tmp_path: Path) -> RepoStore:
    return open_store(tmp_path)


@pytest.fixture
async def repo(store: RepoStore) -> Repo:
    return await store.create(MODEL, "me/repo", owner="me", private=False)


async def head_of(repo: Repo, revision: str = "main") -> Commit:
    commit = await repo.get_commit(revision)
    assert commit is not None
    return commit


async def add(repo: Repo, *entries: Entry) -> Commit:
    return await repo.add_commit("refs/heads/main", await head_of(repo), entries, INFO)


async def test_a_new_repository_has_an_empty_commit(repo: Repo) -> None:
    commit = await head_of(repo)
    assert (commit.entries, commit.parent, commit.author) == ({}, None, "me")
    assert repo.refs == {"refs/heads/main": commit.id}


async def test_types_do_not_share_names(store: RepoStore, repo: Repo) -> None:
    assert await store.get(MODEL, "me/repo") is repo
    assert await store.get(DATASET, "me/repo") is None
    assert await store.get(MODEL, "me--repo") is None
    assert await store.get(MODEL, "../models/me--repo") is None


async def test_a_name_is_given_once(store: RepoStore, repo: Repo) -> None:
    with pytest.raises(FileExistsError):
        await store.create(MODEL, "me/repo", owner=None, private=True)
    with pytest.raises(ValueError, match="not a repository id"):
        await store.create(MODEL, "me/..", owner=None, private=True)


async def test_a_repository_outlives_a_restart(repo: Repo, tmp_path: Path) -> None:
    large = Entry("b.bin", 9, OID, "ab" * 32, bytes(range(32)))
    made = await add(repo, Entry("a", 6, OID), large)
    await repo.set_ref("refs/tags/v1", made.id)
    fresh = await open_store(tmp_path).get(MODEL, "me/repo")
    assert fresh is not None
    assert await head_of(fresh, "v1") == made
    assert (fresh.owner, fresh.private, fresh.created) == ("me", False, repo.created)
    assert fresh.refs == repo.refs
    assert await fresh.has_file(bytes(range(32)))
    assert await fresh.get_upload("ab" * 32) == bytes(range(32))


async def test_a_revision_is_a_branch_a_tag_a_ref_or_a_commit(repo: Repo) -> None:
    first = await head_of(repo)
    second = await add(repo, Entry("a", 6, OID))
    await repo.set_ref("refs/tags/v1", first.id)
    await repo.set_ref("refs/heads/a/b", first.id)
    await repo.set_ref("refs/pr/1", first.id)
    assert repo.find_commit_id("main") == repo.find_commit_id("refs/heads/main") == second.id
    for revision in ("v1", "a/b", "refs/pr/1", "refs/tags/v1", first.id):
        assert repo.find_commit_id(revision) == first.id
    for revision in ("", "absent", first.id[:12], "0" * 40, "pr/1", "../" + first.id):
        assert repo.find_commit_id(revision) is None
        assert await repo.get_commit(revision) is None


async def test_a_deleted_ref_is_gone(repo: Repo) -> None:
    await repo.set_ref("refs/tags/v1", (await head_of(repo)).id)
    await repo.delete_ref("refs/tags/v1")
    assert repo.find_commit_id("v1") is None


async def test_an_entry_knows_the_commit_that_changed_it(repo: Repo) -> None:
    first = await add(repo, Entry("a", 6, OID), Entry("b", 6, OID))
    second = await add(repo, *first.entries.values(), Entry("c", 6, OID))
    assert [entry.changed_in for entry in second.entries.values()] == [
        first.id,
        first.id,
        second.id,
    ]
    third = await add(repo, Entry("a", 0, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"))
    assert third.entries["a"].changed_in == third.id
    assert third.date > second.date > first.date


async def test_only_what_a_commit_has_named_is_a_file_of_the_repository(repo: Repo) -> None:
    repo.add_upload("cd" * 32, bytes(32))
    assert await repo.get_upload("cd" * 32) == bytes(32)
    assert not await repo.has_file(bytes(32))
    assert await repo.get_upload("../refs.json") is None


def test_old_temporary_files_are_removed_and_young_ones_are_not(tmp_path: Path) -> None:
    old, young = tmp_path / "old", tmp_path / "young"
    old.write_text("")
    young.write_text("")
    os.utime(old, (0, 0))
    TemporaryFiles(tmp_path)
    assert (old.exists(), young.exists()) == (False, True)
