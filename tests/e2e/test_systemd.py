"""A service manager around the server: it has the sockets, it is told, and it watches."""

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.conftest import Site, serve_arguments
from tests.e2e.raw import HEALTH, Client
from tests.e2e.socket_activation import start_on
from tests.e2e.workers import worker_pids
from tests.waiting import PATIENCE, wait_until

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


class Manager:
    """Has a listening socket for clients and one on which it is told."""

    def __init__(self, folder: Path) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.settimeout(PATIENCE)
        self.address = str(folder / "notify")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(self.address)

    def start(self, site: Site, launcher: Launcher, *flags: str, **environment: str) -> Process:
        return start_on(
            self.listening, site, launcher, *flags, NOTIFY_SOCKET=self.address, **environment
        )

    @property
    def url(self) -> str:
        """Where clients connect, whether a server is there or not."""
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def read(self, beginning: str) -> str:
        """Wait until something is said that begins so."""
        while True:
            assert select.select([self._notify], [], [], PATIENCE)[0], f"never: {beginning}"
            if (said := self._notify.recv(4096).decode()).startswith(beginning):
                return said

    def is_told(self, within: float) -> bool:
        return bool(select.select([self._notify], [], [], within)[0])

    def forget(self) -> None:
        while self.is_told(0):
            self._notify.recv(4096)

    def close(self) -> None:
        self.listening.close()
        self._notify.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def ask(server: Process) -> None:
    with Client(server) as client:
        client.send(HEALTH)
        assert client.read_answer()[0] == 200


@WORKERS
def test_it_says_how_it_is_from_its_start_to_its_end(
    site: Site, launcher: Launcher, manager: Manager, workers: str
) -> None:
    server = manager.start(site, launcher, "--workers", workers, WATCHDOG_USEC="4000000")
    assert manager.read("READY=1") == f"READY=1\nMAINPID={server.pid}"
    assert manager.read("WATCHDOG=1") == "WATCHDOG=1"
    ask(server)
    while "1 requests answered, 0.0 MB sent" not in manager.read("STATUS="):
        pass
    server.popen.send_signal(signal.SIGHUP)
    assert manager.read("RELOADING=1").startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert manager.read("READY=1")
    server.popen.send_signal(signal.SIGTERM)
    assert manager.read("STOPPING=1") == "STOPPING=1\nSTATUS=draining"
    assert server.popen.wait(timeout=PATIENCE) == 0


def test_a_failed_start_is_never_ready(
    site: Site, launcher: Launcher, manager: Manager, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match="did not start"):
        manager.start(site, launcher, "--tls-cert", "no.pem", "--tls-key", "no.pem")
    assert not manager.is_told(0)


def test_one_worker_that_is_stuck_silences_the_supervisor(
    site: Site, launcher: Launcher, manager: Manager
) -> None:
    server = manager.start(site, launcher, "--workers", "2", WATCHDOG_USEC="1000000")
    manager.read("READY=1")
    for _ in range(3):
        manager.read("WATCHDOG=1")
    stuck = worker_pids(server)[1]
    os.kill(stuck, signal.SIGSTOP)
    try:
        wait_until(lambda: "an event loop is stuck" in server.log)
        manager.forget()
        assert not manager.is_told(2.0), "the watchdog would have bitten by now"
    finally:
        os.kill(stuck, signal.SIGCONT)
    manager.read("WATCHDOG=1")


@WORKERS
def test_it_leaves_when_it_is_idle_and_the_next_one_goes_on(
    site: Site, launcher: Launcher, manager: Manager, workers: str
) -> None:
    flags = ("--workers", workers, "--idle-exit", "0.3")
    for _ in range(2):
        with Client(manager.url) as client:  # nobody is there yet
            client.send(HEALTH)
            server = manager.start(site, launcher, *flags)
            assert client.read_answer()[0] == 200
        assert server.popen.wait(timeout=PATIENCE) == 0
        assert manager.read("STOPPING=1") == "STOPPING=1\nSTATUS=idle"


@WORKERS
def test_whoever_comes_when_it_leaves_is_answered_by_it_or_by_the_next_one(
    site: Site, launcher: Launcher, manager: Manager, workers: str
) -> None:
    flags = ("--workers", workers, "--idle-exit", "0.2")
    for _ in range(3):
        server = manager.start(site, launcher, *flags)
        clients: list[Client] = []
        # Just before it would go, and all the while that it goes.
        wait_until(lambda: "no client is connected" in server.log)  # noqa: B023 - waits here
        while server.popen.poll() is None and len(clients) < 50:
            clients.append(Client(server))
            clients[-1].send(HEALTH)
        assert server.popen.wait(timeout=PATIENCE) == 0
        clients.append(Client(server))
        clients[-1].send(HEALTH)
        following = manager.start(site, launcher, "--workers", workers)
        for client in clients:
            with client:
                assert client.read_answer()[0] == 200
        assert following.stop() == 0


@WORKERS
def test_it_stays_while_a_client_is_connected(
    site: Site, launcher: Launcher, manager: Manager, workers: str
) -> None:
    with Client(manager.url) as client:  # before it starts: it has no reason to leave
        client.send(HEALTH)
        server = manager.start(site, launcher, "--workers", workers, "--idle-exit", "0.2")
        assert client.read_answer()[0] == 200
        for _ in range(8):  # a look each, four of which would do
            while "1 connections" not in manager.read("STATUS="):
                pass
            client.send(HEALTH)
            assert client.read_answer()[0] == 200
    assert server.popen.wait(timeout=PATIENCE) == 0


def test_without_sockets_that_are_handed_over_it_does_not_start(
    site: Site, launcher: Launcher
) -> None:
    with pytest.raises(AssertionError, match="idle_exit needs sockets that a service manager"):
        launcher.start(*serve_arguments(site.origin.url, "--idle-exit", "5"))
    assert launcher.running[-1].popen.wait(timeout=PATIENCE) == 2
