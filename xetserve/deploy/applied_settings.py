"""The settings that a deployed service has: a change of live ones is a reload, of others a restart.

A service has read the files that are older than its start. Of newer ones, a file beside the service
records a summary when they are applied.
"""

import enum
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xetserve.deploy.machine import Machine


class Summary(NamedTuple):
    """Hashes of a settings file: of all settings, and of those that need a restart."""

    settings: str
    fixed: str


class Change(enum.Enum):
    """What has to be done for the settings; the value is a note for the operator."""

    NOTHING = ""
    RELOAD = "settings changed: reload"
    RESTART = "settings changed: restart, since a reload cannot apply all of them"


def summarize_bytes(content: bytes) -> Summary:
    """Summarize a file, as if each change of it needed a restart."""
    return Summary(*[hashlib.sha256(content).hexdigest()] * 2)


@dataclass(frozen=True, slots=True)
class _Record:
    settings: "AppliedSettings"

    def describe(self) -> str:
        """Return one line about the step."""
        return f"record the settings in {self.settings.state}"

    def do(self, machine: Machine) -> None:
        """Carry out the step."""
        machine.write(
            self.settings.state, json.dumps(self.settings.summarize_now()).encode(), 0o600, None
        )


@dataclass(frozen=True, slots=True)
class AppliedSettings:
    """The settings of a service.

    path: the settings file.
    state: the file with the summary of the settings that were applied.
    environment: a file of variables; a change of it needs a restart. None: there is none.
    """

    machine: Machine
    path: Path
    state: Path
    summarize: Callable[[bytes], Summary]
    environment: Path | None = None

    def find_change(self, template: bytes, started: float) -> Change:
        """Return what has to be done; it is a reload if nothing is recorded.

        Args:
            template: what a missing settings file will be made from.
            started: when the service was started, in seconds as of time.time().
        """
        changed = [self.machine.get_change_time(each) for each in self._files]
        if max((each for each in changed if each is not None), default=0.0) < started:
            return Change.NOTHING
        now, before = self.summarize_now(template), self._read_record()
        if before is None:
            return Change.RELOAD
        if now == before:
            return Change.NOTHING
        return Change.RELOAD if now.fixed == before.fixed else Change.RESTART

    @property
    def _files(self) -> list[Path]:
        return [self.path, *([self.environment] if self.environment else [])]

    def record_if_new(self) -> list[_Record]:
        """Return the step that records settings which the service has read when it started."""
        return [] if self._read_record() == self.summarize_now() else [_Record(self)]

    def _read_record(self) -> Summary | None:
        try:
            return Summary(*json.loads(self.machine.read(self.state) or b""))
        except (ValueError, TypeError):
            return None

    def record(self) -> _Record:
        """Return a step that records the settings as applied."""
        return _Record(self)

    def summarize_now(self, template: bytes = b"") -> Summary:
        """Return the summary of the files as they are."""
        content = self.machine.read(self.path)
        settings, fixed = self.summarize(template if content is None else content)
        variables = self.machine.read(self.environment) if self.environment else None
        if variables is None:
            return Summary(settings, fixed)
        both = hashlib.sha256(variables).hexdigest()
        return Summary(f"{settings} {both}", f"{fixed} {both}")
