"""The certificate of a deployed service: a pair of files, or with systemd one that certbot gets.

    /etc/credstore/xetserve.tls_cert, .tls_key     the pair, a credential of each start
    /run/xetserve/xetserve.tls_cert, .tls_key      a later pair, for the service that runs
    /etc/xetserve/certbot-hook                     copies a pair to both places
    /etc/systemd/system/xetserve-redirect.socket   port 80, for certbot
    /etc/systemd/system/xetserve.service.d/20-certbot.conf   settings, for certbot
    /var/lib/xetserve-acme                         where certbot answers challenges

A container reads the pair from its configuration folder: see PAIR_FOLDER.

The functions here add to a plan that installs, keeps or removes the service.
"""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.deploy.containers import PAIR_FILES, USER, ContainerTarget
from xetserve.deploy.machine import DeployError, Machine
from xetserve.deploy.package import SHARED, find_clone
from xetserve.deploy.service_settings import CREDENTIALS
from xetserve.deploy.steps import Command, File, Folder, Plan, Remove, Step
from xetserve.deploy.systemd import SERVICE, SOCKET, Paths, SystemdTarget

REDIRECT: Final = "xetserve-redirect.socket"
HOOK: Final = "xetserve-certbot-hook"
WEBROOT: Final = Path("/var/lib/xetserve-acme")
STORE: Final = Path("/etc/credstore")
LINEAGES: Final = Path("/etc/letsencrypt/live")
CERTIFICATE: Final = "xetserve.tls_cert"
KEY: Final = "xetserve.tls_key"
# Where the service sees the pair: its credentials, or what has replaced them.
_SEEN: Final = (CREDENTIALS[0], Path("/run/xetserve"))
_VARIABLES: Final = {
    "XETSERVE_TLS_CERT": str(CREDENTIALS[0] / CERTIFICATE),
    "XETSERVE_TLS_KEY": str(CREDENTIALS[0] / KEY),
}
_DROP_IN: Final = f"""\
# Written by xetserve deploy --certbot. Put your own changes into another file in this folder.
[Service]
{"".join(f"Environment={name}={value}" + chr(10) for name, value in _VARIABLES.items())}\
Environment=XETSERVE_ACME_WEBROOT={WEBROOT}
"""


class Pair(NamedTuple):
    """A certificate with its chain, and its key, in PEM; they are known to be valid."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Certbot:
    """What certbot needs to know.

    email: of the account at the ACME server.
    domains: names of the certificate.
    server: URL of the ACME server's directory; None: that of Let's Encrypt.
    """

    email: str
    domains: tuple[str, ...]
    server: str | None = None

    @property
    def lineage(self) -> Path:
        """Return the folder where certbot keeps the pair."""
        return LINEAGES / self.domains[0]

    def make_command(self, hook: Path) -> Command:
        """Return the command that gets the certificate, or keeps one that is not yet due."""
        names = [word for domain in self.domains for word in ("-d", domain)]
        server = [] if self.server is None else ["--server", self.server]
        return Command(
            (
                *("certbot", "certonly", "--non-interactive", "--agree-tos"),
                *("--email", self.email, "--webroot", "-w", str(WEBROOT)),
                *("--cert-name", self.domains[0], *names, "--deploy-hook", str(hook), *server),
            )
        )


def read_shared(name: str) -> bytes:
    """Read a file that comes with the units of this xetserve.

    Raises:
        DeployError: it is not there.
    """
    clone = find_clone()
    folder = Path(sys.prefix) / SHARED if clone is None else clone / "systemd"
    try:
        return (folder / name).read_bytes()
    except OSError as exc:
        raise DeployError(f"cannot read {folder / name}: {exc.strerror}") from None


def add_pair(
    plan: Plan, machine: Machine, target: SystemdTarget, pair: Pair, paths: Paths | None = None
) -> None:
    """Add what gives a pair to the service; nothing, if the service has it.

    A service that runs with TLS takes the pair without a restart.

    Raises:
        DeployError: other settings name another pair.
    """
    paths = paths or Paths()
    _check_environment(machine, paths)
    files = [File(STORE / CERTIFICATE, pair.certificate, 0o600), File(STORE / KEY, pair.key, 0o600)]
    restoring = _add_files(plan, machine, Folder(STORE, 0o700), files)
    if not restoring:
        return
    if not _is(machine, "is-active", SERVICE):
        plan.undo[:0] = restoring
        return
    hook = paths.etc / "certbot-hook"
    if any(machine.exists(folder / CERTIFICATE) for folder in _SEEN):
        giving: list[Step] = [File(hook, read_shared(HOOK), 0o755), Command((str(hook),))]
    else:  # without TLS so far
        giving = [Command(("systemctl", "restart", SERVICE))]
    plan.steps += [*giving, target.make_check()]
    plan.undo[:0] = [*restoring, giving[-1]]


def add_pair_to_container(
    plan: Plan, machine: Machine, target: ContainerTarget, pair: Pair
) -> None:
    """Add what puts a pair where the container reads it; nothing, if it is there.

    The target knows of it, and turns TLS on. A server that has TLS takes another pair by itself.
    """
    folder = Folder(target.pair_folder, 0o750, USER)
    files = [
        File(folder.path / name, content, 0o640, USER)
        for name, content in zip(PAIR_FILES.values(), pair, strict=True)
    ]
    plan.undo += _add_files(plan, machine, folder, files)


def _add_files(plan: Plan, machine: Machine, folder: Folder, files: list[File]) -> list[Step]:
    """Add the files that differ from what is there; return the steps that undo it.

    They come before all else: a new version checks its settings together with them.
    """
    changed = [file for file in files if not file.is_done(machine)]
    if not changed:
        return []
    made = [] if machine.exists(folder.path) else [folder]
    plan.steps[:0] = [*made, *changed]
    plan.switch += len(made) + len(changed)
    restoring: list[Step] = [
        *(_restore(file, machine.read(file.path)) for file in changed),
        *(Remove(each.path) for each in made),
    ]
    plan.cleanup += restoring
    return restoring


def add_certbot(
    plan: Plan,
    machine: Machine,
    target: SystemdTarget,
    certbot: Certbot,
    paths: Paths | None = None,
) -> None:
    """Add what lets certbot get a certificate for the service; nothing, if the service has it.

    Raises:
        DeployError: certbot is not installed, or other settings name another pair.
    """
    paths = paths or Paths()
    if machine.which("certbot") is None:
        raise DeployError("certbot is not installed: apt-get install certbot")
    _check_environment(machine, paths)
    hook = paths.etc / "certbot-hook"
    drop_in = _get_drop_in(paths)
    files = [
        File(hook, read_shared(HOOK), 0o755),
        File(paths.units / REDIRECT, read_shared(REDIRECT)),
        File(drop_in, _DROP_IN.encode()),
    ]
    changed = [file for file in files if not file.is_done(machine)]
    is_on = _is(machine, "is-enabled", REDIRECT) and _is(machine, "is-active", REDIRECT)
    has_pair = all(map(machine.exists, (STORE / CERTIFICATE, STORE / KEY, certbot.lineage)))
    if not changed and is_on and has_pair:
        return
    was_empty = not plan.steps
    folders = [Folder(WEBROOT), Folder(drop_in.parent)]
    plan.steps += [each for each in folders if not machine.exists(each.path)]
    plan.steps += changed
    undo: list[Step] = []
    if any(file.path != hook for file in changed) or not is_on:
        # systemd hands all sockets over when the service starts, not later.
        stopping = Command(("systemctl", "stop", SERVICE, SOCKET, REDIRECT), may_fail=True)
        plan.steps += [
            Command(("systemctl", "daemon-reload")),
            stopping,
            Command(("systemctl", "enable", "--now", REDIRECT, SOCKET)),
            Command(("systemctl", "start", SERVICE)),
        ]
        if not is_on:
            undo.append(Command(("systemctl", "disable", "--now", REDIRECT), may_fail=True))
        undo += [
            *(_restore(file, machine.read(file.path)) for file in changed),
            Command(("systemctl", "daemon-reload")),
        ]
        if was_empty:
            undo += [
                Command(("systemctl", "stop", SERVICE, SOCKET), may_fail=True),
                Command(("systemctl", "start", SOCKET)),
                Command(("systemctl", "start", SERVICE)),
                target.make_check(),
            ]
    plan.steps += [
        target.make_check(),
        certbot.make_command(hook),
        # certbot runs the hook for new certificates only, and may have kept one.
        Command(("env", f"RENEWED_LINEAGE={certbot.lineage}", str(hook))),
        target.make_check(may_wait=False),
    ]
    plan.undo[:0] = undo
    plan.log = (*plan.log, "--unit", REDIRECT)  # port 80 may be in use


def add_removal(plan: Plan, machine: Machine, *, purge: bool, paths: Paths | None = None) -> None:
    """Add what removes the files for certbot; with purge also the pair of the service."""
    paths = paths or Paths()
    drop_in = _get_drop_in(paths)
    steps: list[Step] = []
    if machine.exists(paths.units / REDIRECT):
        steps.append(Command(("systemctl", "disable", "--now", REDIRECT), may_fail=True))
        steps.append(Remove(paths.units / REDIRECT))
    if machine.exists(drop_in):
        steps.append(Remove(drop_in))
        if machine.list_folder(drop_in.parent) == [paths.drop_in.name, drop_in.name]:
            plan.steps.append(Remove(drop_in.parent))
    if purge:
        leftovers = (STORE / CERTIFICATE, STORE / KEY, WEBROOT)
        steps += [Remove(path) for path in leftovers if machine.exists(path)]
    plan.steps[:0] = steps
    plan.switch = len(plan.steps)


def _get_drop_in(paths: Paths) -> Path:
    return paths.drop_in.with_name("20-certbot.conf")


def _check_environment(machine: Machine, paths: Paths) -> None:
    """Check that xetserve.env, which wins over credentials, names no other pair.

    Raises:
        DeployError: it does.
    """
    path = paths.etc / "xetserve.env"
    lines = (machine.read(path) or b"").decode("utf-8", "replace")
    for name, value in re.findall(r"(?m)^(XETSERVE_TLS_(?:CERT|KEY))=(.*?)\s*$", lines):
        if value != _VARIABLES[name]:
            raise DeployError(
                f"{path} sets {name}={value}, and the service would use that: remove the line"
            )


def _restore(file: File, content: bytes | None) -> Step:
    return Remove(file.path) if content is None else replace(file, content=content)


def _is(machine: Machine, question: str, unit: str) -> bool:
    return machine.run(("systemctl", question, "--quiet", unit)).status == 0
