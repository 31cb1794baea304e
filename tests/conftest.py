"""Fixtures: real processes of ours, real clients in front of them. The loop is uvloop."""

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import settings

from tests.programs import PACKAGES, find_missing, find_program
from xetserve.base.log_limit import LOG_LIMIT

START_TIMEOUT = 30.0
# An example that takes long says something of the machine, nothing of what is tested.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
LISTENING = re.compile(r"listening on (https?://\S+?:\d+|unix:\S+)")


# A background job of a shell ignores SIGINT, and so would the servers that tests start in it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Name all missing programs once: not for each test, nor for each process of pytest-xdist."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    missing = find_missing()
    if missing and reporter is not None and not hasattr(session.config, "workerinput"):
        reporter.write_line(
            f"Missing programs: {', '.join(missing)}. Tests that run them will fail. "
            "`.ci/run tests` installs them, or: "
            f"sudo apt-get install {' '.join(dict.fromkeys(missing.values()))}",
            red=True,
        )


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on the loop that the server runs on."""
    return {"uvloop": uvloop.new_event_loop}


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a child: no settings of ours, no proxies, no tokens of the user's."""
    drop = re.compile(r"(?i)^(XETSERVE_.*|PORT|.*_proxy|HF_.*)$")
    kept = {name: value for name, value in os.environ.items() if not drop.match(name)}
    return {**kept, "NO_PROXY": "*", **extra}


@dataclass
class Process:
    """A xetserve command that is running, and all that it has logged."""

    popen: subprocess.Popen[str]
    log_path: Path
    url: str = ""
    follower: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def follow_log(self) -> None:
        """Keep the log in a file from now on; returns once the process listens.

        Raises:
            AssertionError: it ended before.
        """
        is_listening = threading.Event()

        def follow() -> None:
            assert self.popen.stderr is not None
            with self.log_path.open("w") as log, self.popen.stderr as lines:
                for line in lines:
                    log.write(line)
                    log.flush()
                    if not self.url and (match := LISTENING.search(line)):
                        self.url = match[1]
                        is_listening.set()
            is_listening.set()

        self.follower = threading.Thread(target=follow)
        self.follower.start()
        assert is_listening.wait(START_TIMEOUT)
        assert self.url, f"did not start:\n{self.log}"

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        status = self.popen.wait(timeout=START_TIMEOUT)
        if self.follower is not None:
            self.follower.join()
        return status

    def peak_memory(self) -> int:
        """Bytes of resident memory at most, so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


def with_files(max_files: int, command: list[str]) -> list[str]:
    """The command, with a limit on the files that it may open."""
    return ["sh", "-c", f'ulimit -n {max_files} && exec "$@"', "sh", *command]


@dataclass
class Launcher:
    """Starts commands, and stops them all at the end.

    max_files: that each may open; None: as many as we may.
    """

    folder: Path
    max_files: int | None = None
    running: list[Process] = field(default_factory=list)

    def start(self, *arguments: str, code: str | None = None, **environment: str) -> Process:
        """Start `xetserve ARGUMENTS` and wait until it listens.

        Args:
            code: Python that runs first, in the same process.
        """
        command = [sys.executable, "-m", "xetserve", *arguments]
        if code is not None:
            begin = f"import sys, xetserve.cli\n{code}\nsys.exit(xetserve.cli.main())"
            command = [sys.executable, "-c", begin, *arguments]
        if self.max_files is not None:
            command = with_files(self.max_files, command)
        popen = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(**environment),
        )
        process = Process(popen, self.folder / f"{arguments[0]}-{len(self.running)}.log")
        self.running.append(process)
        process.follow_log()
        return process

    def stop_all(self) -> None:
        for process in self.running:
            process.stop()


@pytest.fixture(autouse=True)
def _forget_log_limit() -> Iterator[None]:
    """Let each test see its first line about a cause."""
    yield
    LOG_LIMIT.flush()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launched = Launcher(tmp_path)
    yield launched
    launched.stop_all()


def need_program(name: str) -> str:
    """Return the path of one of PACKAGES; a machine that runs the tests has to have it."""
    assert name in PACKAGES, f"add {name} to tests/programs.py"
    path = find_program(name)
    assert path is not None, f"{name} is missing: apt-get install {PACKAGES[name]}"
    return path


@dataclass
class OriginControl:
    """The origin's test controls."""

    url: str

    def set_faults(self, **faults: Any) -> None:
        self._call("POST", "/_test/faults", json.dumps(faults).encode())

    def requests(self) -> list[dict[str, Any]]:
        """What the origin was asked since the last reset, except whether it answers at all."""
        found: list[dict[str, Any]] = json.loads(self._call("GET", "/_test/requests"))
        return [each for each in found if each["path"] != "/"]

    def reset_requests(self) -> None:
        self._call("DELETE", "/_test/requests")

    def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=START_TIMEOUT) as response:
            content: bytes = response.read()
            return content


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
