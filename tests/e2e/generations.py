"""A server whose program is replaced on the disk, and the processes that it becomes."""

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from tests.conftest import Process, clean_environment
from tests.e2e.conftest import REPO, TOKEN, Site
from tests.e2e.dataset import MIB
from tests.waiting import PATIENCE, wait_until

BIG = "big.bin"
SMALL = "config.json"
TAKEN_OVER = re.compile(r"the new server, process (\d+), has taken over")
SCRIPT = """\
#!{python}
import sys
import xetserve
xetserve.__version__ = {version!r}
{code}
from xetserve.cli import main
sys.exit(main())
"""
# With SIGUSR1, the next generation has a second to be ready; with SIGUSR1 again, as long as ever.
IMPATIENT = """
import signal, xetserve.ops.generations as generations
patience = generations.TIMEOUT
def toggle(*_):
    generations.TIMEOUT = 1.0 if generations.TIMEOUT == patience else patience
signal.signal(signal.SIGUSR1, toggle)
"""


class Program:
    """A server of its own program and settings, which a test may replace.

    main: the process id of the generation that is expected to accept clients.
    """

    def __init__(self, site: Site, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.script = folder / "program"
        self.config = folder / "settings.toml"
        self.settings: dict[str, str] = {
            "host": "127.0.0.1",
            "port": "0",
            "hub_url": site.origin.url,
            "log_level": "debug",
            "metadata_ttl": "0",
            "drain_timeout": "600",  # a slow machine must not cut what a test reads
            **settings,
        }
        self.main = 0
        self._process: Process | None = None

    def install(self, version: str, code: str = "") -> None:
        """Replace the program on the disk."""
        new = self.script.with_suffix(".new")
        new.write_text(SCRIPT.format(python=sys.executable, version=version, code=code))
        new.chmod(0o755)
        new.replace(self.script)

    def configure(self, **settings: str) -> None:
        """Replace the file of settings."""
        self.settings |= settings
        self.config.write_text(write_toml(self.settings))

    def start(self, version: str, code: str = "", **environment: str) -> Process:
        """Start the first generation; environment: of the process."""
        self.install(version, code)
        self.configure()
        command = [str(self.script), "serve", "--config", str(self.config)]
        return self._follow(command, (), environment)

    def start_on(self, sock: socket.socket, version: str, code: str, **environment: str) -> Process:
        """Start the first generation on a socket, as a service manager does."""
        self.install(version, code)
        self.configure()
        begin = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
        command = [
            *(sys.executable, "-c", begin, str(sock.fileno())),
            *(str(self.script), "serve", "--config", str(self.config)),
        ]
        given = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", **environment}
        return self._follow(command, (sock.fileno(),), given)

    def _follow(
        self, command: list[str], sockets: tuple[int, ...], environment: Mapping[str, str]
    ) -> Process:
        popen = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=sockets,
            env=clean_environment(**environment),
        )
        self._process = Process(popen, self.folder / "log")
        self.main = popen.pid
        self._process.follow_log()
        return self._process

    @property
    def process(self) -> Process:
        """The first generation."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return self.process.log

    @property
    def url(self) -> str:
        return self.process.url

    def find_processes(self) -> set[int]:
        """Return the process ids of all generations and their workers.

        One that forks and ends while the processes are listed may be missed with its child, so they
        are listed twice if there seem to be none.
        """
        return self._list_processes() or self._list_processes()

    def _list_processes(self) -> set[int]:
        marker = os.fsencode(self.config)
        found = set()
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdigit() and marker in (folder / "cmdline").read_bytes():
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    found |= {int(folder.name)} if state != "Z" else set()
        return found

    def is_alive(self, pid: int) -> bool:
        return pid in self.find_processes()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.main, number)

    def upgrade(self) -> int:
        """Upgrade, and wait until a new generation has taken over; gives the id of the old one."""
        num = len(TAKEN_OVER.findall(self.log))
        old = self.main
        self.signal(signal.SIGUSR2)
        wait_until(lambda: len(TAKEN_OVER.findall(self.log)) > num)
        self.main = int(TAKEN_OVER.findall(self.log)[-1])
        wait_until(lambda: self.log.count(" listening on ") > num + 1)
        return old

    def upgrade_failing(self, *, is_impatient: bool = False) -> str:
        """Upgrade, and wait until that has failed; gives the reason.

        Args:
            is_impatient: the program is IMPATIENT, and the new one hangs.
        """
        reason = re.compile(r"the upgrade has failed: (.*); this server goes on")
        num = len(reason.findall(self.log))
        if is_impatient:
            self.signal(signal.SIGUSR1)
        self.signal(signal.SIGUSR2)
        wait_until(lambda: len(reason.findall(self.log)) > num)
        if is_impatient:
            self.signal(signal.SIGUSR1)
        found: str = reason.findall(self.log)[-1]
        return found

    def stop(self) -> None:
        """Stop the generation that accepts clients, and wait until no process is left."""
        self.signal(signal.SIGTERM)
        wait_until(lambda: not self.find_processes())

    def clean_up(self) -> None:
        """Kill what a test that failed has left."""
        for pid in self.find_processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.popen.wait(timeout=PATIENCE)
            if self._process.follower is not None:
                self._process.follower.join()


def write_toml(settings: Mapping[str, str]) -> str:
    """Return a file of settings in the sections that they belong to."""
    from dataclasses import fields

    from xetserve.config.schema import SECTIONS

    lines = []
    for name, section in SECTIONS.items():
        lines.append(f"[{name}]")
        for setting in fields(section):
            if setting.name in settings:
                value = settings[setting.name]
                lines.append(f"{setting.name} = {value if value.isdigit() else f'{value!r}'}")
    return "\n".join(lines)


class NewClients:
    """Clients that connect anew for each request, until they are told to stop.

    versions: what /health said, in the order in which the answers came.
    slowest: seconds that an answer took at most, from the connection on.
    """

    def __init__(self, connect: Any, content: bytes, num: int = 3) -> None:
        self._connect = connect
        self._content = content
        self._is_over = threading.Event()
        self.versions: list[str] = []
        self.failures: list[str] = []
        self.slowest = 0.0
        self._threads = [threading.Thread(target=self._run) for _ in range(num)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            start = time.monotonic()
            try:
                content = ask(self._connect(), f"/download/{REPO}/{SMALL}")
                self.slowest = max(self.slowest, time.monotonic() - start)
                health = ask(self._connect(), "/health")
            except (OSError, http.client.HTTPException, AssertionError) as exc:
                self.failures.append(repr(exc))
                continue
            if content != self._content:
                self.failures.append(repr(content[:100]))
            self.versions.append(health.decode())

    def go_on(self, num: int = 10) -> None:
        """Wait until so many more are answered."""
        goal = len(self.versions) + num
        wait_until(lambda: len(self.versions) + len(self.failures) >= goal)


def ask(connection: http.client.HTTPConnection, path: str) -> bytes:
    """Return the body of an answer; the connection is closed afterwards."""
    try:
        fields = {"Authorization": f"Bearer {TOKEN}", "Connection": "close"}
        connection.request("GET", path, headers=fields)
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        return answer.read()
    finally:
        connection.close()


class Connector:
    """Opens connections to a server, over TLS or not.

    Args:
        authority: the file with the authority's certificate; None: no TLS.
    """

    def __init__(self, port: int, authority: Path | None = None) -> None:
        self._port = port
        self._context = None if authority is None else ssl.create_default_context(cafile=authority)

    def __call__(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        return http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=PATIENCE, context=self._context
        )


class SlowDownload:
    """A client that has begun with a large file, and reads the rest when it is told to."""

    def __init__(self, connection: http.client.HTTPConnection, path: str) -> None:
        self._connection = connection
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        self._answer = connection.getresponse()
        assert self._answer.status == 200
        self._digest = sha256(self._answer.read(MIB))

    def finish(self) -> str:
        """Read the rest; gives the sha256 of all of it."""
        while data := self._answer.read(MIB):
            self._digest.update(data)
        self.leave()
        return self._digest.hexdigest()

    def leave(self) -> None:
        """Close the connection."""
        self._answer.close()
        self._connection.close()
