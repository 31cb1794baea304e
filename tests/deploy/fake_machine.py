"""A machine that is not there: files in a dictionary, commands that are noted, services that come
up or do not.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from xetserve.deploy.local_server import Address, Answer, Speech
from xetserve.deploy.machine import DeployError, Done

Handler = Callable[[tuple[str, ...]], Done | None]
OK = Done(0, "", "")


class FakeMachine:
    """Keeps what was done.

    Attributes:
        files: path -> content; a folder is None, a link is "-> target".
        times: path -> time of its last change.
        rights: path -> (mode, group).
        commands: all that were run, one line each.
        handlers: asked in turn for the outcome of a command; without one it succeeds.
        respond: what the server at an address says about a path; None: nothing.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes | str | None] = {}
        self.times: dict[str, float] = {}
        self.rights: dict[str, tuple[int, str | None]] = {}
        self.commands: list[str] = []
        self.handlers: list[Handler] = []
        self.programs = {"systemctl", "docker", "podman"}
        self.respond: Callable[[Address, str], tuple[int, bytes] | None] = lambda *_: None
        self.waited = 0.0
        self.changes = 0

    def read(self, path: Path) -> bytes | None:
        found = self.files.get(self._resolve(path))
        return found if isinstance(found, bytes) else None

    def exists(self, path: Path) -> bool:
        return str(path) in self.files or self._resolve(path) in self.files

    def get_mode(self, path: Path) -> int | None:
        found = self.rights.get(self._resolve(path))
        return None if found is None or not self.exists(path) else found[0]

    def get_change_time(self, path: Path) -> float | None:
        return self.times.get(self._resolve(path)) if self.exists(path) else None

    def read_link(self, path: Path) -> str | None:
        found = self.files.get(str(path))
        return found.removeprefix("-> ") if isinstance(found, str) else None

    def list_folder(self, path: Path) -> list[str]:
        prefix = f"{path}/"
        return sorted(
            {
                name.removeprefix(prefix).split("/")[0]
                for name in self.files
                if name.startswith(prefix)
            }
        )

    def write(self, path: Path, content: bytes, mode: int, group: str | None) -> None:
        if str(path.parent) not in self.files:
            raise DeployError(f"cannot write {path}: no folder")
        self._change(path, content)
        self.rights[str(path)] = (mode, group)

    def make_folder(self, path: Path, mode: int, group: str | None) -> None:
        for folder in (*reversed(path.parents), path):
            self.files.setdefault(str(folder), None)
        self.changes += 1
        self.rights[str(path)] = (mode, group)

    def make_link(self, path: Path, target: str) -> None:
        self._change(path, f"-> {target}")

    def remove(self, path: Path) -> None:
        self.changes += 1
        for name in [n for n in self.files if n == str(path) or n.startswith(f"{path}/")]:
            del self.files[name]

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def run(self, command: tuple[str, ...]) -> Done:
        self.commands.append(" ".join(command))
        for handler in self.handlers:
            if (done := handler(command)) is not None:
                return done
        return OK

    def ask(self, address: Address, path: str) -> Answer | None:
        answer = self.respond(address, path)
        return None if answer is None else Answer(address.url, *answer)

    def wait(self, seconds: float) -> None:
        self.waited += seconds

    def _change(self, path: Path, content: bytes | str) -> None:
        self.changes += 1
        self.files[str(path)] = content
        self.times[str(path)] = time.time()

    def _resolve(self, path: Path) -> str:
        """Follow links in the folders of a path."""
        parts = path.parts
        for end in range(len(parts), 0, -1):
            prefix = Path(*parts[:end])
            target = self.files.get(str(prefix))
            if isinstance(target, str):
                return self._resolve(
                    prefix.parent / target.removeprefix("-> ") / Path(*parts[end:])
                )
        return str(path)


class FakeSystemd:
    """What systemctl does to a machine: the service runs whatever `current` leads to.

    Attributes:
        broken: names of versions that never get ready.
        is_half_broken: they start, but are not ready; otherwise they do not start.
        speech: what the service speaks; whoever speaks otherwise gets what a real one says.
    """

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine
        self.is_enabled = self.is_listening = self.has_group = False
        self.running: str | None = None
        self.started = 0.0
        self.broken: set[str] = set()
        self.is_half_broken = False
        self.speech = Speech()
        self.pip_fails = False
        machine.handlers.append(self._handle)
        machine.respond = self._respond
        for folder in ("/run/systemd/system", "/etc/systemd/system", "/opt"):
            machine.make_folder(Path(folder), 0o755, None)
        machine.changes = 0

    def _handle(self, command: tuple[str, ...]) -> Done | None:
        machine = self._machine
        no = Done(1, "", "no")
        match command:
            case ("getent", "group", _):
                return OK if self.has_group else no
            case ("groupadd", *_):
                self.has_group = True
            case ("groupdel", *_):
                self.has_group = False
            case (_, "-m", "venv", folder):
                machine.make_folder(Path(folder) / "bin", 0o755, None)
            case (_, "-m", "pip", *_) if self.pip_fails:
                return Done(1, "", "no such package\nno network")
            case ("systemctl", "is-enabled", *_):
                return OK if self.is_enabled else no
            case ("systemctl", "is-active", "--quiet", unit):
                return OK if (self.is_listening if "socket" in unit else self.running) else no
            case ("systemctl", "is-active", "xetserve.socket"):
                return Done(0, "active\n", "") if self.is_listening else Done(3, "inactive\n", "")
            case ("systemctl", "is-active", *_):
                return Done(0, "active\n", "") if self.running else Done(3, "inactive\n", "")
            case ("systemctl", "is-failed", *_):
                return no
            case ("systemctl", "enable", *_):
                self.is_enabled = True
            case ("systemctl", "disable", *_):
                self.is_enabled = self.is_listening = False
                self.running = None
            case ("systemctl", "stop", *_):
                self.is_listening, self.running = False, None
            case ("systemctl", "start", "xetserve.socket"):
                self.is_listening = True
            case ("systemctl", "restart", _):
                link = machine.read_link(Path("/opt/xetserve/current"))
                name = None if link is None else link.removeprefix("versions/")
                if name in self.broken and not self.is_half_broken:
                    self.running = None
                    return Done(1, "", "Job for xetserve.service failed")
                self.running, self.started = name, time.monotonic()
            case ("systemctl", "show", name, *_) if name.endswith("TimestampMonotonic"):
                return Done(0, f"{self.started * 1e6:.0f}\n", "")
            case ("systemctl", "show", *_):
                return Done(0, "[::]:8080 (Stream)\n" if self.is_listening else "\n", "")
        return None

    def _respond(self, address: Address, path: str) -> tuple[int, bytes] | None:
        if self.running is None or address[:2] != ("127.0.0.1", 8080):
            return None
        if (refusal := refuse(self.speech, address)) is not None:
            return refusal or None
        if path == "/ready":
            return (503 if self.running in self.broken else 200), b"{}"
        return 200, json.dumps({"version": self.running.split("-")[0]}).encode()


def refuse(speech: Speech, address: Address) -> tuple[int, bytes] | tuple[()] | None:
    """What a server says to those who speak otherwise: nothing, or over plain HTTP 400; None: they
    are right.
    """
    if address.needs_header != speech.needs_header:
        return ()
    if address.tls != speech.tls:
        return () if address.tls else (400, b'{"error": "this port speaks TLS"}')
    return None
