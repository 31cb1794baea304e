"""The real machine, in a folder of its own."""

import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from xetserve.deploy import machine as machines
from xetserve.deploy.local_server import Address, Answer
from xetserve.deploy.machine import DeployError, Machine, RealMachine
from xetserve.deploy.steps import Check, Command


@pytest.fixture
def machine() -> RealMachine:
    return RealMachine()


def test_files(machine: RealMachine, tmp_path: Path) -> None:
    path = tmp_path / "a" / "file"
    assert machine.read(path) is None
    machine.make_folder(path.parent, 0o750, str(os.getgid()))
    machine.write(path, b"one", 0o640, str(os.getgid()))
    machine.write(path, b"two", 0o640, None)
    assert machine.read(path) == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750
    assert machine.list_folder(path.parent) == ["file"]
    machine.remove(path.parent)
    machine.remove(path.parent)
    assert not machine.exists(path.parent)
    assert machine.list_folder(path.parent) == []


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_folders_have_the_right_modes_or_are_not_there(
    machine: RealMachine, tmp_path: Path, narrow_umask: None
) -> None:
    """A service of another user has to get through the parents."""
    machine.make_folder(tmp_path / "a" / "b", 0o750, None)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o750
    with pytest.raises(DeployError, match="the group no-such-group does not exist"):
        machine.make_folder(tmp_path / "a" / "c" / "d", 0o750, "no-such-group")
    assert os.listdir(tmp_path / "a") == ["b"]


def test_links(machine: RealMachine, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    machine.make_link(link, "nowhere")
    assert machine.exists(link)
    machine.make_link(link, "folder")
    assert machine.read_link(link) == "folder"
    assert set(os.listdir(tmp_path)) == {"folder", "link"}
    machine.remove(link)
    assert (tmp_path / "folder").is_dir()
    assert machine.read_link(tmp_path / "folder") is None


def test_what_cannot_be_done_is_said(machine: RealMachine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    below = tmp_path / "file" / "x"
    with pytest.raises(DeployError, match="cannot write"):
        machine.write(below, b"", 0o600, None)
    with pytest.raises(DeployError, match="cannot make"):
        machine.make_folder(below, 0o700, None)
    with pytest.raises(DeployError, match="cannot link"):
        machine.make_link(below, "y")
    with pytest.raises(DeployError, match="the group no-such-group does not exist"):
        machine.write(tmp_path / "new", b"", 0o600, "no-such-group")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(DeployError, match="cannot run /no/program"):
        machine.run(("/no/program",))


def test_commands(machine: RealMachine) -> None:
    script = "import os, sys; print(oct(os.umask(0))); sys.stderr.write('a\\nlast'); sys.exit(3)"
    done = machine.run((sys.executable, "-c", script))
    assert done == (3, "0o22\n", "a\nlast")
    with pytest.raises(DeployError, match=r"status 3: a / last$"):
        Command((sys.executable, "-c", script)).do(machine)
    Command((sys.executable, "-c", script), may_fail=True).do(machine)


def test_a_command_that_does_not_end(machine: RealMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "COMMAND_TIMEOUT", 0.2)
    with pytest.raises(DeployError, match=r"did not end within 0\.2 s"):
        machine.run((sys.executable, "-c", "import time; time.sleep(60)"))


class _Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"version": "7"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[Address]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Address("127.0.0.1", server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_asking(machine: RealMachine, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert machine.ask(address, "/health") == (address.url, 200, b'{"version": "7"}')
    assert machine.ask(Address("127.0.0.1", 1), "/health") is None
    assert machine.ask(address._replace(tls=True), "/health") is None

    def ask(machine: Machine, path: str) -> Answer | None:
        return machine.ask(address, path)

    Check(ask, "7", 5).do(machine)
    with pytest.raises(DeployError, match="is version 7"):
        Check(ask, "8", 0).do(machine)
    with pytest.raises(DeployError, match="not ready after 0 s: the server does not answer"):
        Check(lambda *_: None, None, 0).do(machine)
