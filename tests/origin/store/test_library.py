import hashlib
import json
import os
import random
import stat
from pathlib import Path

import pytest

from tests.origin.client import list_files, pieces
from xetserve.errors import ConfigError, IntegrityError
from xetserve.http.ranges import Span
from xetserve.origin.store.commits import DATASET, MODEL, Commit, Entry
from xetserve.origin.store.git_ids import hash_object
from xetserve.origin.store.ingest import Ingest
from xetserve.origin.store.library import Library
from xetserve.xet.xorb import iter_records

source = random.Random(3)
NOISE = source.randbytes(300_000)
FILES = {
    "config.json": b'{"a": 1}\n',
    "README.md": "größe\n".encode(),
    "weights.safetensors": NOISE + bytes(200_000) + NOISE,
    "sub/again.bin": NOISE,
    "sub/notes.txt": b"text " * 1000,
    "sub/deeper/raw": b"\0\x01binary",
    "empty": b"",
    "empty.bin": b"",
}
LARGE = {"weights.safetensors", "sub/again.bin", "sub/deeper/raw"}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "origin")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "folder"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


async def read(library: Library, entry: Entry) -> bytes:
    span = Span(0, entry.size)
    return b"".join([part async for block in library.read_entry(entry, span) for part in block])


async def check(library: Library, commit: Commit) -> None:
    assert set(commit.entries) == set(FILES)
    for path, content in FILES.items():
        entry = commit.entries[path]
        assert await read(library, entry) == content
        assert entry.size == len(content)
        if path in LARGE:
            assert entry.sha256 == hashlib.sha256(content).hexdigest()
            assert entry.file_hash is not None
        else:
            assert (entry.file_hash, entry.sha256) == (None, None)
            assert entry.oid == hash_object("blob", content)


async def test_a_folder_is_taken_in(library: Library, folder: Path) -> None:
    await check(library, await library.import_folder("model", "me/repo", folder))


async def test_an_import_outlives_a_restart(library: Library, folder: Path) -> None:
    await library.import_folder("dataset", "me/repo", folder, private=True)
    fresh = Library(library.root)
    repo = await fresh.repos.get(DATASET, "me/repo")
    assert repo is not None
    assert repo.private
    commit = await repo.get_commit("main")
    assert commit is not None
    await check(fresh, commit)


async def test_a_second_import_makes_no_commit(library: Library, folder: Path) -> None:
    first = await library.import_folder("model", "me/repo", folder)
    before = list_files(library.root)
    assert await library.import_folder("model", "me/repo", folder) == first
    assert list_files(library.root) == before


async def test_a_changed_file_makes_a_commit_and_the_others_keep_theirs(
    library: Library, folder: Path
) -> None:
    first = await library.import_folder("model", "me/repo", folder)
    (folder / "config.json").write_bytes(b"{}")
    second = await library.import_folder("model", "me/repo", folder)
    assert second.parent == first.id
    changed = {path for path, entry in second.entries.items() if entry.changed_in == second.id}
    assert changed == {"config.json"}
    assert second.date > first.date


async def test_equal_chunks_are_stored_once_and_become_repeated_terms(
    library: Library, folder: Path
) -> None:
    commit = await library.import_folder("model", "me/repo", folder)
    file_hash = commit.entries["weights.safetensors"].file_hash
    assert file_hash is not None
    record = await library.files.get(file_hash)
    assert record is not None
    assert len(record.terms) > 2
    packed = sum(path.stat().st_size for path in (library.root / "xorbs").iterdir())
    # The noise twice, since the second time it is cut at other places, and zeros that cost little.
    assert packed < 2 * len(NOISE) + 100_000
    used = [n for term in record.terms for n in range(*term.chunks)]
    assert len(used) > len(set(used))


async def test_chunks_are_packed_as_suits_them(library: Library, folder: Path) -> None:
    await library.import_folder("model", "me/repo", folder)
    schemes = {
        record.header.scheme
        for path in (library.root / "xorbs").iterdir()
        for record in iter_records(path.read_bytes())
    }
    assert len(schemes) > 1


async def test_nothing_is_left_in_the_temporary_folder(library: Library, folder: Path) -> None:
    await library.import_folder("model", "me/repo", folder)
    assert list_files(library.root / "tmp") == set()


async def test_git_and_cache_folders_are_left_out(library: Library, folder: Path) -> None:
    for name in (".git/config", ".cache/huggingface/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("x")
    await check(library, await library.import_folder("model", "me/repo", folder))


@pytest.mark.parametrize(
    ("repo_type", "repo_id"), [("zebra", "me/repo"), ("model", "me/../repo"), ("model", "a/b/c")]
)
async def test_a_bad_name_is_refused(
    library: Library, folder: Path, repo_type: str, repo_id: str
) -> None:
    with pytest.raises(ValueError, match="is not a repository"):
        await library.import_folder(repo_type, repo_id, folder)


async def test_a_folder_that_is_not_there_is_refused(library: Library, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        await library.import_folder("model", "me/repo", tmp_path / "absent")


async def test_what_is_aborted_leaves_nothing_behind(library: Library) -> None:
    before = list_files(library.root)
    ingest = library.make_ingest()
    await ingest.add_file(pieces(NOISE))
    assert list_files(library.root / "tmp") != set()
    await ingest.abort()
    assert list_files(library.root) == before


async def test_many_files_share_a_xorb(library: Library) -> None:
    ingest = library.make_ingest()
    files = [await ingest.add_file(pieces(bytes((n,)) * 100)) for n in range(20)]
    await ingest.publish()
    assert len(list((library.root / "xorbs").iterdir())) == 1
    for n, file in enumerate(files):
        record = await library.files.get(file.file_hash)
        assert record is not None
        assert [term.chunks for term in record.terms] == [(n, n + 1)]


async def test_a_full_xorb_is_followed_by_another(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xetserve.origin.store.ingest.MAX_XORB_CHUNKS", 2)
    ingest = Ingest(library.xorbs, library.files)
    file = await ingest.add_file(pieces(NOISE))
    await ingest.publish()
    record = await library.files.get(file.file_hash)
    assert record is not None
    assert [term.chunks for term in record.terms] == [(0, 2), (0, 2), (0, 1)]
    assert len({term.xorb_hash for term in record.terms}) == 3
    content = [
        part async for block in library.files.read(record, Span(0, 300_000)) for part in block
    ]
    assert b"".join(content) == NOISE


async def test_a_missing_file_record_breaks_the_read(library: Library, folder: Path) -> None:
    commit = await library.import_folder("model", "me/repo", folder)
    for path in (library.root / "files").iterdir():
        path.unlink()
    fresh = Library(library.root)
    with pytest.raises(IntegrityError, match="missing on disk"):
        await read(fresh, commit.entries["sub/again.bin"])


def test_a_folder_that_cannot_be_made_is_a_setting_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the folder"):
        Library(tmp_path / "file" / "origin")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_nobody_else_reads_what_is_on_disk(tmp_path: Path, folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        library = Library(tmp_path / "new" / "origin")
        library.load_secret()
        await library.import_folder("model", "me/repo", folder, private=True)
    finally:
        os.umask(before)
    paths = [tmp_path / "new", library.root, *library.root.rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()}
    assert modes == {0o700}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}
    assert modes == {0o600}


def test_a_folder_of_everybodys_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="everybody may write"):
        Library(tmp_path)


def test_a_secret_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    library = Library(tmp_path / "origin")
    (tmp_path / "known").write_text("00" * 32)
    (library.root / "secret").symlink_to(tmp_path / "known")
    with pytest.raises(OSError, match="symbolic links"):
        library.load_secret()


def test_an_older_store_is_taken_away_from_others(tmp_path: Path) -> None:
    (tmp_path / "repos").mkdir(mode=0o755)
    Library(tmp_path)
    assert stat.S_IMODE((tmp_path / "repos").stat().st_mode) == 0o700


async def test_what_is_on_disk_can_be_read_by_people(library: Library, folder: Path) -> None:
    commit = await library.import_folder("model", "me/repo", folder)
    base = library.root / "repos" / "models" / "me--repo"
    assert json.loads((base / "refs.json").read_text()) == {"refs/heads/main": commit.id}
    lines = (base / "commits" / f"{commit.id}.entries").read_text().splitlines()
    assert [json.loads(line)["path"] for line in lines] == sorted(FILES)
    assert MODEL.plural in {path.name for path in (library.root / "repos").iterdir()}
