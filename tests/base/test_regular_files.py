"""Only regular files are opened, whatever somebody else has put in their place."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from xetserve.base import regular_files
from xetserve.base.regular_files import NotRegular, open_regular, pass_over


def make_link(path: Path) -> None:
    target = path.with_name("elsewhere")
    target.write_bytes(b"theirs")
    path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


ODD = [
    pytest.param(make_link, id="link"),
    pytest.param(lambda path: path.symlink_to("nowhere"), id="dangling link"),
    pytest.param(os.mkfifo, id="FIFO"),
    pytest.param(Path.mkdir, id="folder"),
    pytest.param(make_socket, id="socket"),
]


@pytest.mark.parametrize("make", ODD)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT])
def test_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], flags: int
) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path = Path("odd")
    make(path)
    with pytest.raises(NotRegular, match="odd is not a regular file"):
        open_regular(path, flags)
    assert not (tmp_path / "nowhere").exists()


def test_a_new_file_is_for_nobody_else(tmp_path: Path) -> None:
    fd = open_regular(tmp_path / "new", os.O_RDWR | os.O_CREAT)
    try:
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_what_is_passed_over_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(3):
        pass_over(tmp_path / "a", PermissionError(13, "Permission denied"))
        pass_over(tmp_path / "b", "odd")
    assert [record.getMessage().rpartition("/")[2] for record in caplog.records] == [
        "a: Permission denied",
        "b: odd",
    ]
    assert len(regular_files._logged) <= regular_files.MAX_LOGGED
