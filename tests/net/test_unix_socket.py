"""The file of a Unix socket: who may use it, and whose it is."""

import os
import socket
import stat
from pathlib import Path

import pytest

from xetserve.net.unix_socket import UnixSocket, bind_unix_socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_it_has_the_mode_and_listens(path: Path, mode: int) -> None:
    before = os.umask(0o022)
    os.umask(before)
    unix = bind_unix_socket(path, mode)
    with unix.sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert not unix.sock.getblocking()
        after = os.umask(before)
        assert after == before
    unix.remove()
    assert not path.exists()


def test_what_a_dead_server_left_is_replaced(path: Path) -> None:
    bind_unix_socket(path, 0o600).sock.close()
    unix = bind_unix_socket(path, 0o600)
    with unix.sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_what_is_in_use_is_left_alone(path: Path) -> None:
    with bind_unix_socket(path, 0o600).sock:
        with pytest.raises(OSError, match="in use"):
            bind_unix_socket(path, 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_server_whose_queue_is_full_is_one_too(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(OSError, match="in use"):
            bind_unix_socket(path, 0o600)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_anything_else_is_left_alone(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("content")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        bind_unix_socket(path, 0o600)
    assert path.is_symlink() or path.exists()


def test_a_folder_that_is_not_there_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bind_unix_socket(path / "socket", 0o600)


def replace_by_another(unix: UnixSocket) -> UnixSocket:
    unix.sock.close()
    return bind_unix_socket(unix.path, 0o600)


def test_the_file_of_another_server_is_not_removed(path: Path) -> None:
    first = bind_unix_socket(path, 0o600)
    second = replace_by_another(first)
    first.remove()
    assert path.exists()
    second.sock.close()
    second.remove()
    assert not path.exists()
    second.remove()
