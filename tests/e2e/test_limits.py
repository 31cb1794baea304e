"""Each limit, reached on a real server with a small value, and what it promises then."""

import os
import re
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, sha256_of, with_files
from tests.e2e.clients import curl, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments
from tests.e2e.dataset import MIB
from tests.e2e.raw import Client
from tests.waiting import PATIENCE, wait_until

GET = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"
NAME = "big.bin"
DOWNLOAD = (
    f"GET /download/{REPO}/{NAME} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
).encode()


def start(site: Site, launcher: Launcher, *flags: str) -> Process:
    return launcher.start(*serve_arguments(site.origin.url, *flags))


def ask(server: Process) -> tuple[int, dict[str, str], bytes]:
    with Client(server) as client:
        client.send(GET)
        return client.read_answer()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# Names


@pytest.mark.parametrize(("name", "status"), [("models.test", 200), ("other.test", 421)])
def test_names(site: Site, launcher: Launcher, name: str, status: int) -> None:
    server = start(site, launcher, "--hosts", "models.test")
    with Client(server) as client:
        client.send(f"GET /metrics HTTP/1.1\r\nHost: {name}:8080\r\n\r\n".encode())
        assert client.read_answer()[0] == status
        client.send(GET.replace(b"Host: h", b"Host: other.test"))
        assert client.read_answer()[0] == 200


# Connections


@pytest.mark.parametrize(
    ("flag", "status"), [("--max-connections", 503), ("--max-connections-per-client", 429)]
)
def test_connections(site: Site, launcher: Launcher, flag: str, status: int) -> None:
    server = start(site, launcher, flag, "3")
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(3)]
        for client in clients:
            client.send(GET)
            assert client.read_answer()[0] == 200
        with Client(server) as one_more:
            got, headers, body = one_more.read_answer()
            assert (got, headers["retry-after"], headers["connection"]) == (status, "1", "close")
            assert body.startswith(b'{"error": ')
            assert one_more.read_end() == "closed"
        # Those who are there are served as before.
        clients[0].send(GET)
        assert clients[0].read_answer()[0] == 200
    wait_until(lambda: ask(server)[0] == 200)


def test_connections_of_several_workers(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--workers", "2", "--max-connections", "4")
    with ExitStack() as stack:
        refused = 0
        for _ in range(12):
            client = stack.enter_context(Client(server))
            client.send(GET)
            status = client.read_answer()[0]
            assert status in (200, 503)
            refused += status == 503
        # Those that one worker refused although the other had room: the quicker one had it then.
        assert 8 <= refused <= 10


def test_files_that_run_out(site: Site, launcher: Launcher) -> None:
    """More clients than the process may open files: it neither spins nor dies, and goes on
    afterwards.
    """
    server = start(site, launcher, "--max-connections", "0", "--access-log", "off")
    limit = len(os.listdir(f"/proc/{server.pid}/fd")) + 20
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (limit, limit))
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(60)]
        wait_until(lambda: "cannot accept clients: Too many open files" in server.log)
        clients[0].send(GET)
        assert clients[0].read_answer()[0] == 200
        before = cpu_seconds(server.pid)
        time.sleep(1)  # of the server's time, which is what is measured
        assert cpu_seconds(server.pid) - before < 0.3
        assert server.log.count("cannot accept") == 1
    wait_until(lambda: "accepting again" in server.log)
    assert ask(server)[0] == 200
    assert server.stop() == 0


@pytest.mark.parametrize("with_cache", [False, True], ids=["no cache", "a cache"])
def test_more_downloads_than_there_are_files_for(
    site: Site, launcher: Launcher, tmp_path: Path, with_cache: bool
) -> None:
    """Each is done as it should be, or refused before it has begun; none is a 502, and none is
    cut.
    """
    folder = ("--cache-dir", str(tmp_path), "--cache-min-free", "0") if with_cache else ()
    arguments = serve_arguments(site.origin.url, "--upstream-timeout", "2", *folder)
    launcher.max_files = 128
    server = launcher.start(*arguments)
    content = (site.uploaded.folder / NAME).read_bytes()
    size = MIB
    # Each wants a connection for longer than another one would wait for it.
    site.control.set_faults(bandwidth=300_000)
    num_refused = 0
    with ExitStack() as stack:
        waiting = {MIB * number: stack.enter_context(Client(server)) for number in range(60)}
        while waiting:
            refused = {}
            num_late = 0
            for start, client in waiting.items():
                wanted = f"Range: bytes={start}-{start + size - 1}\r\n\r\n".encode()
                client.send(DOWNLOAD[:-2] + wanted)
            for start, client in waiting.items():
                status, headers, body = client.read_answer()
                if status == 503:
                    assert headers["retry-after"] == "1"
                    refused[start] = client
                elif status == 504:  # a busy machine
                    refused[start] = client
                    num_late += 1
                else:
                    assert (status, body == content[start : start + size]) == (206, True)
            assert len(refused) < len(waiting)
            num_refused += len(refused) - num_late
            waiting = refused
        assert num_refused
        assert "answered 502" not in server.log
        assert "Traceback" not in server.log
        client.send(GET.replace(b"/health", b"/metrics"))
        figures = client.read_answer()[2].decode()
    # All of them before they began.
    assert f'xetserve_requests_refused_total{{limit="files"}} {num_refused}\n' in figures


def test_too_few_files_to_begin_with(site: Site) -> None:
    command = [sys.executable, "-m", "xetserve", *serve_arguments(site.origin.url)]
    done = subprocess.run(
        with_files(64, command), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2
    assert "may open 64 files, which is too few" in done.stderr


def test_requests_of_a_connection(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--max-requests-per-connection", "3")
    with Client(server) as client:
        client.send(GET * 5)
        answers = [client.read_answer() for _ in range(3)]
        assert [headers.get("connection") for _, headers, _ in answers] == [None, None, "close"]
        assert client.read_end() == "closed"


# Times


def test_silence(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--keep-alive-timeout", "0.3")
    with Client(server) as new, Client(server) as kept:
        kept.send(GET)
        assert kept.read_answer()[0] == 200
        assert new.read_end() == kept.read_end() == "closed"


@pytest.mark.parametrize("sent", [b"G", GET[:-2], GET[:-1]], ids=["a byte", "fields", "nearly all"])
def test_a_head_that_stops(site: Site, launcher: Launcher, sent: bytes) -> None:
    server = start(site, launcher, "--head-timeout", "0.3")
    with Client(server) as client:
        client.send(sent)
        status, headers, _ = client.read_answer()
        assert (status, headers["connection"]) == (408, "close")
        assert client.read_end() == "closed"


def test_a_head_that_trickles(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--head-timeout", "0.5")
    with Client(server) as client:
        client.trickle(b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 200, 0.05)
        assert client.read_answer()[0] == 408
        assert client.read_end() == "closed"


@contextmanager
def running_origin(launcher: Launcher, folder: Path, *flags: str) -> Iterator[Process]:
    """The one server of ours that reads request bodies."""
    address = ("--host", "127.0.0.1", "--port", "0")
    yield launcher.start("origin", str(folder / "origin"), *address, *flags)


POST = (
    b"POST /api/repos/create HTTP/1.1\r\nHost: h\r\n"
    b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
)


def test_a_body_that_stops(launcher: Launcher, tmp_path: Path) -> None:
    with (
        running_origin(launcher, tmp_path, "--body-timeout", "0.3") as server,
        Client(server) as client,
    ):
        client.send(POST + b"{")
        assert client.read_answer()[0] == 408
        assert client.read_end() == "closed"


def test_a_body_that_trickles(launcher: Launcher, tmp_path: Path) -> None:
    flags = ("--body-timeout", "0.5", "--min-body-rate", "1000")
    with running_origin(launcher, tmp_path, *flags) as server, Client(server) as client:
        client.send(POST)
        client.trickle(b"{" * 200, 0.05)
        assert client.read_answer()[0] == 408
        assert client.read_end() == "closed"


def test_a_body_that_nobody_wants(site: Site, launcher: Launcher) -> None:
    """It is read up to a bound, and in the time that bodies have; then the connection goes."""
    server = start(site, launcher, "--body-timeout", "0.3")
    head = b"POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    with Client(server) as short, Client(server) as slow, Client(server) as long:
        short.send(head % 10_000 + bytes(10_000) + GET)
        assert [short.read_answer()[0] for _ in range(2)] == [405, 200]
        slow.send(head % 10_000 + bytes(10))
        assert slow.read_answer()[0] == 405
        assert slow.read_end() == "closed"
        long.send(head % (100 * MIB) + bytes(100_000))
        assert long.read_answer()[0] == 405
        assert long.read_end() in ("closed", "reset")


def test_a_client_that_takes_nothing(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--write-timeout", "0.5")
    with Client(server) as client:
        client.send(DOWNLOAD)
        wait_until(lambda: "cut after" in server.log)
        assert client.read_end() == "reset"
    assert "the client reads nothing" in server.log


def test_a_client_that_takes_too_little(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--write-timeout", "1", "--min-write-rate", "100MiB")
    with Client(server) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(DOWNLOAD)
        deadline = time.monotonic() + PATIENCE
        is_reset = False
        while not is_reset and "reads less than" not in server.log and time.monotonic() < deadline:
            select.select([], [], [], 0.02)
            try:
                client.sock.recv(65536)  # some megabytes a second: alive, but below the floor
            except ConnectionResetError:
                is_reset = True
        wait_until(lambda: "reads less than 1.04858e+08 bytes a second" in server.log)
        assert is_reset or client.read_end() == "reset"


# Floods


def test_a_flood_of_requests_behind_a_response_is_not_read(site: Site, launcher: Launcher) -> None:
    server = start(site, launcher, "--access-log", "off")
    with Client(server) as client:
        client.send(DOWNLOAD)
        wait_until(lambda: bool(select.select([client.sock], [], [], 0)[0]))
        client.sock.setblocking(False)
        sent = 0
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                sent += client.sock.send(GET * 1000)
            except BlockingIOError:
                # The kernel's buffers are full, and stay so: nobody reads.
                if not select.select([], [client.sock], [], 0.5)[1]:
                    break
        else:
            raise AssertionError(f"{sent} bytes, and still taken")
        assert server.peak_memory() < 128 * MIB
    assert ask(server)[0] == 200


def test_pipelined_requests_are_answered_in_order_however_many(
    site: Site, launcher: Launcher
) -> None:
    server = start(site, launcher, "--access-log", "off")
    with Client(server) as client:
        client.send(GET * 2000)
        assert all(client.read_answer()[0] == 200 for _ in range(2000))


# Admission


def test_requests_under_way(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = start(site, launcher, "--max-active-requests", "1", "--write-timeout", "60")
    with Client(server) as busy:
        busy.send(DOWNLOAD)
        wait_until(lambda: bool(select.select([busy.sock], [], [], 0)[0]))
        with Client(server) as other:
            other.send(DOWNLOAD + GET)
            status, headers, body = other.read_answer()
            assert (status, headers["retry-after"]) == (503, "1")
            assert b"limit of active requests" in body
            assert other.read_answer()[0] == 200, "/health is always answered"
    url = f"{server.url}/download/{REPO}/config.json"
    wait_until(lambda: run(curl(url, tmp_path / "out")).returncode == 0)


@pytest.mark.parametrize("flag", ["--token-request-rate", "--address-request-rate"])
def test_requests_a_second(site: Site, launcher: Launcher, flag: str) -> None:
    server = start(site, launcher, flag, "0.01", "--rate-burst", "300")
    request = DOWNLOAD.replace(b"GET", b"HEAD").replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n")
    with Client(server) as client:
        statuses = []
        for _ in range(5):
            client.send(request.replace(NAME.encode(), b"absent"))
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.sock.recv(65536)
            statuses.append(int(head.split(b" ")[1]))
            if statuses[-1] == 429:
                wait = re.search(rb"(?i)retry-after: (\d+)", head)
                assert wait is not None
                assert 0 < int(wait[1]) <= 100
        assert statuses == [404, 404, 404, 429, 429]
    assert TOKEN not in server.log


@pytest.mark.parametrize("flag", ["--token-byte-rate", "--address-byte-rate"])
def test_bytes_a_second(site: Site, launcher: Launcher, tmp_path: Path, flag: str) -> None:
    server = start(site, launcher, flag, "2MiB", "--rate-burst", "0.5")
    started = time.monotonic()
    done = run(curl(f"{server.url}/download/{REPO}/random.bin", tmp_path / "out"))
    seconds = time.monotonic() - started
    assert done.returncode == 0
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["random.bin"]
    # 3 MiB at 2 MiB/s, of which 1 MiB is there at first: a second at least. (At most is up to the
    # machine.)
    assert seconds > 0.9
