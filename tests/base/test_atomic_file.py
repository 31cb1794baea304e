"""Files that are complete or not there."""

import os
import stat
from pathlib import Path

import pytest

from xetserve.base.atomic_file import make_folders, open_private, replace_file


@pytest.mark.parametrize("syncs", [False, True])
def test_the_file_is_there_when_the_block_ends(tmp_path: Path, syncs: bool) -> None:
    target, temporary = tmp_path / "file", tmp_path / ".new"
    target.write_bytes(b"old")
    with replace_file(target, temporary, syncs=syncs) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target, temporary = tmp_path / "file", tmp_path / ".new"
    target.write_bytes(b"old")
    with pytest.raises(TypeError), replace_file(target, temporary) as file:
        file.write("no bytes")  # type: ignore[call-overload]
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(IsADirectoryError), replace_file(target, tmp_path / ".new") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["folder"]


def test_a_temporary_file_of_somebody_else_is_neither_used_nor_removed(tmp_path: Path) -> None:
    temporary = tmp_path / ".new"
    temporary.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), replace_file(tmp_path / "file", temporary):
        pass
    assert os.listdir(tmp_path) == [".new"]


def test_open_private_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with open(tmp_path / "file", "rb", opener=open_private) as file:
        assert file.read() == b"content"
    with pytest.raises(OSError, match="symbolic links"):
        open_private(tmp_path / "link", os.O_RDONLY)


def test_every_missing_folder_is_made_for_our_own_user(tmp_path: Path) -> None:
    assert make_folders(tmp_path / "a" / "b") == 2
    assert make_folders(tmp_path / "a" / "b") == 0
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")]
    assert modes == [0o700, 0o700]


def test_a_file_that_has_a_folder_s_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not a folder"):
        make_folders(tmp_path / "file")


def test_a_link_to_nothing_in_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for folder in (tmp_path / "link", tmp_path / "link" / "tmp"):
        with pytest.raises(
            FileExistsError, match="is a link to a path that does not exist"
        ) as info:
            make_folders(folder)
        assert info.value.filename == str(tmp_path / "link")


def test_where_no_folder_can_be_made_the_tries_end() -> None:
    with pytest.raises(FileNotFoundError):
        make_folders(Path("/proc/absent/cache"))
