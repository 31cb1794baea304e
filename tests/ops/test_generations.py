"""Both ends of an upgrade, with a program that is a script."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from xetserve.ops.generations import (
    Handover,
    Predecessor,
    Successor,
    Upgrade,
    find_command,
    find_predecessor,
)
from xetserve.ops.socket_activation import CHANNEL, Inherited

KEY = b"k" * 32
HANDOVER = Handover(KEY, "xetserve-1")
# What a new generation does first: it takes what it was handed.
BEGIN = """
import os, sys, time
from xetserve.ops.generations import find_predecessor
from xetserve.ops.socket_activation import take_sockets
inherited = take_sockets(os.environ)
predecessor = find_predecessor(inherited)
"""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


class Upgraded:
    """An upgrade to a program, and what it has called."""

    def __init__(self, sock: socket.socket, program: str) -> None:
        self.heard: list[str] = []
        self.pid = 0  # of the new main process
        self.upgrade = Upgrade(
            self._start,
            on_failure=self.heard.append,
            on_ready=self._on_ready,
            on_take_over=lambda: self.heard.append("taken over"),
        )
        self.upgrade.is_allowed = True
        self._command = [sys.executable, "-c", BEGIN + program]
        self._sock = sock
        self.started: list[Successor] = []

    def _start(self) -> Successor:
        given = [Inherited("http", self._sock)]
        self.started.append(Successor(self._command, given, os.environ, HANDOVER))
        return self.started[-1]

    def _on_ready(self, pid: int) -> None:
        self.heard.append("ready")
        self.pid = pid

    def run(self) -> None:
        """Begin, and go on until the outcome is known."""
        assert self.upgrade.begin()
        wait_until(lambda: not self.upgrade.proceed())

    def close(self) -> None:
        self.upgrade.give_up()
        for each in self.started:
            each.channel.close()


Start = Callable[[str], Upgraded]


@pytest.fixture
def start(listening: socket.socket) -> Iterator[Start]:
    made: list[Upgraded] = []

    def make(program: str) -> Upgraded:
        made.append(Upgraded(listening, program))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_new_one_has_the_sockets_and_the_key(
    start: Start, listening: socket.socket, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    upgraded = start(f"""
predecessor.detach()
predecessor.report_ready()
while predecessor.is_waiting and predecessor.read():
    time.sleep(0.01)
(name, sock), = inherited
text = (name, sock.getsockname(), *predecessor.handover)
open({str(out)!r}, "w").write(repr(text))
predecessor.wait_for_end(60)
""")
    upgraded.run()
    assert upgraded.heard == ["ready", "taken over"]
    assert upgraded.upgrade.is_done
    wait_until(lambda: out.exists() and out.read_text().endswith(")"))
    assert out.read_text() == repr(("http", listening.getsockname(), *HANDOVER))
    with pytest.raises(ChildProcessError):  # the first process, which has forked, is no zombie
        os.waitpid(upgraded.started[0]._group, os.WNOHANG)
    # It ends when the old one does, whose end of the channel is closed then.
    upgraded.close()
    wait_until(lambda: not Path(f"/proc/{upgraded.pid}").exists())


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        pytest.param("sys.exit(7)", "the new server ended with status 7", id="a status"),
        pytest.param(
            "predecessor.detach(); sys.exit(7)",
            "the new server ended before it was ready",
            id="after the fork",
        ),
        pytest.param(
            "predecessor.channel.send(b'x' * 5000); time.sleep(3600)",
            "the new server ended before it was ready",
            id="nonsense",
        ),
    ],
)
def test_one_that_ends_is_a_failure(start: Start, program: str, reason: str) -> None:
    upgraded = start(program)
    upgraded.run()
    assert upgraded.heard == [reason]
    assert not upgraded.upgrade.is_done
    assert upgraded.upgrade.begin(), "the next one may be better"


def test_one_that_ends_as_it_is_released_is_a_failure(start: Start) -> None:
    """The manager was told of it already, and is told of this process again."""
    upgraded = start("predecessor.report_ready(); os._exit(0)")
    assert upgraded.upgrade.begin()
    pid = upgraded.started[0]._group
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and waits to be waited for
    assert not upgraded.upgrade.proceed()
    assert upgraded.heard == ["ready", "the new server ended before it was ready"]


def test_all_processes_of_one_that_hangs_are_killed(start: Start, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    upgraded = start(f"""
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
predecessor.detach()
os.fork()
os.fork()
with open({str(pids)!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
time.sleep(3600)
""")
    assert upgraded.upgrade.begin()
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 4)
    assert upgraded.upgrade.proceed()
    upgraded.started[0].deadline = 0.0
    assert not upgraded.upgrade.proceed()
    assert upgraded.heard == ["the new server was not ready within 20 s"]
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split()))


def test_a_program_that_is_not_there_is_a_failure(listening: socket.socket) -> None:
    heard: list[str] = []
    upgrade = Upgrade(
        lambda: Successor(["/does/not/exist"], [], {}),
        on_failure=heard.append,
        on_ready=lambda _: None,
        on_take_over=lambda: None,
    )
    assert not upgrade.begin(), "the server has not started yet"
    assert heard == []
    upgrade.is_allowed = True
    assert not upgrade.begin()
    assert heard == ["the program cannot be started: No such file or directory"]


def test_process_1_is_not_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container ends with it."""
    upgraded = start("sys.exit(7)")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert not upgraded.upgrade.begin()
    assert upgraded.heard == ["it is process 1: the container would end with it"]


def test_the_channel_is_no_socket_for_clients(listening: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.send(KEY.hex().encode() + b"\n")
        inherited = [Inherited(CHANNEL, theirs), Inherited("http", listening)]
        predecessor = find_predecessor(inherited)
        assert isinstance(predecessor, Predecessor)
        assert inherited == [Inherited("http", listening)]
        assert predecessor.handover.key == KEY
        assert find_predecessor(inherited) is None
        assert predecessor.read()
        assert predecessor.is_waiting
        predecessor.close()


def test_the_old_one_that_ends_is_seen() -> None:
    ours, theirs = socket.socketpair()
    ours.send(b"\n")
    predecessor = Predecessor(theirs)
    assert predecessor.handover == Handover()
    ours.close()
    assert not predecessor.read()
    predecessor.wait_for_end(60)  # it is over, and nothing was handed over
    predecessor.close()


@pytest.mark.parametrize(
    ("argv", "original", "expected"),
    [
        pytest.param(
            ["SCRIPT", "serve"], ["python", "SCRIPT", "serve"], ["SCRIPT", "serve"], id="a script"
        ),
        pytest.param(
            ["/x/__main__.py", "serve"],
            ["python", "-X", "dev", "-m", "xetserve", "serve"],
            [sys.executable, "-X", "dev", "-m", "xetserve", "serve"],
            id="a module",
        ),
        pytest.param(
            ["/gone", "serve"],
            ["python", "/gone", "serve"],
            [sys.executable, "/gone", "serve"],
            id="a script that is gone",
        ),
        pytest.param(
            ["SCRIPT"], ["python", "-O", "SCRIPT"], [sys.executable, "-O", "SCRIPT"], id="flags"
        ),
    ],
)
def test_the_command_line_of_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: list[str],
    original: list[str],
    expected: list[str],
) -> None:
    script = tmp_path / "xetserve"
    script.touch(0o755)

    def name(words: list[str]) -> list[str]:
        return [str(script) if word == "SCRIPT" else word for word in words]

    monkeypatch.setattr(sys, "argv", name(argv))
    monkeypatch.setattr(sys, "orig_argv", name(original))
    assert find_command() == name(expected)


def test_signals_are_not_blocked_for_ever(start: Start, tmp_path: Path) -> None:
    """The old one may have blocked some; SIGUSR2 waits until it has a handler."""
    out = tmp_path / "out"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        upgraded = start(f"""
import signal
open({str(out)!r}, "w").write(repr([int(n) for n in signal.pthread_sigmask(0, [])]))
sys.exit(7)
""")
        upgraded.run()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    assert out.read_text() == f"[{int(signal.SIGUSR2)}]"


def test_the_first_process_leaves_no_zombie(start: Start, tmp_path: Path) -> None:
    """It has forked, but has not got round to its end when the new one is ready."""
    ready = tmp_path / "ready"
    upgraded = start(f"""
if os.fork():
    time.sleep(3600)
predecessor.report_ready()
open({str(ready)!r}, "w")
predecessor.wait_for_end(60)
while predecessor.read():
    time.sleep(0.01)
""")
    upgraded.run()
    assert upgraded.heard == ["ready", "taken over"]
    assert ready.exists() or upgraded.pid
    with pytest.raises(ChildProcessError):
        os.waitpid(upgraded.started[0]._group, os.WNOHANG)


def test_memory_is_handed_over() -> None:
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("test")
    os.write(memory, b"marks")
    with ours:
        socket.send_fds(ours, [b":xetserve-1\n"], [memory])
        os.close(memory)
        predecessor = Predecessor(theirs)
        taken = predecessor.handover.memory
        assert taken is not None
        assert os.pread(taken, 10, 0) == b"marks"
        assert not os.get_inheritable(taken)
        os.close(taken)
        predecessor.close()
