"""The properties of a deployed container, and what the engine and its labels tell of them."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from xetserve.deploy.machine import DeployError, Machine

SPEC_LABEL: Final = "io.xetserve.spec"
FLAGS_LABEL: Final = "io.xetserve.deploy.flags"  # what an upgrade without flags keeps
_PUBLISH: Final = re.compile(r"(?:(\[[0-9a-fA-F:.]+\]|\d{1,3}(?:\.\d{1,3}){3}):)?(\d{1,5})")


def find_engine(machine: Machine, engine: str) -> str | None:
    """Return the reason why an engine cannot be used; None: it can."""
    if machine.which(engine) is None:
        return f"{engine} is not installed"
    form = "{{.Server.Version}}" if engine == "docker" else "{{.Client.Version}}"
    done = machine.run((engine, "version", "--format", form))
    if done.status:
        lines = (done.errors.strip() or done.out.strip() or "it gave no reason").splitlines()
        return f"{engine} does not work: {lines[-1]}"
    return None


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties of the container.

    publish: [ADDRESS:]PORT on this machine.
    network: of the engine; None: its default bridge.
    memory: the limit, in the engine's notation.
    image: an existing image; empty: build one from a source folder.
    is_new: build or pull the image again.
    """

    name: str = "xetserve"
    config_folder: Path = Path("/etc/xetserve")
    publish: str = "8080"
    network: str | None = None
    memory: str = "512m"
    image: str = ""
    build_arguments: tuple[str, ...] = ()
    is_new: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """Return host and port at which this machine reaches the container.

        Raises:
            DeployError: publish is not [ADDRESS:]PORT.
        """
        match = _PUBLISH.fullmatch(self.publish)
        if match is None or not 0 < int(match[2]) < 65536:
            raise DeployError(f"--publish must be PORT or ADDRESS:PORT, not {self.publish!r}")
        host = match[1] or "127.0.0.1"
        return {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]")), int(match[2])

    def format_flags(self) -> str:
        """Return the properties that parse_flags reads, as a label."""
        return json.dumps(
            {
                "publish": self.publish,
                "network": self.network,
                "memory": self.memory,
                "config_folder": str(self.config_folder),
                "build_arguments": self.build_arguments,
            }
        )


def parse_flags(label: str) -> dict[str, Any]:
    """Read the properties of a Shape from a label.

    Raises:
        DeployError: it is not from format_flags.
    """
    try:
        found = dict(json.loads(label))
        found["config_folder"] = Path(found["config_folder"])
        found["build_arguments"] = tuple(found["build_arguments"])
        replace(Shape(), **found)
    except (ValueError, KeyError, TypeError):
        raise DeployError(f"the label {FLAGS_LABEL} is not of this version: {label}") from None
    return found


def inspect_container(machine: Machine, engine: str, name: str) -> dict[str, Any] | None:
    """Return what an engine knows about a container; None: there is none.

    Raises:
        DeployError: the engine's answer is not understood.
    """
    done = machine.run((engine, "container", "inspect", name))
    if done.status:
        return None
    try:
        found: dict[str, Any] = json.loads(done.out)[0]
        found["State"], found["Config"]
    except (ValueError, LookupError, TypeError):
        raise DeployError(f"{engine} inspect {name} returned unexpected output") from None
    return found


def find_flags(machine: Machine, engine: str, name: str) -> dict[str, Any] | None:
    """Return the properties of a service's container that its deployment recorded.

    None: the service is not deployed; empty: an older version has deployed it, and recorded none.
    """
    for each in (name, f"{name}-previous"):
        labels = get_labels(inspect_container(machine, engine, each))
        if FLAGS_LABEL in labels:
            return parse_flags(labels[FLAGS_LABEL])
        if SPEC_LABEL in labels:
            return {}
    return None


def get_labels(found: dict[str, Any] | None) -> dict[str, str]:
    """Return the labels of an inspected container."""
    return {} if found is None else found["Config"].get("Labels") or {}
