"""The supervisor over workers that do as they are told by a test, in processes of their own."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE
from xetserve.ops.supervisor import MAX_DELAY, restart_delay

# A supervisor whose workers do what `work` does. `say` writes a line that the test waits for;
# workers are ready when they have said so on their channel.
PRELUDE = """
import os, signal, socket, sys, time
from xetserve.errors import ConfigError
from xetserve.ops import supervisor as supervisor_module
from xetserve.ops.logs import set_up_logging
from xetserve.net.listener import bind_sockets

set_up_logging("debug")
sockets = bind_sockets("127.0.0.1", 0)

def say(line):
    os.write(1, line.encode() + b"\\n")

def obey(channel):
    "Be ready, then do what a good worker does: end when told to."
    channel.send(b"r")
    order = channel.recv(1)
    say(f"order {order.decode() or 'none'}")
    return 0

def run(work, num_workers=3, drain_timeout=30.0, watch=None):
    supervisor = supervisor_module.Supervisor(
        num_workers, sockets, work,
        drain_timeout=drain_timeout, on_ready=lambda: say("ready"), watch=watch,
    )
    sys.exit(supervisor.run())
"""


class Supervised:
    """A script that runs a supervisor."""

    def __init__(self, script: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._said = b""

    def read_line(self) -> str:
        """Give the next line that was said."""
        assert self.popen.stdout is not None
        while b"\n" not in self._said:
            assert select.select([self.popen.stdout], [], [], PATIENCE)[0], "nothing was said"
            data = os.read(self.popen.stdout.fileno(), 4096)
            assert data, "nothing more will be said"
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def finish(self) -> tuple[int, list[str], str]:
        """Wait for the end: status, lines that were not read yet, log."""
        out, err = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, (self._said + out).decode().splitlines(), err.decode()


Supervise = Callable[[str], Supervised]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Start scripts; whatever still runs in the end is killed, and the workers leave with it."""
    started: list[Supervised] = []

    def start(script: str) -> Supervised:
        started.append(Supervised(script))
        return started[-1]

    yield start
    for supervised in started:
        with supervised.popen as popen:
            popen.kill()


def messages(log: str) -> list[str]:
    """What the supervisor and the workers logged, without process ids."""
    return [
        re.sub(r"pid \d+", "pid N", line.partition("supervisor: ")[2])
        for line in log.splitlines()
        if "supervisor: " in line
    ]


# Starting


def test_once_all_are_ready_it_is_told_once_and_a_signal_ends_all_in_order(
    supervise: Supervise,
) -> None:
    supervised = supervise("run(obey)")
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    status, lines, log = supervised.finish()
    assert (status, lines) == (0, ["order d"] * 3)
    assert sorted(messages(log)) == [
        "SIGTERM: draining",
        *(f"worker {number} (pid N) is ready" for number in (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("work", "status", "told"),
    [
        pytest.param("return 3", 3, "ended with status 3", id="its own status"),
        pytest.param("return 0", 1, "ended with status 0", id="an end is no success"),
        pytest.param("os.kill(os.getpid(), 9)", 1, "died of SIGKILL", id="killed"),
        pytest.param("os.kill(os.getpid(), 40)", 1, "died of signal 40", id="an odd signal"),
        pytest.param("raise ConfigError('no')", 2, "xetserve: no\n", id="a bad setting"),
        pytest.param("raise ValueError('why')", 1, "ValueError: why\n", id="an accident"),
        pytest.param("sys.exit(0)", 1, "failed\n", id="an exit"),
    ],
)
def test_what_is_wrong_for_the_first_is_said_once_and_ends_all(
    supervise: Supervise, work: str, status: int, told: str
) -> None:
    done = supervise(f"def work(channel):\n    say('started')\n    {work}\nrun(work)").finish()
    assert done[:2] == (status, ["started"])
    assert done[2].count(told) == 1
    assert "before it was ready" in done[2]


def test_without_a_process_for_the_first_nothing_is_served(supervise: Supervise) -> None:
    status, _, log = supervise(
        "def fail(): raise BlockingIOError(11, 'no more processes')\nos.fork = fail\nrun(obey)"
    ).finish()
    assert status == 1
    assert "the first worker could not be started: no more processes" in log


# Starting again


@pytest.mark.parametrize(
    ("num_crashes", "delay"), [(1, 0.0), (2, 0.5), (3, 1.0), (4, 2.0), (7, 16.0), (8, 30.0)]
)
def test_a_delay_doubles(num_crashes: int, delay: float) -> None:
    assert restart_delay(num_crashes) == delay


@pytest.mark.parametrize("num_crashes", [9, 100, 10**9])
def test_a_delay_has_a_limit(num_crashes: int) -> None:
    assert restart_delay(num_crashes) == MAX_DELAY


def test_a_worker_that_dies_is_replaced_at_once(supervise: Supervise) -> None:
    supervised = supervise(
        """
def work(channel):
    say(f"pid {os.getpid()}")
    return obey(channel)
run(work, 2)
"""
    )
    lines = [supervised.read_line() for _ in range(3)]
    assert lines[2] == "ready"
    os.kill(int(lines[0].split()[1]), signal.SIGKILL)
    assert supervised.read_line() not in lines
    supervised.popen.send_signal(signal.SIGINT)
    status, lines, log = supervised.finish()
    assert (status, lines) == (0, ["order d"] * 2)
    assert "worker 1 (pid N) died of SIGKILL; starting it again now" in messages(log)


CRASHING = """
supervisor_module.FIRST_DELAY, supervisor_module.MAX_DELAY = 0.01, 0.05

class Counting(supervisor_module.Supervisor):
    num_starts = 0
    def _start(self, worker):
        Counting.num_starts += 1
        super()._start(worker)

supervisor_module.Supervisor = Counting

def work(channel):
    if Counting.num_starts > 6:
        say("steady")
        return obey(channel)
    channel.send(b"r")
    return 7

run(work, 1)
"""


@pytest.mark.parametrize(
    ("before", "delays"),
    [
        pytest.param(
            "",
            ["now", "in 0.01 s", "in 0.02 s", "in 0.04 s", "in 0.05 s", "in 0.05 s"],
            id="less and less often",
        ),
        pytest.param(
            "supervisor_module.SETTLED_AFTER = 0.0",
            ["now"] * 6,
            id="at once when it had lived for long",
        ),
    ],
)
def test_a_worker_that_crashes_again_and_again_is_started_again(
    supervise: Supervise, before: str, delays: list[str]
) -> None:
    supervised = supervise(before + CRASHING)
    assert [supervised.read_line(), supervised.read_line()] == ["ready", "steady"]
    supervised.popen.send_signal(signal.SIGTERM)
    status, lines, log = supervised.finish()
    assert (status, lines) == (0, ["order d"])
    assert re.findall(r"ended with status 7; starting it again (.*)", log) == delays


def test_a_process_that_cannot_be_made_is_tried_again(supervise: Supervise) -> None:
    supervised = supervise(
        """
fork, num = os.fork, 0
def fork_sometimes():
    global num
    num += 1
    if num == 2:
        raise BlockingIOError(11, "no more processes")
    return fork()
os.fork = fork_sometimes
run(obey)
"""
    )
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    status, lines, log = supervised.finish()
    assert (status, lines) == (0, ["order d"] * 3)
    assert "worker 2 could not be started: no more processes; starting it again now" in log


# Stopping


def test_the_sockets_are_closed_when_workers_drain(supervise: Supervise) -> None:
    supervised = supervise(
        """
def work(channel):
    for sock in sockets:
        sock.listen()
    channel.send(b"r")
    channel.recv(1)
    port = sockets[0].getsockname()[1]
    for sock in sockets:
        sock.close()
    try:
        socket.create_connection(("127.0.0.1", port))
    except ConnectionRefusedError:
        say("refused")
    return 0
run(work, 1)
"""
    )
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    assert supervised.finish()[:2] == (0, ["refused"])


def test_a_second_signal_is_another_order(supervise: Supervise) -> None:
    supervised = supervise(
        """
def work(channel):
    channel.send(b"r")
    for _ in range(2):
        say(f"order {channel.recv(1).decode()}")
    return 0
run(work, 2)
"""
    )
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    assert [supervised.read_line() for _ in range(2)] == ["order d"] * 2
    supervised.popen.send_signal(signal.SIGINT)
    status, lines, log = supervised.finish()
    assert (status, lines) == (0, ["order c"] * 2)
    assert messages(log)[-2:] == ["SIGTERM: draining", "SIGINT: cutting"]


IDLE = """
from xetserve.ops.watchdog import Watchdog
watch = Watchdog(2, idle_exit=0.05)
def say_that(is_idle):
    watch.heartbeats.write(time.monotonic() - 1 if is_idle else None)
"""


def test_when_nobody_is_connected_to_any_worker_all_are_told_to_leave(
    supervise: Supervise,
) -> None:
    supervised = supervise(
        IDLE
        + """
def work(channel):
    say_that(True)
    return obey(channel)
run(work, 2, watch=watch)
"""
    )
    status, lines, log = supervised.finish()
    assert (status, sorted(lines)) == (0, ["order l", "order l", "ready"])
    assert "no client is connected: exiting until the next one" in messages(log)


def test_one_that_has_clients_keeps_them_all_and_a_signal_after_leaving_is_the_first(
    supervise: Supervise,
) -> None:
    supervised = supervise(
        IDLE
        + """
def work(channel):
    say_that(watch.heartbeats.own == 0)
    channel.send(b"r")
    if watch.heartbeats.own == 1:
        while watch.heartbeats.idle_time() == 0:  # until it says otherwise itself
            say("busy")
            signal.sigwait([signal.SIGUSR1])
            say_that(True)
    for _ in range(2):
        say(f"order {channel.recv(1).decode()}")
    return 0
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
run(work, 2, watch=watch)
"""
    )
    assert sorted(supervised.read_line() for _ in range(2)) == ["busy", "ready"]
    children = Path(f"/proc/{supervised.popen.pid}/task/{supervised.popen.pid}/children")
    os.kill(int(children.read_text().split()[1]), signal.SIGUSR1)
    assert [supervised.read_line() for _ in range(2)] == ["order l"] * 2
    supervised.popen.send_signal(signal.SIGTERM)
    assert supervised.finish()[:2] == (0, ["order d"] * 2)


def test_the_place_of_a_worker_is_cleared_when_it_dies(supervise: Supervise) -> None:
    supervised = supervise(
        IDLE.replace("0.05", "60.0")  # nobody leaves, however long a worker takes to start
        + """
def work(channel):
    if watch.heartbeats.own == 0:
        say("idle" if watch.heartbeats.idle_time() else "busy")
    say_that(watch.heartbeats.own == 1)
    channel.send(b"r")
    if channel.recv(1) == b"d":
        return 0
run(work, 2, watch=watch)
"""
    )
    assert sorted(supervised.read_line() for _ in range(2)) == ["idle", "ready"]
    children = Path(f"/proc/{supervised.popen.pid}/task/{supervised.popen.pid}/children")
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    assert supervised.read_line() == "idle"
    supervised.popen.send_signal(signal.SIGTERM)
    supervised.finish()


def test_a_worker_that_does_not_end_is_killed(supervise: Supervise) -> None:
    supervised = supervise(
        """
supervisor_module.STOP_GRACE = 0.05
def work(channel):
    channel.send(b"r")
    while True:
        signal.pause()
run(work, 2, drain_timeout=0.05)
"""
    )
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    status, _, log = supervised.finish()
    assert status == 1
    assert "killing workers that did not end in time" in messages(log)
    assert "worker 2 (pid N) died of SIGKILL" in messages(log)


def test_a_worker_that_fails_while_it_drains_is_told_by_the_status(supervise: Supervise) -> None:
    supervised = supervise("run(lambda channel: obey(channel) or 5, 2)")
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    status, _, log = supervised.finish()
    assert status == 1
    assert "worker 1 (pid N) ended with status 5" in messages(log)


def test_a_signal_before_anything_is_ready_ends_it_in_order(supervise: Supervise) -> None:
    supervised = supervise(
        """
def work(channel):
    say("started")
    channel.recv(1)
    return 0
run(work)
"""
    )
    assert supervised.read_line() == "started"
    supervised.popen.send_signal(signal.SIGTERM)
    assert supervised.finish()[0] == 0


def test_workers_ignore_ctrl_c_and_sighup_themselves(supervise: Supervise) -> None:
    supervised = supervise(
        """
def work(channel):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGHUP)
    return obey(channel)
run(work)
"""
    )
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGHUP)
    supervised.popen.send_signal(signal.SIGTERM)
    status, lines, log = supervised.finish()
    assert (status, lines) == (0, ["order d"] * 3)
    assert "starting it again" not in log


def test_lines_tell_which_worker_wrote_them(supervise: Supervise) -> None:
    supervised = supervise(
        """
import logging
def work(channel):
    logging.getLogger("xetserve.test").info("hello")
    return obey(channel)
run(work, 2)
"""
    )
    assert supervised.read_line() == "ready"
    supervised.popen.send_signal(signal.SIGTERM)
    log = supervised.finish()[2]
    assert re.findall(r"INFO (.*): hello", log) == [
        "[worker 1] xetserve.test",
        "[worker 2] xetserve.test",
    ]


# Cores
