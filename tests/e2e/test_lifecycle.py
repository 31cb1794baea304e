"""The end of a server, and its replacement by another one on the same socket."""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, Process, clean_environment, sha256_of
from tests.e2e.clients import CUT, curl
from tests.e2e.conftest import REPO, TOKEN, Site, environment_without_home, serve_arguments
from tests.e2e.raw import HEALTH, Client
from tests.e2e.socket_activation import HAND_OVER, start_on
from tests.e2e.workers import num_clients
from tests.waiting import PATIENCE, wait_until

NAME = "big.bin"
SMALL = "config.json"
READY = b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n"


class Download:
    """curl with a file that takes a while."""

    def __init__(self, server: Process, target: Path, rate: str) -> None:
        self.target = target
        self._popen = subprocess.Popen(
            curl(f"{server.url}/download/{REPO}/{NAME}", target, "--limit-rate", rate),
            env=environment_without_home(),
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: target.exists() and target.stat().st_size > 0)

    def finish(self, digest: str) -> int:
        """Wait for its end; gives curl's status. Only with 0 it has the file."""
        status = self._popen.wait(timeout=60)
        assert (status == 0) == (sha256_of(self.target) == digest)
        return status


def start(site: Site, launcher: Launcher, *flags: str) -> Process:
    return launcher.start(*serve_arguments(site.origin.url, *flags))


def terminate(server: Process, until_logged: str = "SIGTERM: draining") -> None:
    server.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: until_logged in server.log)


# Draining


@pytest.mark.parametrize("workers", ["1", "2"])
def test_variables_of_services_do_not_stop_the_start(
    site: Site, launcher: Launcher, workers: str
) -> None:
    """A pod has them for each Service of its namespace, this one's own among them."""
    links = {
        "XETSERVE_SERVICE_HOST": "10.96.0.11",
        "XETSERVE_SERVICE_PORT": "8080",
        "XETSERVE_SERVICE_PORT_HTTP": "8080",
        "XETSERVE_PORT": "tcp://10.96.0.11:8080",
        "XETSERVE_PORT_8080_TCP": "tcp://10.96.0.11:8080",
        "XETSERVE_PORT_8080_TCP_PROTO": "tcp",
        "XETSERVE_PORT_8080_TCP_PORT": "8080",
        "XETSERVE_PORT_8080_TCP_ADDR": "10.96.0.11",
    }
    server = launcher.start(*serve_arguments(site.origin.url, "--workers", workers), **links)
    (line,) = (line for line in server.log.splitlines() if "describe services" in line)
    assert "ignoring 8 environment variables" in line
    with Client(server) as client:
        client.send(HEALTH)
        assert client.read_answer()[0] == 200


def test_ready_says_whether_the_server_drains(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher)
    with Client(server) as early, Client(server) as late:
        early.send(READY)
        assert (early.read_answer()[::2]) == (200, b'{"status": "ready"}\n')
        wait_until(lambda: num_clients(server.pid, urlsplit(server.url).port or 0) == 2)
        terminate(server)
        assert early.read_end() == "closed"
        # Connected before the signal, and heard after it.
        late.send(READY)
        status, headers, body = late.read_answer()
        assert (status, json.loads(body)) == (503, {"status": "draining"})
        assert headers["connection"] == "close"
        assert late.read_end() == "closed"
    assert server.popen.wait(timeout=PATIENCE) == 0


def test_for_a_while_it_may_tell_so_and_still_accept(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--drain-delay", "30")
    terminate(server)
    for _ in range(3):
        with Client(server) as client:
            client.send(READY + HEALTH)
            assert [client.read_answer()[0] for _ in range(2)] == [503, 200]
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(timeout=PATIENCE) == 0


def test_idle_connections_are_closed_at_once_and_requests_that_have_begun_are_answered(
    site: Site, launcher: Launcher
) -> None:
    server = start(site, launcher)
    with Client(server) as idle, Client(server) as begun:
        for client in (idle, begun):
            client.send(HEALTH)
            assert client.read_answer()[0] == 200
        begun.send(HEALTH + HEALTH[:20])
        assert begun.read_answer()[0] == 200
        terminate(server)
        assert idle.read_end() == "closed"
        begun.send(HEALTH[20:])
        status, headers, _ = begun.read_answer()
        assert (status, headers["connection"]) == (200, "close")
        assert begun.read_end() == "closed"
    assert server.popen.wait(timeout=PATIENCE) == 0


def test_nobody_can_connect_any_more(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = start(site, launcher)
    download = Download(server, tmp_path / "out", "100M")
    terminate(server)

    def is_refused() -> bool:
        try:
            with Client(server):
                return False
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # in the queue of a socket that was closed just then
            return False

    wait_until(is_refused)  # the log is quicker than the sockets
    assert download.finish(site.uploaded.digests[NAME]) == 0
    assert server.popen.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_takes_too_long_is_cut_and_looks_cut(
    site: Site, launcher: Launcher, tmp_path: Path, workers: str
) -> None:
    server = start(site, launcher, "--drain-timeout", "0.5", "--workers", workers)
    downloads = [Download(server, tmp_path / f"out-{n}", "1M") for n in range(3)]
    terminate(server)
    for download in downloads:
        assert download.finish(site.uploaded.digests[NAME]) in CUT
    assert server.popen.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_cuts(site: Site, launcher: Launcher, tmp_path: Path, workers: str) -> None:
    server = start(site, launcher, "--workers", workers)
    downloads = [Download(server, tmp_path / f"out-{n}", "1M") for n in range(3)]
    told = "SIGTERM: draining: 3 active requests may take 30 s; a second signal cuts them"
    terminate(server, told)
    terminate(server, "SIGTERM: cutting")
    for download in downloads:
        assert download.finish(site.uploaded.digests[NAME]) in CUT
    assert server.popen.wait(timeout=PATIENCE) == 0


# Replacing


class Load:
    """Clients with short requests, one after the other, until they are told to stop."""

    def __init__(self, port: int, content: bytes) -> None:
        self._port = port
        self._content = content
        self._is_over = threading.Event()
        self.num_served = 0
        self.num_repeated = 0
        self.failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._run, args=(ask,))
            for ask in (self._ask_once, self._ask_once, self._ask_on_a_kept_connection)
        ]
        self._kept: http.client.HTTPConnection | None = None
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        if self._kept is not None:
            self._kept.close()

    def _run(self, ask: Callable[[], bytes]) -> None:
        while not self._is_over.is_set():
            try:
                content = ask()
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
                continue
            if content != self._content:
                self.failures.append(repr(content[:100]))
            self.num_served += 1

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)

    def _ask(self, connection: http.client.HTTPConnection, **fields: str) -> bytes:
        headers = {"Authorization": f"Bearer {TOKEN}", **fields}
        connection.request("GET", f"/download/{REPO}/{SMALL}", headers=headers)
        return connection.getresponse().read()

    def _ask_once(self) -> bytes:
        connection = self._connect()
        try:
            return self._ask(connection, Connection="close")
        finally:
            connection.close()

    def _ask_on_a_kept_connection(self) -> bytes:
        """As every HTTP client does: a kept connection that turns out to be closed is replaced."""
        if self._kept is not None and self._kept.sock is not None:
            try:
                return self._ask(self._kept)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.num_repeated += 1
                self._kept.close()
        self._kept = self._connect()
        return self._ask(self._kept)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_is_replaced_under_load_and_no_request_fails(
    site: Site, launcher: Launcher, tmp_path: Path, workers: str
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as sock:
        server = start_on(sock, site, launcher, "--workers", workers)
        assert urlsplit(server.url).port == sock.getsockname()[1]
        load = Load(sock.getsockname()[1], (site.uploaded.folder / SMALL).read_bytes())
        try:
            for number in range(2):
                downloads = [Download(server, tmp_path / f"{number}-{n}", "60M") for n in range(2)]
                served = load.num_served
                wait_until(lambda: load.num_served > served + 10)  # noqa: B023 - waits here
                following = start_on(sock, site, launcher, "--workers", workers)
                server.popen.send_signal(signal.SIGTERM)
                for download in downloads:
                    assert download.finish(site.uploaded.digests[NAME]) == 0
                assert server.popen.wait(timeout=PATIENCE) == 0
                server = following
                served = load.num_served
                wait_until(lambda: load.num_served > served + 10)  # noqa: B023 - waits here
        finally:
            load.stop()
    assert load.failures == []
    assert load.num_repeated <= 2, "one for each time that the server was replaced"


def test_clients_that_wait_in_the_queue_outlive_the_server(site: Site, launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        first = start_on(sock, site, launcher)
        assert first.stop() == 0
        with socket.create_connection(sock.getsockname(), timeout=PATIENCE) as client:
            client.sendall(HEALTH)  # nobody is there
            assert not select.select([client], [], [], 0)[0]
            start_on(sock, site, launcher)
            assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_what_is_handed_over_and_is_no_socket_stops_the_start(site: Site) -> None:
    with Path(os.devnull).open() as file:
        done = subprocess.run(
            [sys.executable, "-c", HAND_OVER, str(file.fileno()), *serve_arguments("http://h")],
            pass_fds=(file.fileno(),),
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 2
    assert "xetserve: inherited descriptor 3 is not a socket" in done.stderr
