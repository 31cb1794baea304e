"""Steps and plans: describe each step before a deployment, and carry out the same steps."""

import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from xetserve.deploy.local_server import HEALTH, READY, Address, Answer, read_version
from xetserve.deploy.machine import DeployError, Machine

POLL: Final = 0.5  # seconds between two requests to a server that is starting


class Step(Protocol):
    """One action on a machine."""

    def describe(self) -> str:
        """Return one line about the step."""
        ...

    def do(self, machine: Machine) -> None:
        """Carry out the step.

        Raises:
            DeployError: the step failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """Make a folder."""

    path: Path
    mode: int = 0o755
    group: str | None = None

    def describe(self) -> str:
        """Return one line about the step."""
        return f"make folder {self.path} ({_rights(self.mode, self.group)})"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        machine.make_folder(self.path, self.mode, self.group)


@dataclass(frozen=True, slots=True)
class File:
    """Write a file."""

    path: Path
    content: bytes
    mode: int = 0o644
    group: str | None = None

    def describe(self) -> str:
        """Return one line about the step."""
        return f"write {self.path} ({_rights(self.mode, self.group)}, {len(self.content)} bytes)"

    def is_done(self, machine: Machine) -> bool:
        """Return whether the file is there with this content and mode."""
        has_mode = machine.get_mode(self.path) == self.mode
        return has_mode and machine.read(self.path) == self.content

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        machine.write(self.path, self.content, self.mode, self.group)


@dataclass(frozen=True, slots=True)
class Link:
    """Point a symbolic link at a target."""

    path: Path
    target: str

    def describe(self) -> str:
        """Return one line about the step."""
        return f"link {self.path} -> {self.target}"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        machine.make_link(self.path, self.target)


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file, a link or a folder with all that is in it."""

    path: Path

    def describe(self) -> str:
        """Return one line about the step."""
        return f"remove {self.path}"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        machine.remove(self.path)


@dataclass(frozen=True, slots=True)
class Command:
    """Run a command; may_fail: ignore its status."""

    command: tuple[str, ...]
    may_fail: bool = False

    def describe(self) -> str:
        """Return one line about the step."""
        return f"run {shlex.join(self.command)}"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        done = machine.run(self.command)
        if done.status and not self.may_fail:
            lines = (done.errors.strip() or done.out.strip() or "it gave no reason").splitlines()
            # The log line before this one has the whole command.
            start = " ".join(self.command[:2])
            raise DeployError(f"{start}: status {done.status}: {' / '.join(lines[-4:])}")


@dataclass(frozen=True, slots=True)
class CheckVacant:
    """Check that no server answers where the new one will listen.

    On the network of the host, its answers would be taken for those of a container that ends.
    """

    address: Address

    def describe(self) -> str:
        """Return one line about the step."""
        return f"check that no other server answers at {self.address.url}"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        for tls in (False, True):
            if machine.ask(self.address._replace(tls=tls), HEALTH) is not None:
                raise DeployError(
                    f"another server answers at {self.address.url}: stop it, or give another "
                    "address (--publish)"
                )


def undo_making(machine: Machine, steps: Iterable[Step]) -> list[Step]:
    """Return steps that remove the files and folders that the given steps will make.

    They do not exist yet. Of folders, their new parents are removed as well.
    """
    made = [step.path for step in steps if isinstance(step, File | Folder)]
    outermost = [
        next(each for each in (*reversed(path.parents), path) if not machine.exists(each))
        for path in made
    ]
    return [Remove(path) for path in dict.fromkeys(outermost)]


YES: Final = "yes"
CERTIFICATE: Final = "certificate"  # cause of a server that has no certificate yet


def describe_ready(answer: Answer) -> str:
    """Return a text about a response of /ready; it begins with YES if the version works.

    A Hub that does not answer is not the version's fault, so it is no reason for a rollback.
    """
    fields = answer.fields
    cause = fields.get("cause")
    if answer.status == 200:
        return YES if cause is None else f"{YES}, but {fields.get('status')}: {cause}"
    if cause == CERTIFICATE:
        return "no, it waits for its first certificate"
    return f"{YES}, but the Hub does not answer" if cause == "hub" else str(answer.status)


def describe_state(answer: Answer | None) -> str:
    """Return a text about a response of /ready, with the server's URL; "no" without a response."""
    return "no" if answer is None else f"{describe_ready(answer)}, {answer.url}"


@dataclass(frozen=True, slots=True)
class Check:
    """Wait until the server is ready with the expected version.

    ask: sends a GET for a path to the server; returns None without a response.
    version: None: any version.
    timeout: seconds.
    may_wait: whether a server that has to wait for its first certificate is ready.
    find_end: returns why the server will never answer, because it has ended; "": it may.
    what: what is waited for.
    """

    ask: Callable[[Machine, str], Answer | None]
    version: str | None
    timeout: float
    may_wait: bool = True
    find_end: Callable[[Machine], str] = lambda _: ""
    what: str = "the server"

    def describe(self) -> str:
        """Return one line about the step."""
        version = f" in version {self.version}" if self.version else ""
        return f"wait until {self.what} is ready{version}, at most {self.timeout:g} s"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        waited, reason = 0.0, "the server does not answer"
        while True:
            answer = self.ask(machine, READY)
            if answer is not None:
                waits = self.may_wait and answer.fields.get("cause") == CERTIFICATE
                if describe_ready(answer).startswith(YES) or waits:
                    version = read_version(self.ask(machine, HEALTH))
                    if self.version in (None, version):
                        return
                    reason = f"{answer.url} is version {version}"
                else:
                    reason = f"{answer.url}{READY} answers {answer.status}"
            if end := self.find_end(machine):
                raise DeployError(end)
            if waited >= self.timeout:
                raise DeployError(f"not ready after {self.timeout:g} s: {reason}")
            machine.wait(POLL)
            waited += POLL


@dataclass(slots=True)
class Plan:
    """The steps of a deployment.

    steps: all steps; those before index `switch` do not affect clients.
    cleanup: steps that undo the steps before switch, if one of them fails.
    undo: steps that restore the previous state, if a later step fails.
    back_to: the name of the previous state, for messages.
    after: steps that tidy up after success; their failure has no effect.
    log: a command that prints the last log lines of the failed service.
    notes: sentences for the operator about why there are steps.
    """

    steps: list[Step] = field(default_factory=list)
    switch: int = 0
    cleanup: list[Step] = field(default_factory=list)
    undo: list[Step] = field(default_factory=list)
    back_to: str = "the previous state"
    after: list[Step] = field(default_factory=list)
    log: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def carry_out(plan: Plan, machine: Machine, say: Callable[[str], None]) -> None:
    """Carry out a plan; if a step fails, restore the previous state.

    Raises:
        DeployError: a step failed; the message says which state the service has now.
    """
    for number, step in enumerate(plan.steps):
        say(step.describe())
        try:
            step.do(machine)
        except (DeployError, KeyboardInterrupt) as exc:
            reason = str(exc) or "interrupted"
            say(f"failed: {reason}")
            if number >= plan.switch and plan.log:
                _show_log(plan.log, machine, say)
            undo = plan.undo if number >= plan.switch else plan.cleanup
            failures = _undo(undo, machine, say)
            if failures:
                raise DeployError(
                    f"{reason}; the rollback failed too: {'; '.join(failures)}"
                ) from None
            outcome = (
                f"rolled back to {plan.back_to}"
                if number >= plan.switch
                else "nothing has changed for clients"
            )
            raise DeployError(f"{reason}; {outcome}") from None
    for step in plan.after:
        say(step.describe())
        try:
            step.do(machine)
        except DeployError as exc:
            say(f"not done: {exc}")


def _show_log(command: tuple[str, ...], machine: Machine, say: Callable[[str], None]) -> None:
    with suppress(DeployError):
        done = machine.run(command)
        for line in (done.out + done.errors).splitlines():
            say(f"log: {line}")


def _undo(steps: list[Step], machine: Machine, say: Callable[[str], None]) -> list[str]:
    """Carry out all steps even if some fail; return the failures."""
    failures = []
    for step in steps:
        say(f"back: {step.describe()}")
        try:
            step.do(machine)
        except DeployError as exc:
            failures.append(str(exc))
    return failures


def _rights(mode: int, group: str | None) -> str:
    return f"{mode:04o}{f', root:{group}' if group else ''}"
