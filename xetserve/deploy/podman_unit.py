"""The unit that starts a container of Podman with the machine, and stops it with the machine.

Docker's daemon does this by itself. Podman has no daemon that does it, and its Quadlet would make
the container anew each time.
"""

from pathlib import Path
from typing import Final

from xetserve.deploy.machine import Machine
from xetserve.deploy.steps import Command, File, Remove, Step

# As Podman's own podman-restart.service, for one container.
_UNIT: Final = """\
# Written by xetserve deploy.
[Unit]
Description=xetserve in the Podman container {name}
Wants=network-online.target
After=network-online.target
RequiresMountsFor={folder} %t/containers

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} start {name}
ExecStop={program} stop --time=45 {name}

[Install]
WantedBy=multi-user.target
"""


class PodmanUnit:
    """The unit of one container; steps only where the machine has Podman and systemd.

    Args:
        name: of the container.
        folder: of its configuration.
    """

    def __init__(self, machine: Machine, engine: str, name: str, folder: Path) -> None:
        self._machine = machine
        self._engine = engine
        self._name = name
        self._folder = folder

    @property
    def _path(self) -> Path:
        return Path("/etc/systemd/system") / f"container-{self._name}.service"

    @property
    def _is_used(self) -> bool:
        """Return whether a unit starts the container with the machine; Docker's daemon does it."""
        return self._engine == "podman" and self._machine.exists(Path("/run/systemd/system"))

    def make(self, notes: list[str]) -> list[Step]:
        """Return the steps that have the container started with the machine, if there are any."""
        if not self._is_used:
            if self._engine == "podman":
                notes.append("there is no systemd to start the container after a reboot")
            return []
        program = self._machine.which(self._engine) or f"/usr/bin/{self._engine}"
        content = _UNIT.format(name=self._name, program=program, folder=self._folder).encode()
        steps: list[Step] = []
        if self._machine.read(self._path) != content:
            steps = [File(self._path, content), Command(("systemctl", "daemon-reload"))]
        enabled = ("systemctl", "is-enabled", "--quiet", self._path.name)
        if self._machine.run(enabled).status:
            steps.append(Command(("systemctl", "enable", self._path.name)))
        return steps

    def start(self) -> list[Step]:
        """Return the step that has the unit stop the container when the machine shuts down."""
        return [Command(("systemctl", "start", self._path.name))] if self._is_used else []

    def undo(self, steps: list[Step]) -> list[Step]:
        """Return the steps that undo those of make where the unit was not there before."""
        if not steps or self._machine.exists(self._path):
            return []
        return [
            Command(("systemctl", "disable", self._path.name), may_fail=True),
            Remove(self._path),
            Command(("systemctl", "daemon-reload"), may_fail=True),
        ]

    def remove(self) -> list[Step]:
        """Return the steps that stop and remove the unit, if it is there."""
        if not self._machine.exists(self._path):
            return []
        return [
            Command(("systemctl", "disable", "--now", self._path.name)),
            Remove(self._path),
            Command(("systemctl", "daemon-reload")),
        ]
