"""Deployment as a container of Docker or Podman: read-only, without privileges, with a public port.

NAME is the running container, NAME-previous the stopped container of the previous version, and
NAME-next the new container before the switch. Only one container can publish the port, so clients
are refused from the end of the old container's drain until the new one listens.

So the new version is tried before the old one stops: NAME-trial is a container without the port,
with the same settings and the same cache. On the network of the host it cannot be tried: it would
need the same ports.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from xetserve.deploy.applied_settings import (
    AppliedSettings,
    Change,
    Summary,
    summarize_bytes,
)
from xetserve.deploy.container_shape import (
    FLAGS_LABEL,
    SPEC_LABEL,
    Shape,
    get_labels,
    inspect_container,
    parse_flags,
)
from xetserve.deploy.image_build import Recipe, RemoveOldImages, inspect_image
from xetserve.deploy.local_server import READY, Address, Answer, choose_answer, parse_probe
from xetserve.deploy.machine import DeployError, Machine
from xetserve.deploy.package import Package
from xetserve.deploy.podman_unit import PodmanUnit
from xetserve.deploy.steps import (
    Check,
    CheckVacant,
    Command,
    File,
    Folder,
    Plan,
    Remove,
    Step,
    describe_state,
    undo_making,
)

ENGINES: Final = ("docker", "podman")
USER: Final = "1000"  # user and group in the image; the group may read the configuration
CACHE: Final = "/var/cache/xetserve"  # path in the container, as the next one
CONFIG: Final = "/etc/xetserve/xetserve.toml"
# A pair that deploy was given, in the configuration folder. Whether it is there decides about TLS.
PAIR_FOLDER: Final = "deployed-tls"
PAIR_FILES: Final = {"XETSERVE_TLS_CERT": "cert.pem", "XETSERVE_TLS_KEY": "key.pem"}
CHECK: Final = ("config", "check", "--config", CONFIG)
STOP_TIMEOUT: Final = 45  # seconds; longer than the default drain_timeout
OWNER_LABEL: Final = "io.xetserve.deploy"
UNKNOWN_COMMAND: Final = 2  # exit status of a version that has no `probe`


class ContainerTarget:
    """A target that plans deployments to an engine.

    Args:
        template, env_template: the content of new configuration files.
        timeout: seconds that a start may take.
        summarize: summarizes a settings file.
        gets_pair: whether the plan will put a certificate and its key into pair_folder.
    """

    def __init__(
        self,
        machine: Machine,
        engine: str,
        shape: Shape,
        *,
        template: bytes,
        env_template: bytes,
        timeout: float = 30.0,
        summarize: Callable[[bytes], Summary] = summarize_bytes,
        gets_pair: bool = False,
    ) -> None:
        _, self._port = shape.address
        self._machine = machine
        self._engine = engine
        self._shape = shape
        self._template = template
        self._env_template = env_template
        self._timeout = timeout
        self._applied = AppliedSettings(
            machine,
            shape.config_folder / "xetserve.toml",
            shape.config_folder / f".{shape.name}.applied",
            summarize,
        )
        self.pair_folder = shape.config_folder / PAIR_FOLDER
        self._has_pair = gets_pair or machine.exists(self.pair_folder)
        self._unit = PodmanUnit(machine, engine, shape.name, shape.config_folder)
        self._next = f"{shape.name}-next"
        self._previous = f"{shape.name}-previous"
        self._trial = f"{shape.name}-trial"

    def plan_apply(self, package: Package | None) -> Plan:
        """Return a plan that runs the shape's image, or an image built from a package."""
        name = self._shape.name
        plan = Plan(steps=self._make_configuration())
        restored = undo_making(self._machine, plan.steps)
        image, building = self._get_image(package, plan.notes)
        plan.steps += building
        if building and self._find_image(image) is None:
            restored.append(self._command("image", "rm", "--force", image, may_fail=True))
        unit = self._unit.make(plan.notes)
        plan.steps += unit
        restored += self._unit.undo(unit)
        environment = self._machine.read(self._env_file)
        spec = self._make_spec(image, self._env_template if environment is None else environment)
        labels = {SPEC_LABEL: spec, FLAGS_LABEL: self._shape.format_flags()}
        current = self._inspect(name)
        if (
            current is not None
            and not building
            and current["State"].get("Running")
            and labels.items() <= get_labels(current).items()
            and _strip(current.get("Image")) == self._find_image(image)
        ):
            started = _parse_time(current["State"].get("StartedAt"))
            change = self._applied.find_change(self._template, started)
            plan.cleanup, plan.after = restored, self._unit.start() if unit else []
            plan.switch = len(plan.steps)
            if change is Change.NOTHING:
                plan.after += self._applied.record_if_new()
                return plan
            plan.notes.append(change.value)
            if change is Change.RELOAD:
                plan.steps.append(self._command("exec", name, "xetserve", *CHECK))
                plan.steps.append(self._command("kill", "--signal=HUP", name))
                plan.switch = len(plan.steps)
                plan.after.append(self._applied.record())
                return plan
            plan.after = []
        volume = f"{name}-cache"
        if self._run("volume", "inspect", volume).status:
            plan.steps.append(self._command("volume", "create", volume))
            restored.insert(0, self._command("volume", "rm", volume, may_fail=True))
        if self._inspect(self._next) is not None:  # an earlier apply was interrupted
            plan.steps.append(self._command("rm", "--force", self._next))
        is_ours = current is not None and self._find_address(name) == self._shape.address
        if self._shape.network == "host" and not is_ours:
            plan.steps.append(CheckVacant(Address(*self._shape.address)))
        plan.steps.append(
            self._command("run", "--rm", "--network=none", *self._flags(), image, *CHECK)
        )
        plan.steps.append(
            self._command(
                "create",
                "--name",
                self._next,
                *(word for each in labels.items() for word in ("--label", "=".join(each))),
                *self._flags_of_service(),
                image,
                *self._serve(),
            )
        )
        version = package.version if package is not None else None
        if current is not None and current["State"].get("Running"):
            plan.steps += self._try(image, version)
            restored.insert(0, self._command("rm", "--force", self._trial, may_fail=True))
        plan.cleanup = [self._command("rm", "--force", self._next, may_fail=True), *restored]
        plan.switch = len(plan.steps)
        self._take_over(plan, self._next, current is not None, version)
        plan.undo.insert(0, self._command("rm", "--force", self._next, may_fail=True))
        plan.undo += restored
        if current is None:
            plan.back_to = "the state without xetserve"
            plan.after = [self._command("rename", self._next, name)]
        else:
            plan.back_to = f"image {current['Config'].get('Image', 'of before')}"
            if self._inspect(self._previous) is not None:
                plan.after.append(self._command("rm", "--force", self._previous))
            plan.after += [
                self._command("rename", name, self._previous),
                self._command("rename", self._next, name),
            ]
        plan.after += [self._applied.record(), *self._unit.start()]
        if current is not None:
            label = f"{OWNER_LABEL}={name}"
            plan.after.append(RemoveOldImages(self._engine, label, (name, self._previous)))
        return plan

    def plan_same_image(self) -> Plan | None:
        """Return a plan that keeps the image of now, for other settings; None: no service."""
        current = self._inspect(self._shape.name)
        if current is None:
            return None
        self._shape = replace(self._shape, image=current["Config"]["Image"])
        return self.plan_apply(None)

    @property
    def command(self) -> str:
        """Return the command that applies changed settings."""
        name = self._shape.name
        return f"xetserve deploy apply{'' if name == 'xetserve' else f' --name {name}'}"

    def plan_rollback(self) -> Plan:
        """Return a plan that runs the previous container again.

        Raises:
            DeployError: there is no previous container.
        """
        current, previous = self._inspect(self._shape.name), self._inspect(self._previous)
        if previous is None:
            raise DeployError("there is no previous container to go back to")
        plan = Plan(back_to="the container that ran")
        self._take_over(plan, self._previous, current is not None, None)
        if current is not None:
            plan.undo.insert(0, self._command("stop", self._previous, may_fail=True))
            plan.after.append(self._command("rename", self._shape.name, self._next))
        plan.after.append(self._command("rename", self._previous, self._shape.name))
        if current is not None:
            plan.after.append(self._command("rename", self._next, self._previous))
        return plan

    def plan_remove(self, *, purge: bool) -> Plan:
        """Return a plan that removes the containers; with purge also configuration and cache."""
        shape = self._shape
        names = [shape.name, self._next, self._previous, self._trial]
        plan = Plan()
        plan.steps += self._unit.remove()
        for name in names:
            if (found := self._inspect(name)) is not None:
                if found["State"].get("Running"):
                    plan.steps.append(self._stop(name))
                plan.steps.append(self._command("rm", "--force", name))
        built = self._run(
            "image", "ls", "--format", "{{.ID}}", "--filter", f"label={OWNER_LABEL}={shape.name}"
        )
        plan.steps += [
            self._command("image", "rm", "--force", one) for one in sorted({*built.out.split()})
        ]
        if not purge and self._machine.exists(self._applied.state):
            plan.steps.append(Remove(self._applied.state))
        if purge:
            volume = f"{shape.name}-cache"
            if self._run("volume", "inspect", volume).status == 0:
                plan.steps.append(self._command("volume", "rm", volume))
            if self._machine.exists(shape.config_folder):
                plan.steps.append(Remove(shape.config_folder))
        plan.switch = len(plan.steps)
        return plan

    def get_status(self) -> dict[str, str]:
        """Return the state of the service: name -> value."""
        state = {}
        for role, name in (("current", self._shape.name), ("previous", self._previous)):
            found = self._inspect(name)
            if found is None:
                state[role] = "none"
                continue
            told = found["State"]
            health = (told.get("Health") or {}).get("Status")
            image = found["Config"].get("Image", "?")
            state[role] = f"{image}, {told.get('Status', '?')}{f', {health}' if health else ''}"
        state["ready"] = describe_state(self.ask_ready())
        return state

    def ask_ready(self) -> Answer | None:
        """Return the answer of /ready of the running container; None: there is none."""
        return self._ask(self._shape.name, READY)

    @property
    def settings(self) -> Path:
        """Return the path of the settings file."""
        return self._applied.path

    def log_command(self, *, follow: bool, lines: int) -> tuple[str, ...]:
        """Return the command that prints the log."""
        following = ("--follow",) if follow else ()
        return (self._engine, "logs", f"--tail={lines}", *following, self._shape.name)

    @property
    def _env_file(self) -> Path:
        return self._shape.config_folder / "xetserve.env"

    def _make_configuration(self) -> list[Step]:
        folder = self._shape.config_folder
        steps: list[Step] = []
        if not self._machine.exists(folder):
            steps.append(Folder(folder, 0o750, USER))
        if not self._machine.exists(folder / "xetserve.toml"):
            steps.append(File(folder / "xetserve.toml", self._template, 0o640, USER))
        if not self._machine.exists(self._env_file):  # the engine reads it, not the container
            steps.append(File(self._env_file, self._env_template, 0o640, "0"))
        return steps

    def _get_image(self, package: Package | None, notes: list[str]) -> tuple[str, list[Step]]:
        """Return the image, and the steps that build or pull it if that is necessary.

        Append to notes why an image that exists is built again.
        """
        shape = self._shape
        if shape.image:
            if self._find_image(shape.image) is not None and not shape.is_new:
                return shape.image, []
            return shape.image, [self._command("pull", shape.image)]
        if package is None:
            raise DeployError("name an image (--image), or a source folder (--from) to build one")
        source = Path(package.requirement)
        path = source / "Dockerfile.alpine"
        dockerfile = self._machine.read(path)
        if dockerfile is None:
            raise DeployError(f"{path} does not exist: --from must be a source folder")
        image = f"{shape.name}:{package.name}"
        arguments = (f"VERSION={package.version}", *shape.build_arguments)
        recipe = Recipe(self._engine, dockerfile, arguments)
        if not shape.is_new and (found := inspect_image(self._machine, self._engine, image)):
            reason = recipe.find_change(self._machine, found)
            if reason is None:
                return image, []
            notes.append(f"the image is built again: {reason}")
        flags = ["--file", str(path), "--tag", image]
        flags += ["--label", f"{OWNER_LABEL}={shape.name}"]
        flags += ["--no-cache"] if shape.is_new else []
        # Podman's own image format has no HEALTHCHECK.
        flags += ["--format", "docker"] if self._engine == "podman" else []
        flags += ["--network", shape.network] if shape.network else []
        return image, recipe.plan_build(self._machine, tuple(flags), str(source))

    def _flags(self) -> tuple[str, ...]:
        """Return the flags of every container: no privileges, and only the cache is writable."""
        shape = self._shape
        return (
            *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
            *("--user", f"{USER}:{USER}", "--tmpfs", "/tmp:rw,noexec,nosuid,nodev,size=16m"),
            *("--pids-limit=512", f"--memory={shape.memory}"),
            *("--env-file", str(self._env_file)),
            *("--env", f"XETSERVE_CACHE_DIR={CACHE}"),
            *("--volume", f"{shape.name}-cache:{CACHE}"),
            *("--volume", f"{shape.config_folder}:/etc/xetserve:ro"),
            *(
                word
                for variable, file in PAIR_FILES.items()
                if self._has_pair
                for word in ("--env", f"{variable}=/etc/xetserve/{PAIR_FOLDER}/{file}")
            ),
        )

    def _flags_of_service(self) -> tuple[str, ...]:
        shape = self._shape
        flags = (*self._flags(), "--restart=unless-stopped", f"--stop-timeout={STOP_TIMEOUT}")
        if shape.network == "host":
            address, colon, _ = shape.publish.rpartition(":")
            listen = ("--env", f"XETSERVE_HOST={address.strip('[]')}") if colon else ()
            return (*flags, "--network=host", "--env", f"XETSERVE_PORT={self._port}", *listen)
        network = (f"--network={shape.network}",) if shape.network else ()
        return (
            *flags,
            *network,
            "--env",
            "XETSERVE_PORT=8080",
            "--publish",
            f"{shape.publish}:8080",
        )

    def _try(self, image: str, version: str | None) -> list[Step]:
        """Return steps that run an image beside the service, and remove its container again."""
        if self._shape.network == "host":
            return []
        trial = self._trial
        network = (f"--network={self._shape.network}",) if self._shape.network else ()
        flags = (*self._flags(), *network, "--env", "XETSERVE_PORT=8080")

        def ask(_: Machine, path: str) -> Answer | None:
            probed = self._probe(trial, path)
            if probed is None:  # it is too old to be tried
                return Answer("", 200, json.dumps({"version": version}).encode())
            return probed[0]

        probe = Check(
            ask,
            version,
            self._timeout,
            find_end=lambda _: self._find_end(trial),
            what=f"{trial}, which no client reaches,",
        )
        return [
            self._command(
                "rm", "--force", trial, may_fail=True
            ),  # an earlier apply was interrupted
            self._command("create", "--name", trial, *flags, image, *self._serve()),
            self._command("start", trial),
            probe,
            self._command("rm", "--force", trial),
        ]

    def _find_end(self, name: str) -> str:
        """Return why a container will not answer: it has exited; "": it runs."""
        found = self._inspect(name)
        if found is None:  # the engine is busy, or somebody has removed it
            return ""
        state = found["State"]
        is_new = name in (self._trial, self._next)
        has_ended = state.get("Restarting") or (is_new and found.get("RestartCount"))
        if not has_ended and (state.get("Running") or state.get("Status") == "created"):
            return ""
        done = self._run("logs", "--tail=3", name)
        lines = " / ".join((done.out + done.errors).split("\n")).strip(" /")
        return f"{name} has exited with status {state.get('ExitCode', '?')}: {lines or 'no log'}"

    @staticmethod
    def _serve() -> tuple[str, ...]:
        return ("serve", "--config", CONFIG)

    def _make_spec(self, image: str, environment: bytes) -> str:
        """Return a fingerprint of everything a container is created from.

        If the fingerprint changes, the container must be created again.
        """
        parts = [
            image,
            *self._flags_of_service(),
            *self._serve(),
            hashlib.sha256(environment).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def _take_over(self, plan: Plan, name: str, has_current: bool, version: str | None) -> None:
        if has_current:
            plan.steps.append(self._stop(self._shape.name))
            plan.undo += [
                self._command("start", self._shape.name),
                self._check(self._shape.name, None),
            ]
        plan.steps += [self._command("start", name), self._check(name, version)]
        plan.log = (self._engine, "logs", "--tail=10", name)

    def _stop(self, name: str) -> Command:
        return self._command("stop", f"--time={STOP_TIMEOUT}", name)

    def _check(self, name: str, version: str | None) -> Check:
        return Check(
            lambda _, path: self._ask(name, path),
            version,
            self._timeout,
            find_end=lambda _: self._find_end(name),
        )

    def _ask(self, name: str, path: str) -> Answer | None:
        """Send a GET to the server in a container; return None without a response.

        The server's own settings say what it speaks, so a probe in the container asks first. Then
        the published port is asked, as clients would, unless only a proxy may connect there.
        """
        probed = self._probe(name, path)
        if probed is None:
            addresses = [Address(*self._find_address(name), tls) for tls in (False, True)]
            return choose_answer(self._machine.ask(each, path) for each in addresses)
        answer, needs_header = probed
        if answer is None or answer.url.startswith("unix:"):
            return answer
        address = Address(*self._find_address(name), tls=answer.url.startswith("https:"))
        if needs_header:
            return answer._replace(url=address.url)
        return self._machine.ask(address, path)

    def _probe(self, name: str, path: str) -> tuple[Answer | None, bool] | None:
        """Ask the server in a container there; None: its version has no command for that.

        Returns its answer, if any, and whether it needs a PROXY header.
        """
        is_ready = ("--ready",) if path == READY else ()
        done = self._run("exec", name, "xetserve", "probe", "--json", *is_ready)
        probed = parse_probe(done.out)
        if probed is None and done.status != UNKNOWN_COMMAND:  # the container does not run
            return None, False
        return probed

    def _find_address(self, name: str) -> tuple[str, int]:
        """Return where a container is published; the one before may be elsewhere than the new."""
        label = get_labels(self._inspect(name)).get(FLAGS_LABEL)
        return (replace(self._shape, **parse_flags(label)) if label else self._shape).address

    def _command(self, *arguments: str, may_fail: bool = False) -> Command:
        return Command((self._engine, *arguments), may_fail)

    def _run(self, *arguments: str) -> Any:
        return self._machine.run((self._engine, *arguments))

    def _inspect(self, name: str) -> dict[str, Any] | None:
        return inspect_container(self._machine, self._engine, name)

    def _find_image(self, image: str) -> str | None:
        found = inspect_image(self._machine, self._engine, image)
        return None if found is None else found.number


def _strip(image_id: object) -> str:
    return str(image_id).removeprefix("sha256:")


def _parse_time(text: object) -> float:
    """Return a time in the notation of the engines in seconds; 0: it is another notation."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0
