"""Replace the server of a systemd service without a wait, by the version on the disk.

The main process starts its successor at SIGUSR2, see xetserve.ops.generations. systemd then names
another main process. If that fails, the old server goes on, and the status line of the service
says so.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.deploy.machine import DeployError, Machine

POLL: Final = 0.2  # seconds between two questions to systemd
PATIENCE: Final = 30.0  # seconds; the server itself has 20 s for its successor
FAILED: Final = "the upgrade at "  # the start of the status line after a failure
_SIGUSR2: Final = 12


class _Main(NamedTuple):
    """The main process of a service, 0 if it does not run, and the status line up to a ";"."""

    pid: int
    status: str


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Replace the running server by the one on the disk.

    folder: the environment of the version that is wanted; nothing is done if it runs already.
    may_restart: restart the service if that fails, to come back to a version that worked.
    """

    unit: str
    folder: Path
    may_restart: bool = False

    def describe(self) -> str:
        """Return one line about the step."""
        name = self.folder.name
        return f"replace the running server of {self.unit} by {name}, without waiting (SIGUSR2)"

    def do(self, machine: Machine) -> None:
        """Carry out the step. A server that does not know the signal is restarted."""
        before = self._find_main(machine)
        running = (machine.read(Path(f"/proc/{before.pid}/cmdline")) or b"").decode(
            "utf-8", "replace"
        )
        if running.startswith(f"{self.folder}/"):
            return
        if not _handles_upgrades(machine, before.pid):
            self._run(machine, "restart", self.unit)
            return
        try:
            self._replace(machine, before)
        except DeployError:
            if not self.may_restart:
                raise
            self._run(machine, "restart", self.unit)

    def _replace(self, machine: Machine, before: _Main) -> None:
        self._run(machine, "kill", "--kill-whom=main", "--signal=SIGUSR2", self.unit)
        waited = 0.0
        while waited < PATIENCE:
            now = self._find_main(machine)
            if now.pid == 0:
                raise DeployError(f"{self.unit} has ended")
            if now.pid != before.pid:
                return
            if now.status != before.status and now.status.startswith(FAILED):
                raise DeployError(now.status)
            machine.wait(POLL)
            waited += POLL
        raise DeployError(f"no new server took over within {PATIENCE:g} s")

    def _find_main(self, machine: Machine) -> _Main:
        properties = ("--property=MainPID", "--property=StatusText")
        done = machine.run(("systemctl", "show", *properties, self.unit))
        shown = dict(line.split("=", 1) for line in done.out.splitlines() if "=" in line)
        pid = shown.get("MainPID", "")
        return _Main(int(pid) if pid.isdigit() else 0, shown.get("StatusText", "").split(";")[0])

    @staticmethod
    def _run(machine: Machine, *arguments: str) -> None:
        done = machine.run(("systemctl", *arguments))
        if done.status:
            reason = done.errors.strip() or f"status {done.status}"
            raise DeployError(f"systemctl {arguments[0]}: {reason}")


def _handles_upgrades(machine: Machine, pid: int) -> bool:
    """Return whether a process has a handler for SIGUSR2, which ends any other process."""
    status = (machine.read(Path(f"/proc/{pid}/status")) or b"").decode("ascii", "replace")
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "SigCgt":
            return bool(int(value, 16) >> (_SIGUSR2 - 1) & 1)
    return False
