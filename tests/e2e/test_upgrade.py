"""Upgrades: a new generation takes over the sockets, or changes nothing."""

import http.client
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Process, sha256_of
from tests.e2e.clients import CUT, Connection, curl, run
from tests.e2e.conftest import REPO, TOKEN, Site
from tests.e2e.dataset import MIB
from tests.e2e.generations import (
    BIG,
    IMPATIENT,
    SMALL,
    Connector,
    NewClients,
    Program,
    SlowDownload,
    ask,
)
from tests.e2e.raw import HEALTH, Client
from tests.e2e.workers import worker_pids
from tests.peers import Certificates
from tests.waiting import PATIENCE, wait_until

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])
SMALL_XET = "damage/raw.bin"
PATH = f"/download/{REPO}/{BIG}"

Make = Callable[..., Program]


@pytest.fixture
def make(site: Site, tmp_path: Path) -> Iterator[Make]:
    """Make programs; in the end, no process of theirs is left."""
    made: list[Program] = []

    def make_one(**settings: str) -> Program:
        folder = tmp_path / f"program-{len(made)}"
        folder.mkdir()
        made.append(Program(site, folder, **settings))
        return made[-1]

    yield make_one
    left = [program.find_processes() for program in made]
    for program in made:
        program.clean_up()
    assert not any(left)
    for program in made:
        assert "Traceback" not in program.log


def port_of(program: Program) -> int:
    port = urlsplit(program.url).port
    assert port is not None
    return port


def version_of(connection: http.client.HTTPConnection) -> str:
    found: str = json.loads(ask(connection, "/health"))["version"]
    return found


def metric(program: Program, name: str) -> str:
    text = ask(Connector(port_of(program))(), "/metrics").decode()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} "))


# What a new generation takes over


@WORKERS
@pytest.mark.parametrize("speech", ["plain", "TLS"])
def test_new_clients_are_answered_while_a_slow_download_goes_on(
    site: Site,
    make: Make,
    certificates: Certificates,
    tmp_path: Path,
    record_testsuite_property: Callable[[str, object], None],
    workers: str,
    speech: str,
) -> None:
    tls = {"tls_cert": str(certificates.chain), "tls_key": str(certificates.key)}
    program = make(
        workers=workers, cache_dir=str(tmp_path / "cache"), **(tls if speech == "TLS" else {})
    )
    program.start("1")
    connect = Connector(port_of(program), certificates.ca if speech == "TLS" else None)
    with NewClients(connect, (site.uploaded.folder / SMALL).read_bytes()) as clients:
        clients.go_on()
        downloads: list[tuple[int, SlowDownload]] = []
        for version in ("2", "3", "4"):  # several in a row, and each old one has something to do
            slow = SlowDownload(connect(), PATH)
            program.install(version)
            old = program.upgrade()
            downloads.append((old, slow))
            # Workers of the old one may hear a moment later that they have to leave.
            wait_until(lambda: version_of(connect()) == version)  # noqa: B023 - waits here
            clients.go_on()
            assert program.is_alive(old), "its client has not read anything meanwhile"
        for old, slow in downloads:
            assert slow.finish() == site.uploaded.digests[BIG]
            wait_until(lambda: not program.is_alive(old))  # noqa: B023 - waits here
        clients.go_on()
    assert clients.failures == []
    assert program.process.popen.wait(timeout=PATIENCE) == 0
    figures = f"{2 * len(clients.versions)} requests, slowest {clients.slowest:.3f} s"
    record_testsuite_property(f"upgrade, {speech}, {workers} workers", figures)
    assert version_of(connect()) == "4"
    program.stop()


def test_every_socket_is_taken_over(make: Make, certificates: Certificates, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    program = make(
        tls_cert=str(certificates.chain),
        tls_key=str(certificates.key),
        redirect_port="0",
        status_listen="127.0.0.1:0",
        unix_socket=str(path),
    )
    program.start("1")

    def where() -> str:
        (line,) = program.log.split(" listening on ")[-1].splitlines()[:1]
        return line

    first = where()
    inode = path.stat().st_ino
    program.install("2")
    program.upgrade()
    assert program.process.popen.wait(timeout=PATIENCE) == 0
    assert where() == first
    assert path.stat().st_ino == inode, "the one before has left the file"
    wait_until(lambda: version_of(Connector(port_of(program), certificates.ca)()) == "2")
    _, redirect, _, figures = first.split(", ")
    with Client(redirect.split(" ")[0]) as client:
        client.send(HEALTH)
        assert client.read_answer()[0] in {200, 308}
    assert b"xetserve_build_info" in ask(
        http.client.HTTPConnection(urlsplit(figures.split(" ")[0]).netloc), "/metrics"
    )
    with socket.socket(socket.AF_UNIX) as local:
        local.connect(str(path))
        local.sendall(HEALTH)
        assert local.recv(15) == b"HTTP/1.1 200 OK"
    program.stop()
    assert not path.exists()


def test_settings_are_read_again(make: Make, tmp_path: Path) -> None:
    """Also those that a reload can not change: another number of workers, another address."""
    program = make(unix_socket=str(tmp_path / "before"))
    program.start("1")
    before = port_of(program)
    program.configure(workers="2", host="localhost", unix_socket=str(tmp_path / "after"))
    program.upgrade()
    assert len(worker_pids_of(program.main)) == 2
    assert not (tmp_path / "before").exists()
    assert (tmp_path / "after").exists()
    # The address of before is one of those that the new settings name.
    assert version_of(Connector(before)()) == "1"
    program.stop()


def worker_pids_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_handshake_that_has_begun_is_finished_by_the_old_one(
    make: Make, certificates: Certificates
) -> None:
    program = make(tls_cert=str(certificates.chain), tls_key=str(certificates.key))
    program.start("1")
    connect = Connector(port_of(program), certificates.ca)
    early = connect()
    raw = socket.create_connection(("127.0.0.1", port_of(program)), timeout=PATIENCE)
    wait_until(lambda: connections_of(program) == 1)
    program.install("2")
    old = program.upgrade()
    assert program.is_alive(old)
    early.sock = early._context.wrap_socket(raw, server_hostname="127.0.0.1")  # type: ignore[attr-defined]
    assert version_of(early) == "1"
    wait_until(lambda: version_of(connect()) == "2")
    program.stop()


def connections_of(program: Program) -> int:
    inodes = set()
    for link in Path(f"/proc/{program.main}/fd").iterdir():
        inodes.add(os.readlink(link))
    table = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = f"{port_of(program):04X}"
    fields = [line.split() for line in table]
    return sum(
        each[1].endswith(f":{port}") and each[3] == "01" and f"socket:[{each[9]}]" in inodes
        for each in fields
    )


def test_tokens_of_native_clients_stay_valid(make: Make) -> None:
    """Without native_secret, each server signs with a key that it has made up."""
    program = make(xet_mode="native")
    program.start("1")

    def send(path: str, token: str) -> http.client.HTTPResponse:
        connection = Connector(port_of(program))()
        fields = {"Authorization": f"Bearer {token}", "Connection": "close"}
        connection.request("GET", path, headers=fields)
        answer = connection.getresponse()
        connection.close()
        return answer

    file_hash = send(f"/{REPO}/resolve/main/{SMALL_XET}", TOKEN).headers["X-Xet-Hash"]
    token = json.loads(send(f"/api/models/{REPO}/xet-read-token/main", TOKEN).read())["accessToken"]
    for _ in range(2):
        assert send(f"/v1/reconstructions/{file_hash}", token).status == 200
        assert send(f"/v1/reconstructions/{file_hash}", f"{token}x").status == 401
        program.upgrade()
    program.stop()


# Damaged data while both generations live


def damage_start(site: Site) -> None:
    """Have the origin invert a byte in the first megabyte of the large file.

    Other xorbs may have these bytes, too: only the reconstruction tells where the file has them.
    """
    with closing(Connection(site.origin.url)) as hub:
        name = hub.ask(f"/{REPO}/resolve/main/{BIG}", method="HEAD").headers["x-xet-hash"]
        given = json.loads(hub.ask(f"/api/models/{REPO}/xet-read-token/main").body)
        path, token = f"/v1/reconstructions/{name}", given["accessToken"]
        first, last = 300_000, 300_063
        answer = hub.ask(path, [("Range", f"bytes={first}-{last}")], token=token)
    xorb = json.loads(answer.body)["terms"][0]["hash"]
    needle = (site.uploaded.folder / BIG).read_bytes()[first : last + 1]
    offset = (site.uploaded.origin_folder / "xorbs" / xorb).read_bytes().index(needle)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset})


@WORKERS
def test_curl_does_not_complete_at_the_new_one_what_the_old_one_cuts(
    site: Site, make: Make, tmp_path: Path, workers: str
) -> None:
    program = make(workers=workers)
    program.start("1")
    url = f"{program.url}{PATH}"
    out = tmp_path / "out"
    damage_start(site)
    with subprocess.Popen(curl(url, Path("-")), stdout=subprocess.PIPE) as slow:
        assert slow.stdout is not None
        begun = slow.stdout.read(MIB)
        old = program.upgrade()
        assert program.is_alive(old)
        out.write_bytes(begun + slow.stdout.read())
        assert slow.wait(PATIENCE) in CUT
    site.control.set_faults()
    assert out.stat().st_size > 60 * MIB
    done = run(curl(url, out, "-C", "-", "--write-out", "%{stderr}%{http_code}"))
    assert (done.returncode, done.stderr[-3:]) == (22, "409")
    assert run(curl(url, out)).returncode == 0, "from the beginning it is right"
    assert sha256_of(out) == site.uploaded.digests[BIG]
    # Everybody hears of a cut of the generation before the last, too.
    program.upgrade()
    part = run(curl(url, tmp_path / "part", "-r", f"{MIB}-"))
    assert part.returncode == 22
    program.stop()


@WORKERS
@pytest.mark.parametrize("first", ["old", "new"])
def test_parts_from_both_generations_do_not_make_a_wrong_file(
    site: Site, make: Make, workers: str, first: str
) -> None:
    """As aria2 gets them, over several connections."""
    program = make(workers=workers)
    program.start("1")
    connect = Connector(port_of(program))
    size = (site.uploaded.folder / BIG).stat().st_size
    damage_start(site)
    one = Part(connect(), 0, size // 2)
    one.read(MIB)
    old = program.upgrade()
    other = Part(connect(), size // 2, size)
    other.read(MIB)
    assert program.is_alive(old)
    parts = [one, other] if first == "old" else [other, one]
    assert parts[0].read(size)
    assert not parts[1].read(size), "together they are wrong"
    for part in parts:
        part.leave()
    program.stop()


class Part:
    """A client that reads a part of the large file, half-open, step by step."""

    def __init__(self, connection: http.client.HTTPConnection, start: int, end: int) -> None:
        self._connection = connection
        self._left = end - start
        fields = {"Authorization": f"Bearer {TOKEN}", "Range": f"bytes={start}-{end - 1}"}
        connection.request("GET", PATH, headers=fields)
        self._answer = connection.getresponse()
        assert self._answer.status == 206

    def read(self, size: int) -> bool:
        """Read up to size bytes; return whether the answer was not cut."""
        try:
            self._left -= len(self._answer.read(min(size, self._left)))
        except (http.client.IncompleteRead, ConnectionResetError):
            return False
        return True

    def leave(self) -> None:
        self._answer.close()
        self._connection.close()


@WORKERS
def test_data_urls_of_native_clients_stay_valid(make: Make, workers: str) -> None:
    """Even if the file is not proven: both generations know which parts were sent."""
    program = make(xet_mode="native", workers=workers)
    program.start("1")

    def send(
        path: str, method: str = "GET", **fields: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = Connector(port_of(program))()
        connection.request(method, path, headers={"Connection": "close", **fields})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, answer.headers, body

    user = f"Bearer {TOKEN}"
    resolved = send(f"/{REPO}/resolve/main/{SMALL_XET}", "HEAD", Authorization=user)
    told = send(f"/api/models/{REPO}/xet-read-token/main", Authorization=user)
    token = f"Bearer {json.loads(told[2])['accessToken']}"
    path = f"/v1/reconstructions/{resolved[1]['X-Xet-Hash']}"
    (info, *_), *_ = json.loads(send(path, Authorization=token)[2])["fetch_info"].values()
    program.upgrade()
    url, span = urlsplit(info["url"]), info["url_range"]
    target, wanted = f"{url.path}?{url.query}", f"bytes={span['start']}-{span['end']}"
    assert send(target, Range=wanted)[0] == 206
    program.stop()


@WORKERS
def test_the_end_of_the_new_one_waits_for_the_old_one(site: Site, make: Make, workers: str) -> None:
    """A service manager ends what is left when the main process has ended."""
    program = make(workers=workers)
    program.start("1")
    slow = SlowDownload(Connector(port_of(program))(), PATH)
    old = program.upgrade()
    program.signal(signal.SIGTERM)
    wait_until(lambda: "waiting for the server before this one" in program.log)
    assert program.is_alive(program.main)
    assert program.is_alive(old)
    assert slow.finish() == site.uploaded.digests[BIG]
    wait_until(lambda: not program.find_processes())


@WORKERS
def test_a_second_signal_does_not_wait(make: Make, workers: str) -> None:
    program = make(workers=workers)
    program.start("1")
    first = SlowDownload(Connector(port_of(program))(), PATH)
    old = program.upgrade()
    second = SlowDownload(Connector(port_of(program))(), PATH)
    program.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM: draining" in program.log)
    program.signal(signal.SIGTERM)
    wait_until(lambda: not program.is_alive(program.main))
    assert program.is_alive(old)
    for said in ("SIGTERM: draining", "SIGTERM: cutting"):
        os.kill(old, signal.SIGTERM)
        wait_until(lambda: program.log.count(said) == 2)  # noqa: B023 - waits here
    wait_until(lambda: not program.find_processes())
    first.leave()
    second.leave()


# What changes nothing

AT_START = 'if "serve" in sys.argv: '
LATE = """
import xetserve.ops.lifecycle as lifecycle
before = lifecycle.serve_until_signal
async def serve(*arguments, **named):
    {what}
lifecycle.serve_until_signal = serve
"""
FAILURES = {
    "it crashes": (AT_START + "sys.exit(3)", "the new server ended with status 3"),
    "it hangs": (AT_START + "import time; time.sleep(3600)", "not ready within 1 s"),
    "it ignores signals": (
        "import signal, time\nfor n in (2, 12, 15): signal.signal(n, 1)\ntime.sleep(3600)",
        "not ready within 1 s",
    ),
    "it crashes late": (
        LATE.format(what="import os; os._exit(4)"),
        "the new server ended before it was ready",
    ),
    "it hangs late": (LATE.format(what="import time; time.sleep(3600)"), "not ready within 1 s"),
}


@pytest.mark.parametrize(
    ("workers", "failure"),
    [*(("1", failure) for failure in FAILURES), ("2", "it crashes late"), ("2", "it hangs late")],
)
def test_a_version_that_does_not_start_changes_nothing(
    site: Site, make: Make, tmp_path: Path, workers: str, failure: str
) -> None:
    path = tmp_path / "socket"
    program = make(workers=workers, unix_socket=str(path), cache_dir=str(tmp_path / "cache"))
    program.start("1", IMPATIENT)
    connect = Connector(port_of(program))
    with NewClients(connect, (site.uploaded.folder / SMALL).read_bytes()) as clients:
        slow = SlowDownload(connect(), PATH)
        processes = program.find_processes()
        assert len(processes) == (1 if workers == "1" else 3)
        inode = path.stat().st_ino
        code, reason = FAILURES[failure]
        program.install("2", code)
        assert reason in program.upgrade_failing(is_impatient="not ready" in reason)
        wait_until(lambda: program.find_processes() == processes)
        clients.go_on()
        assert slow.finish() == site.uploaded.digests[BIG]
    assert clients.failures == []
    assert {json.loads(each)["version"] for each in clients.versions} == {"1"}
    assert path.stat().st_ino == inode
    wait_until(lambda: not list((tmp_path / "cache" / "tmp").iterdir()))
    assert metric(program, "xetserve_last_upgrade_successful") == "0"
    # Once it is repaired, it takes over.
    program.install("3")
    program.upgrade()
    wait_until(lambda: version_of(connect()) == "3")  # an old worker may accept one more
    assert metric(program, "xetserve_last_upgrade_successful") == "1"
    program.stop()


@WORKERS
def test_settings_that_are_wrong_change_nothing(make: Make, workers: str) -> None:
    program = make(workers=workers)
    program.start("1")
    processes = program.find_processes()
    before = program.config.read_text()
    program.config.write_text(f"{before}\n[wrong]\n")
    assert program.upgrade_failing() == "the new server ended with status 2"
    assert "unknown section or key 'wrong'" in program.log
    program.config.write_text(before)
    program.configure(status_listen=f"127.0.0.1:{port_of(program)}")  # it is in use
    assert program.upgrade_failing() == "the new server ended with status 2"
    assert "another --status-listen" in program.log
    program.script.unlink()
    assert program.upgrade_failing() == "the new server ended with status 2"
    assert program.find_processes() == processes
    assert version_of(Connector(port_of(program))()) == "1"
    program.stop()


@WORKERS
def test_an_upgrade_during_an_upgrade_is_refused_and_ends_with_the_server(
    make: Make, workers: str
) -> None:
    program = make(workers=workers)
    program.start("1")
    num = len(program.find_processes())
    program.install("2", FAILURES["it ignores signals"][0])
    program.signal(signal.SIGUSR2)
    wait_until(lambda: len(program.find_processes()) == num + 1)
    for _ in range(2):
        said = program.log.count("an upgrade is under way")
        program.signal(signal.SIGUSR2)
        wait_until(lambda: program.log.count("an upgrade is under way") > said)  # noqa: B023
    assert len(program.find_processes()) == num + 1
    program.signal(signal.SIGTERM)
    assert program.process.popen.wait(timeout=PATIENCE) == 0
    assert "the upgrade was given up" in program.log
    wait_until(lambda: not program.find_processes())


@WORKERS
def test_the_new_one_ends_if_the_old_one_dies_before_it_hands_over(
    make: Make, tmp_path: Path, workers: str
) -> None:
    """Whoever kills the server does not expect that another one appears."""
    go_on = tmp_path / "go on"
    code = (
        f"import pathlib, time\nwhile not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.01)"
    )
    program = make(workers=workers)
    program.start("1")
    num = len(program.find_processes())
    program.install("2", code)
    program.signal(signal.SIGUSR2)
    wait_until(lambda: len(program.find_processes()) == num + 1)
    program.signal(signal.SIGKILL)
    go_on.touch()
    wait_until(lambda: not program.find_processes())
    wait_until(lambda: "ended without handing over" in program.log)


def test_workers_and_former_generations_ignore_the_signal(make: Make, site: Site) -> None:
    """`systemctl kill` sends it to all processes of the service."""
    program = make(workers="2")
    server = program.start("1")
    slow = SlowDownload(Connector(port_of(program))(), PATH)
    for worker in worker_pids(server):
        os.kill(worker, signal.SIGUSR2)
    program.upgrade()
    assert program.log.count("SIGUSR2: starting") == 1
    for pid in program.find_processes() - {program.main}:
        os.kill(pid, signal.SIGUSR2)
    wait_until(lambda: "a new server has taken over already" in program.log)
    assert slow.finish() == site.uploaded.digests[BIG]
    assert server.popen.wait(timeout=PATIENCE) == 0
    program.stop()


# Under a service manager


class Manager:
    """Has the socket of the service, and hears what its processes say."""

    def __init__(self, folder: Path) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.address = str(folder / "notify")
        self._notify.bind(self.address)

    def read(self) -> tuple[int, str]:
        """Wait for a message; gives the process that sent it."""
        assert select.select([self._notify], [], [], PATIENCE)[0], "nothing was said"
        size = struct.calcsize("3i")
        data, ancillary, _, _ = self._notify.recvmsg(4096, socket.CMSG_SPACE(size))
        return struct.unpack("3i", ancillary[0][2][:size])[0], data.decode()

    def close(self) -> None:
        self.listening.close()
        self._notify.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    yield manager
    manager.close()


def start_managed(program: Program, manager: Manager) -> Process:
    return program.start_on(
        manager.listening,
        "1",
        "",
        NOTIFY_SOCKET=manager.address,
        WATCHDOG_USEC="4000000",
    )


@WORKERS
def test_the_manager_hears_of_the_main_process_only(
    site: Site, make: Make, manager: Manager, workers: str
) -> None:
    program = make(workers=workers, idle_exit="60")
    start_managed(program, manager)
    slow = SlowDownload(Connector(port_of(program))(), PATH)
    old = program.main
    program.install("2", AT_START + "sys.exit(3)")
    program.upgrade_failing()
    while (heard := manager.read()) != (old, f"READY=1\nMAINPID={old}"):
        assert heard[0] == old
    failed = (
        r"STATUS=the upgrade at \d\d:\d\d:\d\d has failed: the new server ended with status 3; 1 c"
    )
    while not re.match(failed, heard[1]):
        heard = manager.read()
    program.install("2")
    program.upgrade()
    while (heard := manager.read()) != (old, f"READY=1\nMAINPID={program.main}"):
        assert heard[0] == old
    missing = {"READY=1", "WATCHDOG=1", "STATUS=0 connections"}
    while missing:  # and nothing that is from the old one
        pid, text = manager.read()
        assert pid == program.main
        missing = {each for each in missing if not text.startswith(each)}
    assert slow.finish() == site.uploaded.digests[BIG]
    assert program.process.popen.wait(timeout=PATIENCE) == 0
    wait_until(lambda: version_of(Connector(port_of(program))()) == "2")
    program.stop()
    while (heard := manager.read())[1] != "STOPPING=1\nSTATUS=draining":
        assert heard[0] == program.main


def test_the_new_main_process_is_not_a_child_of_the_old_one(make: Make, manager: Manager) -> None:
    """systemd waits for its children only: it would kill another one when it stops the service."""
    program = make()
    start_managed(program, manager)
    slow = SlowDownload(Connector(port_of(program))(), PATH)
    old = program.upgrade()
    parent = int(Path(f"/proc/{program.main}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent not in {old, os.getpid()}
    assert program.main not in map(int, worker_pids_of(old))
    slow.leave()
    program.stop()
