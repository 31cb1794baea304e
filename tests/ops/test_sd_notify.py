"""What a service manager hears, on a real datagram socket."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xetserve.ops.sd_notify import MAX_OWED, MAX_STATUS, Notifier, take_notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that a service manager would read."""
    address = str(tmp_path / "notify") if request.param == "path" else f"\0xetserve-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        yield sock


def address_of(manager: socket.socket) -> str:
    """The address as in NOTIFY_SOCKET."""
    name = manager.getsockname()
    return f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name)


def read_all(manager: socket.socket) -> list[str]:
    """What was said so far."""
    said = []
    while True:
        try:
            said.append(manager.recv(4096).decode())
        except BlockingIOError:
            return said


Make = Callable[..., Notifier]


@pytest.fixture
def make(manager: socket.socket) -> Iterator[Make]:
    """Make a notifier from variables of the environment beside the manager's address."""
    made = []

    def make(**others: str) -> Notifier:
        environ = {"NOTIFY_SOCKET": address_of(manager), **others}
        made.append(take_notifier(environ))
        assert environ == {}, "what we start is not meant"
        return made[-1]

    yield make
    for notifier in made:
        notifier.close()


def test_each_thing_is_said_in_its_words(manager: socket.socket, make: Make) -> None:
    notifier = make()
    assert notifier.is_active
    before = time.monotonic_ns() // 1000
    notifier.ready()
    notifier.status("3 connections")
    notifier.alive()
    notifier.reloading()
    notifier.stopping("draining")
    said = read_all(manager)
    assert said[:3] == [f"READY=1\nMAINPID={os.getpid()}", "STATUS=3 connections", "WATCHDOG=1"]
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", said[3])
    assert match is not None
    assert before <= int(match[1]) <= time.monotonic_ns() // 1000
    assert said[4:] == ["STOPPING=1\nSTATUS=draining"]
    notifier.close()
    assert not notifier.is_active
    notifier.ready()
    assert read_all(manager) == []


def test_a_status_is_one_short_line_said_once(manager: socket.socket, make: Make) -> None:
    notifier = make()
    notifier.status("a\nREADY=1\n  b")
    notifier.status("a READY=1 b")
    notifier.status("x" * 10_000)
    assert read_all(manager) == ["STATUS=a READY=1 b", "STATUS=" + "x" * MAX_STATUS]


def fill(manager: socket.socket, notifier: Notifier) -> None:
    """Say more than there is room for."""
    for number in range(10_000):
        notifier.status(f"{number}")


def test_a_manager_that_does_not_read_is_never_waited_for_and_misses_no_state(
    manager: socket.socket, make: Make
) -> None:
    notifier = make()
    fill(manager, notifier)
    notifier.reloading()
    notifier.ready()
    notifier.alive()
    said = read_all(manager)
    assert said
    assert all(each.startswith("STATUS=") for each in said)
    notifier.status("later")
    said = read_all(manager)
    assert [each.partition("=")[0] for each in said] == ["RELOADING", "READY", "STATUS"]
    assert said[2] == "STATUS=later"


def test_what_is_owed_is_bounded(manager: socket.socket, make: Make) -> None:
    notifier = make()
    fill(manager, notifier)
    for _ in range(1000):
        notifier.reloading()
    notifier.ready()
    read_all(manager)
    # They may be more than there is room for at once.
    said: list[str] = []
    while not said or said[-1] != "WATCHDOG=1":
        notifier.alive()
        said += read_all(manager)
    assert len(said) == MAX_OWED + 1
    assert said[-2].startswith("READY=1")


def test_a_manager_that_has_gone_is_no_trouble(manager: socket.socket, make: Make) -> None:
    notifier = make()
    manager.close()
    notifier.ready()
    notifier.status("x")
    notifier.alive()
    notifier.stopping("x")


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"NOTIFY_SOCKET": ""}, id="empty"),
        pytest.param({"NOTIFY_SOCKET": "vsock:2:1234"}, id="no Unix socket"),
        pytest.param({"WATCHDOG_USEC": "1000000"}, id="a watchdog that nobody hears"),
    ],
)
def test_without_a_manager_nothing_is_said(environ: dict[str, str]) -> None:
    notifier = take_notifier(environ)
    assert not notifier.is_active
    assert notifier.watchdog is None
    notifier.ready()
    notifier.status("x")
    notifier.alive()
    notifier.stopping("x")
    assert environ == {}


@pytest.mark.parametrize(
    ("usec", "pid", "watchdog"),
    [
        pytest.param("2500000", "", 2.5, id="for anybody"),
        pytest.param("2500000", "own", 2.5, id="for us"),
        pytest.param("2500000", "1", None, id="for another process"),
        pytest.param("", "own", None, id="not wanted"),
        pytest.param("0", "", None, id="never"),
        pytest.param("-5", "", None, id="negative"),
        pytest.param("1e6", "", None, id="no number"),
        pytest.param("9" * 5000, "", None, id="too large a number"),
        pytest.param("²", "", None, id="no ASCII"),
    ],
)
def test_the_watchdog(make: Make, usec: str, pid: str, watchdog: float | None) -> None:
    pid = str(os.getpid()) if pid == "own" else pid
    notifier = make(WATCHDOG_USEC=usec, WATCHDOG_PID=pid)
    assert notifier.watchdog == watchdog


def test_what_we_start_is_not_told_of_it(manager: socket.socket) -> None:
    script = (
        "import os, subprocess, sys\n"
        "from xetserve.ops.sd_notify import take_notifier\n"
        "take_notifier(os.environ).ready()\n"
        "sys.exit(subprocess.run(['env']).returncode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NOTIFY_SOCKET": address_of(manager), "WATCHDOG_USEC": "5000000"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert not re.search(r"^(NOTIFY|WATCHDOG)_", done.stdout, re.MULTILINE)
    assert read_all(manager)[0].startswith("READY=1\nMAINPID=")
