"""What docker does to a machine that is not there."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.deploy.fake_machine import OK, FakeMachine, refuse
from xetserve.deploy.local_server import Address, Answer, Speech, format_probe
from xetserve.deploy.machine import Done

NO = Done(1, "", "Error: No such object")


@dataclass
class Container:
    image: str
    number: str  # id of the image
    labels: dict[str, str]
    arguments: tuple[str, ...]
    is_running: bool = False
    started: str = "0001-01-01T00:00:00Z"

    @property
    def is_published(self) -> bool:
        return "--publish" in self.arguments

    @property
    def address(self) -> tuple[str, int]:
        if not self.is_published:
            return "", 0
        host, _, port = self.arguments[self.arguments.index("--publish") + 1][:-5].rpartition(":")
        return host or "127.0.0.1", int(port)


@dataclass
class FakeEngine:
    """Containers, images and volumes; one that runs answers where it is published.

    broken: images whose containers do not get ready; with ends, they exit instead.
    is_trial_fine: broken ones are not when no port is published.
    speech: what the servers speak on the published port.
    has_probe: whether their version has the command `probe`.
    enabled: units of systemd that are.
    blocked: ports that do not lead to their container.
    """

    machine: FakeMachine
    containers: dict[str, Container] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # name -> id
    image_labels: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> labels
    labelled: dict[str, str] = field(default_factory=dict)  # id -> label
    volumes: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    ends: bool = False
    is_trial_fine: bool = False
    is_config_bad: bool = False
    speech: Speech = field(default_factory=Speech)
    has_probe: bool = True
    enabled: set[str] = field(default_factory=set)
    blocked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.machine.handlers.append(self._handle)
        self.machine.respond = self._respond

    def _handle(self, command: tuple[str, ...]) -> Done | None:
        match command:
            case ("systemctl", "is-enabled", _, unit):
                return OK if unit in self.enabled else NO
            case ("systemctl", "enable", unit):
                self.enabled.add(unit)
            case ("systemctl", "disable", *_, unit):
                self.enabled.discard(unit)
        if command[0] == "systemctl":
            return None
        match command[1:]:
            case ("container", "inspect", "--format", "{{.Image}}", name):
                if name not in self.containers:
                    return NO
                return Done(0, f"sha256:{self.containers[name].number}\n", "")
            case ("container", "inspect", name):
                if name not in self.containers:
                    return NO
                found = self.containers[name]
                document = {
                    "Image": f"sha256:{found.number}",
                    "State": {
                        "Running": found.is_running,
                        "StartedAt": found.started,
                        "Status": "running" if found.is_running else "exited",
                        "ExitCode": 0 if found.is_running else 3,
                    },
                    "Config": {"Labels": found.labels, "Image": found.image},
                }
                return Done(0, json.dumps([document]), "")
            case ("image", "inspect", _, _, image):
                if image not in self.images:
                    return NO
                labels = json.dumps(self.image_labels.get(image))
                return Done(0, f"sha256:{self.images[image]} {labels}\n", "")
            case ("image", "ls", *_):
                return Done(0, "\n".join(self.labelled), "")
            case ("image", "rm", *_, image):
                number = self.images.pop(image, image)
                self.labelled.pop(number, None)
                self.images = {k: v for k, v in self.images.items() if v != number}
            case ("pull", image):
                self.images[image] = f"id-of-{image}"
            case ("build", *flags):
                image = flags[flags.index("--tag") + 1]
                given = _find_labels(tuple(flags))
                built = hashlib.sha256(repr((image, given, self.images)).encode()).hexdigest()
                self.images[image] = built
                self.image_labels[image] = given
                self.labelled[built] = ""
            case ("volume", "inspect", name):
                return OK if name in self.volumes else NO
            case ("volume", "create", name):
                self.volumes.add(name)
            case ("volume", "rm", name):
                self.volumes.remove(name)
            case ("run", *_) if self.is_config_bad:
                return Done(1, "", "xetserve: unknown key")
            case ("create", "--name", name, *arguments):
                image = arguments[arguments.index("serve") - 1]
                assert name not in self.containers
                self.containers[name] = Container(
                    image, self.images[image], _find_labels(tuple(arguments)), tuple(arguments)
                )
            case ("exec", name, "xetserve", "probe", "--json", *ready):
                return self._probe(name, "/ready" if ready else "/health")
            case ("start", name):
                started = self.containers[name]
                others = [each for each in self.containers.values() if each.is_running]
                if started.is_published:
                    assert not any(each.is_published for each in others)
                started.is_running = not (self.ends and self._is_broken(started))
                self.containers[name].started = datetime.now(UTC).isoformat()
            case ("logs", *_):
                return Done(0, "xetserve: said\n", "")
            case ("stop", *_, name):
                self.containers[name].is_running = False
            case ("exec", _, "xetserve", "config", "check", *_) if self.is_config_bad:
                return Done(1, "", "xetserve: unknown key")
            case ("rename", old, new):
                assert new not in self.containers
                self.containers[new] = self.containers.pop(old)
            case ("rm", "--force", name):
                if self.containers.pop(name, None) is None:
                    return NO
        return OK

    def _probe(self, name: str, path: str) -> Done:
        """What the command says in a container, over what its server speaks."""
        if name not in self.containers or not self.containers[name].is_running:
            return Done(1, "", f"Error response from daemon: container {name} is not running")
        if not self.has_probe:
            return Done(2, "", "xetserve: argument COMMAND: invalid choice: 'probe'")
        address = Address("127.0.0.1", 8080, *self.speech)
        status, body = self._say(self.containers[name], path)
        answer = Answer(address.url, status, body)
        return Done(int(status != 200), format_probe(address, answer, "") + "\n", "")

    def _say(self, container: Container, path: str) -> tuple[int, bytes]:
        version = container.image.rpartition(":")[2].split("-")[0]
        if path == "/health":
            return 200, json.dumps({"version": version}).encode()
        return (503 if self._is_broken(container) else 200), b"{}"

    def _is_broken(self, container: Container) -> bool:
        is_fine = self.is_trial_fine and not container.is_published
        return container.image in self.broken and not is_fine

    def _respond(self, address: Address, path: str) -> tuple[int, bytes] | None:
        for container in self.containers.values():
            is_here = container.address == address[:2] and address.port not in self.blocked
            if container.is_running and is_here:
                refusal = refuse(self.speech, address)
                return self._say(container, path) if refusal is None else refusal or None
        return None


def _find_labels(arguments: tuple[str, ...]) -> dict[str, str]:
    labels = [arguments[i + 1] for i, each in enumerate(arguments) if each == "--label"]
    return dict(each.split("=", 1) for each in labels)
