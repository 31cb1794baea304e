"""Image builds: from which inputs an image was built, and whether they have changed.

Labels of the image record a hash of the Dockerfile with its build arguments, and the ids of the
base images. The sources are in its name.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from xetserve.deploy.machine import DeployError, Machine
from xetserve.deploy.steps import Command, Step

RECIPE_LABEL: Final = "io.xetserve.deploy.recipe"
BASES_LABEL: Final = "io.xetserve.deploy.bases"
_BASE: Final = re.compile(r"(?m)^ARG (BASE|BUILD_BASE)=(\S+)")


class Image(NamedTuple):
    """An image: its id, without the name of the hash, and its labels."""

    number: str
    labels: dict[str, str]


def inspect_image(machine: Machine, engine: str, name: str) -> Image | None:
    """Return what an engine knows about an image; None: it does not have it."""
    form = "{{.Id}} {{json .Config.Labels}}"
    done = machine.run((engine, "image", "inspect", "--format", form, name))
    if done.status:
        return None
    number, _, labels = done.out.strip().partition(" ")
    try:
        return Image(number.removeprefix("sha256:"), json.loads(labels) or {})
    except ValueError:
        raise DeployError(f"{engine} image inspect {name} returned unexpected output") from None


def find_revision(machine: Machine, source: str) -> str:
    """Return the commit of a source folder, with -dirty if files differ; or "unknown"."""
    if machine.which("git") is None:
        return "unknown"
    # The configuration in the folder may name a program as a monitor of files: not for us.
    git = ("git", "-C", source, "-c", "core.fsmonitor=false")
    done = machine.run((*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"))
    return done.out.strip() if done.status == 0 else "unknown"


class Recipe:
    """A Dockerfile with build arguments (NAME=VALUE), for an engine."""

    def __init__(self, engine: str, dockerfile: bytes, arguments: tuple[str, ...]) -> None:
        self._engine = engine
        self._arguments = arguments
        self._hash = hashlib.sha256(json.dumps(arguments).encode() + dockerfile).hexdigest()[:32]
        values: dict[str, str] = dict(_BASE.findall(dockerfile.decode("utf-8", "replace")))
        for argument in arguments:
            name, _, value = argument.partition("=")
            if name in values:
                values[name] = value
        # BUILD_BASE is BASE by default. Each base counts once.
        self._bases = tuple(dict.fromkeys(values.get(v.strip("${}"), v) for v in values.values()))

    def find_change(self, machine: Machine, image: Image) -> str | None:
        """Return why an image has to be built again; None: its inputs are the same.

        A base image that the engine does not have is the same: it cannot be newer.
        """
        if image.labels.get(RECIPE_LABEL) != self._hash:
            return "the Dockerfile or the build arguments have changed"
        before = image.labels.get(BASES_LABEL, "").split()
        for base, number in zip(self._bases, before, strict=False):
            found = inspect_image(machine, self._engine, base)
            if found is not None and found.number != number:
                return f"the base image {base} has changed"
        return None

    def plan_build(self, machine: Machine, flags: tuple[str, ...], source: str) -> list[Step]:
        """Return the steps that build an image and record the inputs; missing bases are pulled."""
        for argument in self._arguments:
            flags += ("--build-arg", argument)
        pulls = [
            Command((self._engine, "pull", base))
            for base in self._bases
            if inspect_image(machine, self._engine, base) is None
        ]
        # Not a part of the recipe: another commit with the same files needs no build.
        flags += ("--build-arg", f"REVISION={find_revision(machine, source)}")
        command = (self._engine, "build", *flags, "--label", f"{RECIPE_LABEL}={self._hash}")
        return [*pulls, _Build(self._engine, command, self._bases, source)]


@dataclass(frozen=True, slots=True)
class _Build:
    """Build an image, with a label for the ids of its bases, which are known by then."""

    engine: str
    command: tuple[str, ...]
    bases: tuple[str, ...]
    source: str

    def describe(self) -> str:
        """Return one line about the step."""
        return Command((*self.command, self.source)).describe()

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        found = (inspect_image(machine, self.engine, base) for base in self.bases)
        numbers = " ".join("unknown" if each is None else each.number for each in found)
        Command((*self.command, "--label", f"{BASES_LABEL}={numbers}", self.source)).do(machine)


@dataclass(frozen=True, slots=True)
class RemoveOldImages:
    """Remove the images that were built for a service and that its containers do not have."""

    engine: str
    label: str
    containers: tuple[str, ...]

    def describe(self) -> str:
        """Return one line about the step."""
        return f"remove built images that are not those of {' and '.join(self.containers)}"

    def do(self, machine: Machine) -> None:
        """Carry out the step; the engine itself refuses to remove an image in use."""
        listing = ("image", "ls", "--no-trunc", "--format", "{{.ID}}")
        built = machine.run((self.engine, *listing, "--filter", f"label={self.label}")).out.split()
        used = set()
        for name in self.containers:
            done = machine.run(
                (self.engine, "container", "inspect", "--format", "{{.Image}}", name)
            )
            used.add(done.out.strip().removeprefix("sha256:"))
        for number in sorted({each.removeprefix("sha256:") for each in built} - used):
            machine.run((self.engine, "image", "rm", number))
