"""Child processes: start them, measure them through /proc, and always stop them."""

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
    """The bench cannot continue; the message has the reason."""


def clean_environment(**extra: str) -> dict[str, str]:
    """Return an environment for a child without the user's settings, proxies and tokens."""
    kept = {name: value for name, value in os.environ.items() if not _DROPPED.fullmatch(name)}
    return {**kept, "NO_PROXY": "*", **extra}


class Child:
    """A child process and its cost. It has its own session, so Ctrl-C does not reach it."""

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
        """Return the process id."""
        return self.process.pid

    def wait_until_listening(self) -> None:
        """Wait for the log line that names the address.

        Raises:
            BenchError: the process ended, or did not start in time.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            if match := LISTENING.search(self.log.read_text(errors="replace")):
                self.url = match[1]
                return
            time.sleep(0.02)
        raise BenchError(f"{self.name} did not start: {self.log.read_text(errors='replace')}")

    def pids(self) -> list[int]:
        """Return the ids of the process and its children, such as a supervisor's workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def cpu_seconds(self) -> float:
        """Return the user and system time so far, in seconds."""
        return sum(_read_cpu_seconds(Path(f"/proc/{pid}/stat")) for pid in self.pids())

    def loop_cpu_seconds(self) -> float:
        """Return the user and system time of the main thread so far: the event loop's."""
        return _read_cpu_seconds(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))

    def peak_memory(self) -> float:
        """Return the peak resident memory (VmHWM) in MiB, summed over the processes."""
        return sum(_read_status(pid, "VmHWM") for pid in self.pids())

    def memory(self) -> float:
        """Return the resident memory in MiB, summed over the processes."""
        return sum(_read_status(pid, "VmRSS") for pid in self.pids())

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status."""
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End the process, by SIGKILL if necessary. A second call does nothing."""
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
    """Return a kB field of /proc/PID/status in MiB."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


def start_xetserve(
    log: Path, *arguments: str, python: str = sys.executable, ca_file: Path | None = None
) -> Child:
    """Start `xetserve ARGUMENTS` on a free port of the loopback interface; return it once it
    listens.

    Args:
        python: the interpreter of the environment in which xetserve is installed.
        ca_file: certificates that it trusts instead of the system's.
    """
    flags = ("--host", "127.0.0.1", "--port", "0")
    trust = {} if ca_file is None else {"SSL_CERT_FILE": str(ca_file)}
    child = Child(
        # -P: use the package of that environment, not the one in the current folder.
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
