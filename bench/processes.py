"""Child processes: started, measured from outside through /proc, and always stopped."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

START_TIMEOUT: Final = 60.0  # seconds
STOP_TIMEOUT: Final = 10.0
LISTENING: Final = re.compile(r"listening on (http://\S+?:\d+)")

_DROPPED: Final = re.compile(r"(?i)(XETSERVE_.*|PORT|.*_proxy|HF_.*)")


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a child: no settings of ours, no proxies, no tokens of the user's."""
    kept = {name: value for name, value in os.environ.items() if not _DROPPED.fullmatch(name)}
    return {**kept, "NO_PROXY": "*", **extra}


class Child:
    """A process, what it costs, and its end. In a session of its own: Ctrl-C reaches only us."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: dict[str, str] | None = None,
        output: int | None = subprocess.DEVNULL,
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log
        self.url = ""
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment if environment is not None else clean_environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def wait_until_listening(self) -> None:
        """Wait for the log line that names the address.

        Raises:
            BenchError: the process ended, or did not come up in time.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            if match := LISTENING.search(self.log.read_text(errors="replace")):
                self.url = match[1]
                return
            time.sleep(0.02)
        raise BenchError(f"{self.name} did not start: {self.log.read_text(errors='replace')}")

    def pids(self) -> list[int]:
        """The process and its children: a supervisor's workers count."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return sum(_read_cpu_seconds(Path(f"/proc/{pid}/stat")) for pid in self.pids())

    def loop_cpu_seconds(self) -> float:
        """Return the user and system time of the main thread so far: the event loop's."""
        return _read_cpu_seconds(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))

    def peak_memory(self) -> float:
        """MiB of resident memory at most so far (VmHWM), summed over the processes."""
        return sum(_read_status(pid, "VmHWM") for pid in self.pids())

    def memory(self) -> float:
        """MiB of resident memory now."""
        return sum(_read_status(pid, "VmRSS") for pid in self.pids())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; gives the exit status."""
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End it, with force if it does not go by itself. Does nothing the second time."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _read_cpu_seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read_status(pid: int, field: str) -> float:
    """Read a kB field of /proc/PID/status, in MiB."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


def start_xetserve(
    log: Path, *arguments: str, python: str = sys.executable, ca_file: Path | None = None
) -> Child:
    """Start `xetserve ARGUMENTS` on a free port of the loopback interface; return it once it
    listens.

    Args:
        python: of the environment that xetserve is installed in.
        ca_file: certificates that it trusts, in place of the system's.
    """
    flags = ("--host", "127.0.0.1", "--port", "0")
    trust = {} if ca_file is None else {"SSL_CERT_FILE": str(ca_file)}
    child = Child(
        # -P: the package of that environment, not the one in the current folder.
        [python, "-P", "-m", "xetserve", *arguments, *flags],
        log,
        environment=clean_environment(**trust),
    )
    try:
        child.wait_until_listening()
    except BaseException:
        child.stop()
        raise
    return child
