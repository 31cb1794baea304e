"""The checks of boot.py, run as root inside the booted system: what systemd, our units and our
server do together.

Needs nothing but the standard library. A check is a function; its docstring is what it shows. The
first one that fails ends it all, with the journal.
"""

import hashlib
import http.client
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

PATIENCE = 60.0  # seconds
PORT = 8080
TOKEN = "hf_boot0123456789"
REPO = "tester/files"
MIB = 1024 * 1024
CONFIG = Path("/etc/xetserve/xetserve.toml")
ENVIRONMENT = Path("/etc/xetserve/xetserve.env")
STORE = Path("/etc/credstore")
DROP_INS = Path("/run/systemd/system/xetserve.service.d")
SERVICE = "xetserve.service"
SOCKET = "xetserve.socket"
SECRET = "a secret for native clients made for tests"

# The server, but SIGUSR1 makes its event loop stuck: other threads go on.
STUCK = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))
from xetserve.cli import main
sys.exit(main())
"""

digests: dict[str, str] = {}


# Tools


def sh(*command: str, may_fail: bool = False) -> str:
    """Run a command; gives what it says."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE * 2, check=False
    )
    assert may_fail or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return (done.stdout + done.stderr).strip()


def show(name: str, unit: str = SERVICE) -> str:
    """Give a property of a unit."""
    return sh("systemctl", "show", "--value", "-p", name, unit)


def main_pid() -> int:
    return int(show("MainPID"))


def workers() -> list[int]:
    pid = main_pid()
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(condition: Callable[[], bool], what: str) -> float:
    """Wait for something that nothing tells us of; gives the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + PATIENCE, f"never: {what}"
        time.sleep(0.02)
    return time.monotonic() - start


def journal(unit: str = SERVICE) -> str:
    return sh("journalctl", "--no-pager", "-o", "cat", "-u", unit)


def connect() -> socket.socket:
    return socket.create_connection(("127.0.0.1", PORT), timeout=PATIENCE)


def ask(path: str) -> http.client.HTTPResponse:
    """Ask for a path, and leave the body unread."""
    client = http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {TOKEN}", "Connection": "close"}
    client.request("GET", path, headers=headers)
    return client.getresponse()


def get(path: str) -> bytes:
    """Give the body at a path."""
    with ask(path) as answer:
        assert answer.status == 200, answer.status
        return answer.read()


def download(name: str) -> None:
    """Download a file, which has to be right."""
    assert hashlib.sha256(get(f"/download/{REPO}/{name}")).hexdigest() == digests[name]


def settings(*lines: str) -> None:
    """Have these environment variables, and restart with them."""
    ENVIRONMENT.write_text("\n".join(lines) + "\n")
    sh("systemctl", "restart", SERVICE)


def drop_in(name: str, text: str) -> None:
    DROP_INS.mkdir(parents=True, exist_ok=True)
    (DROP_INS / f"{name}.conf").write_text(f"{text}\n")
    sh("systemctl", "daemon-reload")


def start_anew() -> None:
    """Have the service as it is shipped, not running, its socket waiting."""
    shutil.rmtree(DROP_INS, ignore_errors=True)
    ENVIRONMENT.unlink(missing_ok=True)
    sh("systemctl", "daemon-reload")
    sh("systemctl", "stop", SERVICE, SOCKET)
    sh("systemctl", "reset-failed")
    sh("systemctl", "start", SOCKET)
    assert show("ActiveState") == "inactive"


def send_and_wait(client: socket.socket) -> bytes:
    """Give the first line of the answer to a request on a connection."""
    client.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    with client.makefile("rb") as answer:
        return answer.readline().strip()


class SlowDownload:
    """A client that has begun with a large file, and takes about a second for the rest."""

    def __enter__(self) -> Self:
        self._answer = ask(f"/download/{REPO}/big.bin")
        self._digest = hashlib.sha256(self._answer.read(MIB))
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()

    def finish(self) -> None:
        """Read the rest; the file has to be right."""
        while data := self._answer.read(MIB):
            self._digest.update(data)
            time.sleep(0.02)
        assert self._digest.hexdigest() == digests["big.bin"]


class Load:
    """Clients that ask again and again, each time on a connection of its own; any failure
    counts.
    """

    def __init__(self, num_clients: int = 4) -> None:
        self.num_served = 0
        self.longest = 0.0
        self.failures: list[str] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_clients)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._is_over.is_set():
            start = time.monotonic()
            try:
                download("small.txt")
            except (OSError, http.client.HTTPException, AssertionError) as exc:
                self.failures.append(repr(exc))
            self.num_served += 1
            self.longest = max(self.longest, time.monotonic() - start)

    def go_on(self, num: int = 40) -> None:
        """Wait until so many more are served."""
        goal = self.num_served + num
        until(lambda: self.num_served >= goal, "requests are served")

    def stop(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()


# Checks


def prepare() -> str:
    """an origin with files"""
    folder = Path("/srv/files")
    folder.mkdir(parents=True)
    source = random.Random(1)
    for name, size in (("small.txt", 5000), ("big.bin", 48 * MIB)):
        content = source.randbytes(size)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    unit = f"""[Service]
ExecStart=/opt/xetserve/bin/xetserve origin /srv/origin --host 127.0.0.1 --port 9090 \
--import {REPO}={folder} --token {TOKEN}=tester
Type=notify
"""
    Path("/run/systemd/system").mkdir(parents=True, exist_ok=True)
    Path("/run/systemd/system/origin.service").write_text(unit)
    CONFIG.parent.mkdir(parents=True)
    CONFIG.write_text('[hub]\nhub_url = "http://127.0.0.1:9090"\n')
    STORE.mkdir(exist_ok=True, mode=0o700)
    secret = STORE / "xetserve.native_secret"
    secret.touch(0o600)
    secret.write_text(SECRET)
    sh("systemctl", "daemon-reload")
    sh("systemctl", "start", "origin.service")
    return sh("systemctl", "--version").splitlines()[0]


def static() -> str:
    """systemd-analyze: verify is silent, security at most 1.0"""
    folder = Path("/etc/systemd/system")
    said = sh("systemd-analyze", "verify", str(folder / SERVICE), str(folder / SOCKET))
    assert not said, said
    rated = sh("systemd-analyze", "security", "--threshold=10", SERVICE)
    return rated.splitlines()[-1].strip()


def activation() -> str:
    """the first request starts the service through the socket; READY, STATUS"""
    assert show("ActiveState") == "inactive"
    assert show("ActiveState", SOCKET) == "active"
    start = time.monotonic()
    assert b'"ok"' in get("/health")
    seconds = time.monotonic() - start
    assert show("ActiveState") == "active"
    assert show("NRestarts") == "0"
    until(lambda: "1 requests answered" in show("StatusText"), "figures in the status")
    return f"{seconds:.2f} s; status: {show('StatusText')}"


def sandbox() -> str:
    """a verified download in the sandbox; the secret is a credential, the cache is on disk"""
    download("big.bin")
    status = Path(f"/proc/{main_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert int(fields["CapBnd"], 16) == 0
    assert fields["Uid"].split()[0] != "0"
    cached = sum(file.stat().st_size for file in Path("/var/cache/private/xetserve").rglob("*"))
    assert cached > 40 * MIB, cached
    mapped = Path(f"/proc/{main_pid()}/maps").read_text()
    assert "/uvloop/loop" in mapped
    assert "/xetserve/xet/_bg4" in mapped
    environment = Path(f"/proc/{main_pid()}/environ").read_text()
    assert "CREDENTIALS_DIRECTORY=" in environment
    assert SECRET not in environment
    return (
        f"uid {fields['Uid'].split()[0]}, cache {cached // MIB} MiB, peak {fields['VmHWM'].strip()}"
    )


def credentials() -> str:
    """a credential that is no good stops the start: they are read"""
    (STORE / "xetserve.native_secret").write_text("short")
    assert "failed" in sh("systemctl", "restart", SERVICE, may_fail=True)
    sh("systemctl", "stop", SERVICE)
    (STORE / "xetserve.native_secret").write_text(SECRET)
    start_anew()
    get("/health")
    line = next(each for each in journal().splitlines() if "native_secret" in each)
    assert "short" not in line.replace("at least", "")
    return line


def reload() -> str:
    """reload takes new settings, in the same process"""
    pid = main_pid()
    before = CONFIG.read_text()
    CONFIG.write_text(before + '[log]\naccess_log = "json"\n')
    sh("systemctl", "reload", SERVICE)
    until(lambda: "reloaded; changed: access_log" in journal(), "the reload")
    until(lambda: show("ActiveState") == "active", "READY after it")
    before_failure = journal()
    CONFIG.write_text(before + '[memory]\nmemory_budget = "64MiB"\n')
    sh("systemctl", "reload", SERVICE)
    until(lambda: "a restart is needed" in journal(), "the warning")
    warnings = sh("journalctl", "-u", SERVICE, "-p", "warning", "-o", "cat")
    assert "\nWARNING xetserve.commands.serve.reload: a restart" in f"\n{warnings}", warnings
    assert "INFO" not in warnings, warnings
    CONFIG.write_text(before + "[log]\naccess_log = 3\n")
    failed = subprocess.run(["systemctl", "reload", SERVICE], capture_output=True, check=False)
    assert failed.returncode != 0, "a reload of invalid settings succeeded"
    assert show("ActiveState") == "active"
    assert "access_log must be" in journal().removeprefix(before_failure)
    CONFIG.write_text(before)
    assert main_pid() == pid
    get("/health")
    return ""


def stuck_loop() -> str:
    """the watchdog kills a server whose event loop is stuck, and the queued request is answered"""
    Path("/run/stuck.py").write_text(STUCK)
    drop_in(
        "stuck",
        "[Service]\nWatchdogSec=3\nExecStart=\nExecStart=/opt/xetserve/bin/python /run/stuck.py "
        f"--config {CONFIG}",
    )
    sh("systemctl", "restart", SERVICE)
    pid = main_pid()
    time.sleep(5)  # longer than the watchdog: signs of life do come
    assert main_pid() == pid
    assert show("NRestarts") == "0"
    start = time.monotonic()
    os.kill(pid, signal.SIGUSR1)
    with connect() as client:
        assert send_and_wait(client) == b"HTTP/1.1 200 OK"
    assert main_pid() != pid
    assert show("NRestarts") == "1"
    assert "Watchdog timeout" in journal()
    return f"answered after {time.monotonic() - start:.1f} s with WatchdogSec=3"


def stuck_worker() -> str:
    """so does one worker of two that is stuck"""
    drop_in("stuck", "[Service]\nWatchdogSec=3")
    settings("XETSERVE_WORKERS=2")
    pid, children = main_pid(), workers()
    assert len(children) == 2
    time.sleep(5)
    assert (main_pid(), workers()) == (pid, children)
    os.kill(children[1], signal.SIGSTOP)
    start = time.monotonic()
    until(lambda: main_pid() not in (0, pid), "another main process")
    seconds = time.monotonic() - start
    get("/health")
    assert "an event loop is stuck" in journal()
    return f"killed and started again after {seconds:.1f} s"


def broken() -> str:
    """a service that cannot start is given up soon, clients are told, and it can be repaired"""
    start_anew()
    before = CONFIG.read_text()
    CONFIG.write_text("[server]\ncolour = 'red'\n")
    start = time.monotonic()
    with connect() as client:
        try:
            told = client.recv(1)
        except ConnectionResetError:
            told = b""
    assert told == b""
    seconds = time.monotonic() - start
    until(lambda: show("Result", SOCKET) == "service-start-limit-hit", "the end of the socket")
    CONFIG.write_text(before)
    sh("systemctl", "reset-failed", SERVICE)
    sh("systemctl", "start", SOCKET)
    get("/health")
    return f"after {seconds:.1f} s"


def crash() -> str:
    """a crash: started again, the queued request is answered"""
    start_anew()
    get("/health")
    pid = main_pid()
    os.kill(pid, signal.SIGSTOP)
    with connect() as client:
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        assert send_and_wait(client) == b"HTTP/1.1 200 OK"
    assert main_pid() != pid
    return f"answered after {time.monotonic() - start:.1f} s"


def drain() -> str:
    """stop lets a download finish; who comes meanwhile waits and is answered by the next process"""
    start_anew()
    with SlowDownload() as slow:
        pid = main_pid()
        sh("systemctl", "stop", "--no-block", SERVICE)
        until(lambda: show("StatusText").startswith("draining"), "draining")
        state, status = show("ActiveState"), show("StatusText")
        assert state == "deactivating"
        # Accepted by nobody; systemd has the socket.
        late = connect()
        slow.finish()
    with late:
        assert send_and_wait(late) == b"HTTP/1.1 200 OK"
    assert main_pid() not in (0, pid)
    assert " cut head=" not in journal().rpartition("draining")[2].partition("listening on")[0]
    return f"status: {status}"


def idle_exit(num_workers: int) -> str:
    """it leaves when it is idle, and the next request starts it again"""
    start_anew()
    settings(f"XETSERVE_WORKERS={num_workers}", "XETSERVE_IDLE_EXIT=2")
    pid = main_pid()
    with connect() as held:
        time.sleep(3)
        assert main_pid() == pid, "left although a client was connected"
        assert send_and_wait(held) == b"HTTP/1.1 200 OK"
    seconds = until(lambda: show("ActiveState") == "inactive", "the exit")
    assert show("Result") == "success"
    assert show("ActiveState", SOCKET) == "active"
    start = time.monotonic()
    get("/health")
    assert main_pid() not in (0, pid)
    return f"left after {seconds:.1f} s, awake again in {time.monotonic() - start:.2f} s"


def idle_race(num_workers: int) -> str:
    """requests at the very moment of leaving are all answered"""
    start_anew()
    drop_in("often", "[Unit]\nStartLimitIntervalSec=0")
    settings(f"XETSERVE_WORKERS={num_workers}", "XETSERVE_IDLE_EXIT=0.4")
    source = random.Random(3)
    starts = journal().count("listening on")
    for _ in range(40):
        time.sleep(source.uniform(0.38, 0.52))
        get("/health")
    starts = journal().count("listening on") - starts
    assert starts >= 5, starts
    assert "failed" not in show("ActiveState", SOCKET)
    return f"40 requests, {starts} starts"


def upgrade(num_workers: int) -> str:
    """restarts behind the socket under load lose no request and no download"""
    start_anew()
    settings(f"XETSERVE_WORKERS={num_workers}")
    load = Load()
    pids = {main_pid()}
    try:
        for _ in range(4):
            load.go_on()
            with SlowDownload() as slow:
                restart = subprocess.Popen(["systemctl", "restart", SERVICE])
                slow.finish()
                assert restart.wait(timeout=PATIENCE) == 0
            pids.add(main_pid())
        load.go_on()
    finally:
        load.stop()
    assert not load.failures, load.failures[:5]
    assert len(pids) == 5
    return f"{load.num_served} requests, 4 restarts, longest wait {load.longest:.2f} s"


def tls() -> str:
    """certificate and key are credentials, and the port speaks TLS"""
    start_anew()
    for name, file in (("tls_cert", "cert.pem"), ("tls_key", "key.pem")):
        target = STORE / f"xetserve.{name}"
        target.touch(0o600)
        target.write_bytes(Path("/checks", file).read_bytes())
    context = ssl.create_default_context(cafile="/checks/cert.pem")
    client = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=PATIENCE, context=context)
    client.request("GET", "/health")
    assert client.getresponse().status == 200
    client.close()
    sh("systemctl", "stop", SERVICE)
    for name in ("tls_cert", "tls_key"):
        (STORE / f"xetserve.{name}").unlink()
    return ""


CHECKS: list[tuple[Callable[..., str], tuple[int, ...]]] = [
    (prepare, ()),
    (static, ()),
    (activation, ()),
    (sandbox, ()),
    (credentials, ()),
    (reload, ()),
    (stuck_loop, ()),
    (stuck_worker, ()),
    (broken, ()),
    (crash, ()),
    (drain, ()),
    (idle_exit, (1,)),
    (idle_exit, (2,)),
    (idle_race, (1,)),
    (idle_race, (2,)),
    (upgrade, (1,)),
    (upgrade, (2,)),
    (tls, ()),
]


def run_checks(
    checks: Sequence[tuple[Callable[..., object], tuple[int, ...]]],
    prepare: Callable[[], object],
) -> int:
    """Run checks, each with its arguments, once the boot is over; gives the status of the process.

    Args:
        prepare: called before the first check.
    """
    begun = time.monotonic()
    # At first there is nobody to ask.
    state = ("systemctl", "is-system-running")
    until(lambda: sh(*state, may_fail=True) in ("running", "degraded"), "the end of the boot")
    prepare()
    for check, arguments in checks:
        start = time.monotonic()
        workers_text = f" ({arguments[0]} workers)" if arguments else ""
        title = f"{check.__name__}{workers_text}: {check.__doc__}"
        try:
            result = check(*arguments)
        except (
            *(AssertionError, OSError, http.client.HTTPException, ValueError),
            *(StopIteration, subprocess.SubprocessError),
        ) as exc:
            sys.stdout.write(f"not ok - {title}\n  {exc!r}\n")
            sys.stdout.write(
                sh("systemctl", "status", "--no-pager", SERVICE, SOCKET, may_fail=True)
            )
            said = sh("journalctl", "--no-pager", "-o", "short-precise", may_fail=True)
            lines = [line for line in said.splitlines() if "xetserve.access:" not in line]
            sys.stdout.write("\n" + "\n".join(lines[-60:]) + "\n")
            return 1
        seconds = time.monotonic() - start
        sys.stdout.write(
            f"ok - {title} [{seconds:.1f} s]\n" + (f"     {result}\n" if result else "")
        )
        sys.stdout.flush()
    sys.stdout.write(f"all {len(checks)} checks passed in {time.monotonic() - begun:.0f} s\n")
    return 0


def main() -> int:
    return run_checks(CHECKS, lambda: sh("systemctl", "start", SOCKET))


if __name__ == "__main__":
    sys.exit(main())
