"""What a repository needs of a cache."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cachetools.archives import export, take_in
from tests.fakes import FakeAccess, FakeCas
from tests.pipeline.cache.filled import MARK, META, TEXT, TEXT_KEY, tree_of
from tests.pipeline.reading import CONTENT, FILE
from xetserve.cachetools.select import (
    NotKnown,
    Selection,
    Wanted,
    covers,
    merge_spans,
    select_repos,
)
from xetserve.net.url import Origin, Url
from xetserve.upstream.answers.cache import AnswerCache, AnswerPolicy
from xetserve.upstream.answers.question import Question
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.cas.reconstruction_archive import ReconstructionArchive
from xetserve.upstream.hub.cached_entries import make_file_question, pack_entry
from xetserve.upstream.hub.entry import FileEntry, RepoRef
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange

REPO = RepoRef("model", "o/n")
NEW, OLD = "a" * 40, "b" * 40
FILE_NAME = format_hash(FILE.file_hash)
MAIN = Wanted(REPO, "main")

ranges = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda r: ChunkRange(r[0], sum(r)))


@given(st.lists(ranges), ranges)
def test_spans(spans: list[ChunkRange], asked: ChunkRange) -> None:
    positions = {at for span in spans for at in range(*span)}
    wanted = set(range(*asked))
    merged = merge_spans(spans)
    assert {at for span in merged for at in range(*span)} == positions
    assert all(one.end < other.start for one, other in pairwise(merged))
    assert covers(merged, asked) == (wanted <= positions)
    assert Selection(spans={b"x": merged}).has_entry(b"x", asked) == bool(wanted & positions)


def make_entry(commit: str, *, text: bool = False) -> FileEntry:
    return FileEntry(
        size=len(TEXT) if text else len(CONTENT),
        etag=None,
        sha256=TEXT_KEY.digest if text else None,
        commit=commit,
        last_modified=None,
        content_type=None,
        file_hash=None if text else FILE.file_hash,
        token_url=None,
        url=Url(Origin("http", "hub", 80), "/"),
    )


@pytest.fixture
async def folder(folder: Path) -> Path:
    """A cache with a Xet file and another one, and how the first is built, but no repository."""
    store = AnswerStore(folder / "meta", max_size=1 << 30, max_pending=1 << 30)
    whole = ByteRange(0, len(CONTENT))
    await ReconstructionArchive(store).add(
        FILE.file_hash,
        whole,
        await FakeCas(FILE).fetch_reconstruction(FakeAccess(), FILE.file_hash, whole),
    )
    await store.aclose()
    return folder


async def say(
    folder: Path,
    path: str,
    revision: str,
    entry: FileEntry,
    answered_at: float = 1.0,
    scope: str = "anonymous",
    realm: str = "http://hub",
) -> None:
    """Have the Hub say something of a file."""
    store = AnswerStore(folder / "meta", max_size=1 << 30, max_pending=1 << 30)
    metadata = AnswerCache(AnswerPolicy(), store, realm)
    answer = pack_entry(entry)._replace(answered_at=answered_at)
    metadata.put(make_file_question(scope, REPO, revision, path), answer)
    metadata.put(Question(scope, "plan", REPO.name, FILE_NAME), answer._replace(data=b""))
    await metadata.aclose()


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


def cut(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.write_bytes(path.read_bytes()[:-1])


async def test_a_file_and_what_it_is_made_of(folder: Path, tmp_path: Path) -> None:
    await say(folder, "weights.bin", "main", make_entry(NEW))
    selection = select_repos(folder, [MAIN, MAIN])
    (chosen,) = selection.chosen
    assert chosen == (MAIN, NEW, 1, len(CONTENT), {})
    take_in(export(folder, selection=selection), tmp_path / "there")
    here, there = tree_of(folder), tree_of(tmp_path / "there")
    left = {name for name in here if name.startswith("plain/")} | {META, f"meta/{MARK[0]}"}
    assert set(here) - set(there) == left
    assert {name: here[name] for name in there} == there


async def test_a_file_that_is_not_xet(folder: Path) -> None:
    await say(folder, "config.json", NEW, make_entry(NEW, text=True))
    selection = select_repos(folder, [Wanted(REPO, NEW)])
    assert selection.chosen[0].incomplete == {}
    assert selection.spans == {}
    assert f"plain/{TEXT_KEY.name}" in selection.names
    remove(folder, "plain/*/*")
    assert select_repos(folder, [Wanted(REPO, NEW)]).chosen[0].incomplete == {
        "config.json": "it is not stored"
    }


async def test_a_branch_is_what_it_was_said_to_be_last(folder: Path) -> None:
    await say(folder, "a", "main", make_entry(OLD), answered_at=5.0)
    await say(folder, "b", "main", make_entry(NEW, text=True), answered_at=6.0, scope="0123")
    for revision, commit, num in (("main", NEW, 1), (OLD, OLD, 1), (NEW, NEW, 1)):
        (chosen,) = select_repos(folder, [Wanted(REPO, revision)]).chosen
        assert (chosen.commit, chosen.num_files) == (commit, num)
    # By its commit the file is known again, to whomever it was said.
    await say(folder, "a", NEW, make_entry(NEW, text=True), answered_at=1.0)
    assert select_repos(folder, [MAIN]).chosen[0].num_files == 2


async def test_each_of_several_hubs(folder: Path) -> None:
    await say(folder, "a", "main", make_entry(OLD), answered_at=5.0)
    await say(folder, "a", "main", make_entry(NEW, text=True), answered_at=6.0, realm="other")
    found = select_repos(folder, [MAIN]).chosen
    assert {chosen.commit for chosen in found} == {OLD, NEW}


async def test_what_is_missing_is_named(folder: Path) -> None:
    await say(folder, "weights.bin", "main", make_entry(NEW))
    remove(folder, "??/*/*.xc")
    lack = select_repos(folder, [MAIN]).chosen[0].incomplete["weights.bin"]
    assert lack.startswith("it lacks chunks of xorb ")
    remove(folder, "meta/plans/*/*/*")
    lack = select_repos(folder, [MAIN]).chosen[0].incomplete["weights.bin"]
    assert lack == "its reconstruction is not complete"


async def test_what_is_damaged_says_nothing(folder: Path) -> None:
    await say(folder, "weights.bin", "main", make_entry(NEW))
    cut(folder, "meta/anonymous/*/*")
    with pytest.raises(NotKnown, match="the cache has nothing of model o/n at main"):
        select_repos(folder, [MAIN])
