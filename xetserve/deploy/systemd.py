"""Deployment as a systemd service: one virtual environment for each version, and a lasting socket.

    /opt/xetserve/versions/NAME/      a virtual environment; the file .complete marks a complete one
    /opt/xetserve/current             -> versions/NAME, the running version
    /opt/xetserve/previous            -> versions/NAME, the version before
    /opt/xetserve/bin                 -> current/bin, which the unit names
    /etc/xetserve/xetserve.toml       created once, never overwritten
    /etc/systemd/system/xetserve.*    the units of the package, and a drop-in

The unit has a dynamic user, which exists only while the service runs. A permanent group lets it
read the configuration.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from xetserve.deploy.applied_settings import (
    AppliedSettings,
    Change,
    Summary,
    summarize_bytes,
)
from xetserve.deploy.local_server import READY, Address, Answer, Speech, choose_answer
from xetserve.deploy.machine import DeployError, Machine
from xetserve.deploy.package import COMPLETE, LOCK, SHARED, UNITS, Package
from xetserve.deploy.service_settings import CREDENTIALS, CREDENTIALS_VARIABLE
from xetserve.deploy.steps import (
    Check,
    Command,
    File,
    Folder,
    Link,
    Plan,
    Remove,
    Step,
    describe_state,
    undo_making,
)
from xetserve.deploy.take_over import TakeOver

SERVICE: Final = "xetserve.service"
SOCKET: Final = "xetserve.socket"
GROUP: Final = "xetserve-conf"
DROP_IN: Final = f"""\
# Written by xetserve deploy. Put your own changes into another file in this folder.
[Service]
SupplementaryGroups={GROUP}
"""
_FAILURE_LOG: Final = ("journalctl", "--no-pager", "--lines=10", "--output=cat", "--unit", SERVICE)
_LISTENING: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+)):(\d+) \(Stream\)")
_LISTENING_UNIX: Final = re.compile(r"(?m)(?:^| )(/\S+) \(Stream\)")
_ANY: Final = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of an installation."""

    etc: Path = Path("/etc/xetserve")
    opt: Path = Path("/opt/xetserve")
    units: Path = Path("/etc/systemd/system")
    # With a dynamic user, the first folder is a link to the second.
    caches: tuple[Path, ...] = (Path("/var/cache/xetserve"), Path("/var/cache/private/xetserve"))

    @property
    def versions(self) -> Path:
        """Return the path of the folder with an environment for each version."""
        return self.opt / "versions"

    @property
    def config(self) -> Path:
        """Return the path of the configuration file."""
        return self.etc / "xetserve.toml"

    @property
    def environment(self) -> Path:
        """Return the path of the file with environment variables of the service."""
        return self.etc / "xetserve.env"

    @property
    def drop_in(self) -> Path:
        """Return the path of the drop-in that deploy writes."""
        return self.units / f"{SERVICE}.d" / "10-deploy.conf"


def find_systemd(machine: Machine) -> str | None:
    """Return the reason why systemd cannot be used on this machine; None: it can."""
    if machine.which("systemctl") is None:
        return "systemctl is not installed"
    if not machine.exists(Path("/run/systemd/system")):
        return "this machine was not booted with systemd"
    return None


def is_deployed(machine: Machine, paths: Paths | None = None) -> bool:
    """Return whether deploy has made a service on this machine."""
    paths = paths or Paths()
    return machine.exists(paths.versions) or machine.exists(paths.drop_in)


class SystemdTarget:
    """A target that plans deployments to a machine with systemd.

    Args:
        template: the content of a new configuration file.
        python: the interpreter for virtual environments.
        timeout: seconds that a start may take.
        find_speech: returns what the service speaks on its sockets, by its settings of now.
        summarize: summarizes a settings file.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        template: bytes,
        python: str,
        timeout: float = 30.0,
        paths: Paths | None = None,
        find_speech: Callable[[], Speech] = Speech,
        summarize: Callable[[bytes], Summary] = summarize_bytes,
    ) -> None:
        self._machine = machine
        self._paths = paths or Paths()
        self._applied = AppliedSettings(
            machine,
            self._paths.config,
            self._paths.opt / "settings.applied",
            summarize,
            self._paths.environment,
        )
        self._template = template
        self._python = python
        self._timeout = timeout
        self._find_speech = find_speech

    def plan_apply(self, package: Package) -> Plan:
        """Return a plan that installs and runs a package.

        Raises:
            DeployError: an installation exists that deploy did not make.
        """
        machine, paths = self._machine, self._paths
        program = paths.opt / "bin"
        if machine.exists(program) and machine.read_link(program) is None:
            raise DeployError(f"{paths.opt} was installed by hand: move it away first")
        wanted = f"versions/{package.name}"
        current = machine.read_link(paths.opt / "current")
        plan = Plan(back_to=current or "the state without xetserve", log=_FAILURE_LOG)
        plan.steps = self._make_configuration()
        restored = undo_making(machine, plan.steps)
        if not self._has_group():
            restored.append(Command(("groupdel", GROUP), may_fail=True))
        installing = self._install(package)
        plan.steps += installing
        folder = paths.opt / wanted
        if installing:
            plan.cleanup = [Remove(self._find_new(folder)), *restored]
        units = self._change_units(package.units)
        is_on = self._is("is-enabled", SOCKET) and self._is("is-active", SOCKET)
        has_failed = self._is("is-failed", SERVICE)
        links = self._switch(wanted, current)
        change = Change.RESTART
        if not (units or links or has_failed) and is_on:
            change = self._applied.find_change(self._template, self._find_start())
            if change is Change.NOTHING:
                plan.after += self._applied.record_if_new()
                return plan
            plan.after = [self._applied.record()]
            if not self._is("is-active", SERVICE):  # it reads them when it starts
                return plan
            plan.notes.append(change.value)
        if change is Change.RELOAD:
            plan.steps += [
                self._check_configuration(folder),
                Command(("systemctl", "reload", SERVICE)),
            ]
            plan.switch = len(plan.steps)
            return plan
        plan.steps.append(self._check_configuration(folder))
        plan.switch = len(plan.steps)
        plan.steps += [*units, *links]
        if units:
            plan.steps.append(Command(("systemctl", "daemon-reload")))
        if not is_on:
            plan.steps.append(Command(("systemctl", "enable", SERVICE, SOCKET)))
        plan.steps += self._replace(units, current, folder, is_on=is_on)
        plan.steps.append(self._check(package.version))
        new = self._find_new(folder)
        plan.undo = self._undo(current, units, is_new=bool(installing), folder=new)
        plan.undo += restored
        # The service makes it.
        plan.undo += [Remove(path) for path in paths.caches if not machine.exists(path)]
        keep = {wanted, current}
        plan.after = [
            self._applied.record(),
            *(
                Remove(paths.versions / name)
                for name in machine.list_folder(paths.versions)
                if current != wanted and f"versions/{name}" not in keep
            ),
        ]
        return plan

    def plan_rollback(self) -> Plan:
        """Return a plan that runs the previous version again.

        Raises:
            DeployError: there is no previous version.
        """
        machine, paths = self._machine, self._paths
        current = machine.read_link(paths.opt / "current")
        previous = machine.read_link(paths.opt / "previous")
        if (
            current is None
            or previous is None
            or not machine.exists(paths.opt / previous / COMPLETE)
        ):
            raise DeployError("there is no previous version to go back to")
        units = {}
        for name in UNITS:
            content = machine.read(paths.opt / previous / SHARED / name)
            if content is None:
                raise DeployError(f"{paths.opt / previous} has no {name}")
            units[name] = content
        changed = self._change_units(units)
        plan = Plan(back_to=current, log=_FAILURE_LOG)
        plan.steps = [*changed, *self._switch(previous, current)]
        if changed:
            plan.steps.append(Command(("systemctl", "daemon-reload")))
        plan.steps += self._replace(changed, current, paths.opt / previous, is_on=True)
        plan.steps.append(self._check(None))
        plan.undo = self._undo(current, changed, is_new=False, folder=paths.opt / previous)
        return plan

    def plan_remove(self, *, purge: bool) -> Plan:
        """Return a plan that removes the service; with purge also configuration and cache.

        Raises:
            DeployError: an installation exists that deploy did not make.
        """
        machine, paths = self._machine, self._paths
        plan = Plan()
        if not is_deployed(machine, paths) and machine.exists(paths.units / SERVICE):
            raise DeployError(f"{paths.units / SERVICE} was installed by hand: nothing is removed")
        unit_files = [paths.units / name for name in UNITS if machine.exists(paths.units / name)]
        if unit_files:
            plan.steps.append(Command(("systemctl", "disable", "--now", SERVICE, SOCKET)))
        plan.steps += [Remove(path) for path in unit_files]
        if machine.exists(paths.drop_in):
            plan.steps.append(Remove(paths.drop_in))
            # Other drop-ins in the folder stay.
            if machine.list_folder(paths.drop_in.parent) == [paths.drop_in.name]:
                plan.steps.append(Remove(paths.drop_in.parent))
        if unit_files:
            plan.steps.append(Command(("systemctl", "daemon-reload")))
            plan.steps.append(
                Command(("systemctl", "reset-failed", SERVICE, SOCKET), may_fail=True)
            )
        if machine.exists(paths.versions):
            plan.steps.append(Remove(paths.opt))
        if purge:
            # Not `systemctl clean`, which fails if the units are removed already.
            leftovers = (*paths.caches, paths.etc)
            plan.steps += [Remove(path) for path in leftovers if machine.exists(path)]
            if self._has_group():
                plan.steps.append(Command(("groupdel", GROUP)))
        plan.switch = len(plan.steps)
        return plan

    def get_status(self) -> dict[str, str]:
        """Return the state of the service: name -> value."""
        machine, paths = self._machine, self._paths
        state = {"version": _name(machine.read_link(paths.opt / "current"))}
        state["previous"] = _name(machine.read_link(paths.opt / "previous"))
        for unit in (SOCKET, SERVICE):
            done = machine.run(("systemctl", "is-active", unit))
            state[unit] = done.out.strip() or "unknown"
        state["ready"] = describe_state(self.ask_ready())
        return state

    def ask_ready(self) -> Answer | None:
        """Return the answer of /ready of the service; None: it does not listen."""
        return self._ask(self._machine, READY) if self._is("is-active", SOCKET) else None

    @property
    def command(self) -> str:
        """Return the command that applies changed settings to the version of now."""
        return f"{self._paths.opt}/bin/xetserve deploy apply"

    @property
    def settings(self) -> Path:
        """Return the path of the settings file."""
        return self._paths.config

    @staticmethod
    def log_command(*, follow: bool, lines: int) -> tuple[str, ...]:
        """Return the command that prints the log."""
        following = ("--follow",) if follow else ()
        return ("journalctl", "--no-pager", f"--lines={lines}", *following, "--unit", SERVICE)

    def _make_configuration(self) -> list[Step]:
        machine, paths = self._machine, self._paths
        steps: list[Step] = []
        if not self._has_group():
            steps.append(Command(("groupadd", "--system", GROUP)))
        if not machine.exists(paths.etc):
            steps.append(Folder(paths.etc, 0o750, GROUP))
        if not machine.exists(paths.config):
            steps.append(File(paths.config, self._template, 0o640, GROUP))
        return steps

    def _has_group(self) -> bool:
        return self._machine.run(("getent", "group", GROUP)).status == 0

    def _install(self, package: Package) -> list[Step]:
        folder = self._paths.versions / package.name
        if self._machine.exists(folder / COMPLETE):
            return []
        steps: list[Step] = []
        if self._machine.exists(folder):  # an earlier apply was interrupted
            steps.append(Remove(folder))
        else:
            steps.append(Folder(folder.parent))
        python = str(folder / "bin" / "python")
        pip = (
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
        )
        steps.append(Command((self._python, "-m", "venv", str(folder))))
        if package.lock is None:
            steps.append(Command((*pip, package.requirement)))
        else:
            lock = folder / LOCK
            steps.append(File(lock, package.lock))
            steps.append(Command((*pip, "--require-hashes", "-r", str(lock))))
            steps.append(Command((*pip, "--no-deps", package.requirement)))
        # A rollback reads the units from here, because it has no package.
        steps.append(Folder(folder / SHARED))
        steps += [File(folder / SHARED / name, content) for name, content in package.units.items()]
        steps.append(File(folder / COMPLETE, b""))
        return steps

    def _find_new(self, folder: Path) -> Path:
        """Return the outermost folder that an installation makes."""
        outer = (self._paths.opt, self._paths.versions)
        return next((each for each in outer if not self._machine.exists(each)), folder)

    def _check_configuration(self, folder: Path) -> Step:
        environment = self._paths.environment
        read = ("--env-file", str(environment)) if self._machine.exists(environment) else ()
        program = str(folder / "bin" / "xetserve")
        command = (program, "config", "check", "--config", str(self._paths.config), *read)
        # As the service will see them: a key pair may be a credential.
        if any(map(self._machine.exists, CREDENTIALS)):
            folders = ":".join(map(str, CREDENTIALS))
            command = ("env", f"{CREDENTIALS_VARIABLE}={folders}", *command)
        return Command(command)

    def _change_units(self, wanted: dict[str, bytes]) -> list[Step]:
        machine, paths = self._machine, self._paths
        steps: list[Step] = [
            File(paths.units / name, content)
            for name, content in wanted.items()
            if machine.read(paths.units / name) != content
        ]
        if machine.read(paths.drop_in) != DROP_IN.encode():
            steps += [Folder(paths.drop_in.parent), File(paths.drop_in, DROP_IN.encode())]
        return steps

    def _switch(self, wanted: str, current: str | None) -> list[Step]:
        opt = self._paths.opt
        steps: list[Step] = []
        if current != wanted:
            if current is not None:
                steps.append(Link(opt / "previous", current))
            steps.append(Link(opt / "current", wanted))
        if self._machine.read_link(opt / "bin") != "current/bin":
            steps.append(Link(opt / "bin", "current/bin"))
        return steps

    def _replace(
        self, units: Sequence[Step], current: str | None, wanted: Path, *, is_on: bool
    ) -> list[Step]:
        """Return the steps from one version to another one, without a wait if that is possible.

        A changed unit, environment file or credential needs a restart: a successor has inherited
        what the running server got from systemd.
        """
        is_same = current is not None and self._paths.opt / current == wanted
        if units or is_same or not is_on or not self._is("is-active", SERVICE):
            return self._restart(is_socket_changed=_touches(units, SOCKET))
        started = self._find_start("ActiveEnterTimestampMonotonic")
        given = [self._paths.environment]
        for folder in CREDENTIALS:
            names = self._machine.list_folder(folder)
            given += [folder / name for name in names if name.startswith("xetserve.")]
        times = [self._machine.get_change_time(each) for each in given]
        if any(time is not None and time >= started for time in times):
            return self._restart(is_socket_changed=False)
        return [TakeOver(SERVICE, wanted)]

    def _restart(self, *, is_socket_changed: bool) -> list[Step]:
        """Return the steps for a restart.

        The socket keeps waiting clients during the restart, unless the socket itself has changed.
        """
        steps: list[Step] = []
        if is_socket_changed and self._is("is-active", SOCKET):
            steps.append(Command(("systemctl", "stop", SERVICE, SOCKET)))
        return [
            *steps,
            Command(("systemctl", "reset-failed", SERVICE, SOCKET), may_fail=True),
            Command(("systemctl", "start", SOCKET)),
            Command(("systemctl", "restart", SERVICE)),
        ]

    def _undo(
        self, current: str | None, changed: Sequence[Step], *, is_new: bool, folder: Path
    ) -> list[Step]:
        machine, paths = self._machine, self._paths
        gone = [Remove(folder)] if is_new else []
        if current is None:
            was_there = machine.exists(paths.opt)
            stop = Command(("systemctl", "disable", "--now", SERVICE, SOCKET), may_fail=True)
            made = [step.path for step in changed if isinstance(step, File | Folder)]
            links = [paths.opt / "current", paths.opt / "bin"]
            return [
                stop,
                *(Remove(path) for path in made if not machine.exists(path)),
                *(self._restore(path) for path in made if machine.read(path) is not None),
                *(Remove(path) for path in (links if was_there else [paths.opt])),
                Command(("systemctl", "daemon-reload")),
                *(gone if was_there else []),
            ]
        previous = machine.read_link(paths.opt / "previous")
        steps: list[Step] = [Link(paths.opt / "current", current)]
        steps.append(
            Remove(paths.opt / "previous")
            if previous is None
            else Link(paths.opt / "previous", previous)
        )
        steps += [self._restore(step.path) for step in changed if isinstance(step, File)]
        if changed:
            steps.append(Command(("systemctl", "daemon-reload")))
        if changed or not self._is("is-active", SERVICE):
            steps += self._restart(is_socket_changed=_touches(changed, SOCKET))
        else:
            steps.append(TakeOver(SERVICE, paths.opt / current, may_restart=True))
        return [*steps, self._check(None), *gone]

    def _restore(self, path: Path) -> Step:
        before = self._machine.read(path)
        return Remove(path) if before is None else File(path, before)

    def make_check(self, *, may_wait: bool = True) -> Check:
        """Return a step that waits until the service is ready; may_wait: see Check."""
        return replace(self._check(None), may_wait=may_wait)

    def _check(self, version: str | None) -> Check:
        return Check(self._ask, version, self._timeout)

    def _ask(self, machine: Machine, path: str) -> Answer | None:
        addresses = find_addresses(machine, self._find_speech())
        return choose_answer(machine.ask(address, path) for address in addresses)

    def _find_start(self, name: str = "ExecMainStartTimestampMonotonic") -> float:
        """Return when the server was started, in seconds as of time.time(); 0: it never was.

        Args:
            name: the property of the service that says so.
        """
        shown = (f"--property={name}", "--value")
        microseconds = self._machine.run(("systemctl", "show", *shown, SERVICE)).out.strip()
        if not microseconds.isdigit() or microseconds == "0":
            return 0.0
        return time.time() - time.monotonic() + int(microseconds) / 1e6

    def _is(self, question: str, unit: str) -> bool:
        return self._machine.run(("systemctl", question, "--quiet", unit)).status == 0


def find_addresses(machine: Machine, speech: Speech) -> list[Address]:
    """Return the server's addresses from systemd's sockets.

    Each TCP address appears twice: as the settings say, and with TLS the other way round. The
    settings may have changed since the server read them.
    """
    done = machine.run(("systemctl", "show", "--property=Listen", "--value", SOCKET))
    found = [
        Address(_ANY.get(host, host), int(port), tls, speech.needs_header)
        for six, four, port in _LISTENING.findall(done.out)
        for host in (six or four,)
        for tls in (speech.tls, not speech.tls)
    ]
    found += [
        Address(path, needs_header=speech.needs_header)
        for path in _LISTENING_UNIX.findall(done.out)
    ]
    return found


def _touches(steps: Sequence[Step], name: str) -> bool:
    return any(isinstance(step, File) and step.path.name == name for step in steps)


def _name(link: str | None) -> str:
    return "none" if link is None else link.removeprefix("versions/")
