"""Signs of life come from event loops that are at work, and from no others."""

import asyncio
import contextlib
import logging
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE
from xetserve.ops.sd_notify import Notifier
from xetserve.ops.watchdog import LOOK_INTERVAL, Figures, Watchdog


class Clients:
    """As many clients as a test says."""

    def __init__(self, num: int = 0, idle_for: float = 0.0) -> None:
        self.idle_since = None if num else time.monotonic() - idle_for


class Manager:
    """The other end of the socket."""

    def __init__(self, folder: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = str(folder / "notify")
        self.sock.bind(self.address)
        self.sock.setblocking(False)
        self._notifiers: list[Notifier] = []

    def watch(
        self,
        num: int = 1,
        watchdog: float | None = None,
        idle_exit: float = 0.0,
        read_figures: Callable[[], Figures] = Figures,
    ) -> Watchdog:
        """Give a watch that tells this manager."""
        self._notifiers.append(Notifier(self.address, watchdog))
        return Watchdog(num, self._notifiers[-1], idle_exit, read_figures)

    def close(self) -> None:
        for notifier in self._notifiers:
            notifier.close()
        self.sock.close()

    async def read(self, beginning: str) -> str:
        """Wait until something is said that begins so."""
        async with asyncio.timeout(PATIENCE):
            while True:
                said = await asyncio.get_running_loop().sock_recv(self.sock, 4096)
                if said.decode().startswith(beginning):
                    return said.decode()

    def read_all(self) -> list[str]:
        said = []
        while select.select([self.sock], [], [], 0)[0]:
            said.append(self.sock.recv(4096).decode())
        return said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


@contextlib.asynccontextmanager
async def following(
    watch: Watchdog, clients: Clients, on_idle: Callable[[], None] = lambda: None
) -> AsyncIterator[None]:
    task = asyncio.ensure_future(watch.follow(clients, on_idle))
    yield
    task.cancel()


@pytest.mark.parametrize(
    ("watchdog", "idle_exit", "expected"),
    [
        pytest.param(None, 0.0, LOOK_INTERVAL, id="figures only"),
        pytest.param(100.0, 1000.0, LOOK_INTERVAL, id="long times"),
        pytest.param(4.0, 0.0, 0.5, id="a short watchdog"),
        pytest.param(4.0, 1.0, 0.25, id="a short idle time"),
    ],
)
def test_looks_are_often_enough(
    manager: Manager, watchdog: float | None, idle_exit: float, expected: float
) -> None:
    assert manager.watch(1, watchdog, idle_exit).interval == expected


async def test_without_anything_to_look_for_nobody_looks() -> None:
    watch = Watchdog()
    assert watch.interval is None
    await watch.follow(Clients(), lambda: pytest.fail("asked"))
    watch.ready()
    watch.stopping("draining")
    with watch.reloading():
        assert not watch.look()


async def test_a_loop_that_works_gives_signs_and_one_that_is_stuck_does_not(
    manager: Manager,
) -> None:
    watchdog = 0.2
    watch = manager.watch(1, watchdog)
    async with following(watch, Clients(2)):
        for _ in range(3):
            await manager.read("WATCHDOG=1")
        manager.read_all()
        # The loop does nothing else meanwhile, as if a callback did not return.
        assert not select.select([manager.sock], [], [], 3 * watchdog)[0]
        await manager.read("WATCHDOG=1")


def test_a_process_that_is_stuck_spoils_it_for_all(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    watch = manager.watch(2, 10.0)
    watch.heartbeats.begin(0, grace=0.0)
    watch.heartbeats.begin(1, grace=-100.0)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            watch.look()
    assert [each for each in manager.read_all() if "WATCHDOG" in each] == []
    assert len(caplog.records) == 1
    assert "an event loop is stuck" in caplog.text
    watch.heartbeats.end(1)
    watch.look()
    watch.look()
    assert manager.read_all().count("WATCHDOG=1") == 1, "half of the time has not passed"


async def test_figures_are_told(manager: Manager) -> None:
    watch = manager.watch(2, read_figures=lambda: Figures(42, 3, 2_500_000))
    async with following(watch, Clients(2)):
        said = await manager.read("STATUS=")
        assert said == "STATUS=42 connections, 3 requests answered, 2.5 MB sent"
        watch.stopping("draining")
        assert await manager.read("STOPPING=1") == "STOPPING=1\nSTATUS=draining"
        said = await manager.read("STATUS=draining; ")
        assert said.endswith("42 connections, 3 requests answered, 2.5 MB sent")


def test_a_reload_is_told_whatever_becomes_of_it(manager: Manager) -> None:
    watch = manager.watch(1)
    with contextlib.suppress(ValueError), watch.reloading():
        raise ValueError
    said = manager.read_all()
    assert [each.partition("=")[0] for each in said] == ["RELOADING", "READY"]
    assert said[1] == f"READY=1\nMAINPID={os.getpid()}"


async def test_it_is_said_once_that_nobody_is_connected(manager: Manager) -> None:
    calls = []
    watch = manager.watch(1, 0.1, idle_exit=0.01)
    async with following(watch, Clients(0, idle_for=10.0), lambda: calls.append(1)):
        for _ in range(3):  # each is a turn or more
            await manager.read("WATCHDOG=1")
    assert calls == [1]


@pytest.mark.parametrize(
    ("num", "idle_for", "is_alone"),
    [
        pytest.param(1, 0.0, True, id="somebody is here"),
        pytest.param(0, 1000.0, False, id="somebody is at another process"),
        pytest.param(0, 1.0, True, id="not for long enough"),
    ],
)
def test_while_it_is_wanted_it_stays(num: int, idle_for: float, is_alone: bool) -> None:
    clients = Clients(num, idle_for)
    watch = Watchdog(2, idle_exit=500.0)
    if not is_alone:
        watch.heartbeats.own = 1
        watch.heartbeats.write(None)
        watch.heartbeats.own = 0
    watch.heartbeats.write(clients.idle_since)
    assert not watch.look()
    watch.heartbeats.end(1)
    watch.heartbeats.write(time.monotonic() - 501)
    assert watch.look()
