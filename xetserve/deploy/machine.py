"""The machine of a deployment: read and change files, run commands, send requests to the server."""

import contextlib
import grp
import os
import secrets
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from xetserve.base.atomic_file import replace_file
from xetserve.deploy.local_server import Address, Answer, ask
from xetserve.errors import XetserveError

COMMAND_TIMEOUT: Final = 900.0  # seconds; an image may have to be built


class DeployError(XetserveError):
    """A deployment is not possible; the message has the reason and the remedy."""


class Done(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    errors: str


class Machine(Protocol):
    """The operations on a machine. Every method may raise DeployError."""

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file; None: it does not exist."""
        ...

    def exists(self, path: Path) -> bool:
        """Return whether the path exists; a broken link counts."""
        ...

    def get_mode(self, path: Path) -> int | None:
        """Return the permission bits of a file; None: it does not exist."""
        ...

    def get_change_time(self, path: Path) -> float | None:
        """Return when a file was changed or put there, in seconds as of time.time(); None: never.

        A file that keeps the modification time of an older one counts as well.
        """
        ...

    def read_link(self, path: Path) -> str | None:
        """Return the target of a symbolic link; None: there is no link."""
        ...

    def list_folder(self, path: Path) -> list[str]:
        """Return the names in a folder; empty if it does not exist."""
        ...

    def write(self, path: Path, content: bytes, mode: int, group: str | None) -> None:
        """Write a file atomically. group: name or number; None: the default group."""
        ...

    def make_folder(self, path: Path, mode: int, group: str | None) -> None:
        """Make a folder and its parents, which are 0755; if that fails, leave none of them."""
        ...

    def make_link(self, path: Path, target: str) -> None:
        """Make or replace a symbolic link atomically."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file, a link or a folder tree, if it exists."""
        ...

    def which(self, name: str) -> str | None:
        """Return the path of a program; None: it is not installed."""
        ...

    def run(self, command: tuple[str, ...]) -> Done:
        """Run a command and wait for its end."""
        ...

    def ask(self, address: Address, path: str) -> Answer | None:
        """Send a GET to a server on this machine; return None without a response."""
        ...

    def wait(self, seconds: float) -> None:
        """Wait."""
        ...


class RealMachine:
    """The machine that this process runs on."""

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file; None: it does not exist."""
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise DeployError(f"cannot read {path}: {exc.strerror}") from None

    def exists(self, path: Path) -> bool:
        """Return whether the path exists; a broken link counts."""
        try:
            return os.path.lexists(path)
        except OSError as exc:
            raise DeployError(f"cannot examine {path}: {exc.strerror}") from None

    def get_mode(self, path: Path) -> int | None:
        """Return the permission bits of a file; None: it does not exist."""
        try:
            return stat.S_IMODE(path.stat().st_mode)
        except OSError:
            return None

    def get_change_time(self, path: Path) -> float | None:
        """Return when a file was changed or put there; None: it does not exist."""
        try:
            return path.stat().st_ctime
        except OSError:
            return None

    def read_link(self, path: Path) -> str | None:
        """Return the target of a symbolic link; None: there is no link."""
        try:
            return str(path.readlink())
        except OSError:
            return None

    def list_folder(self, path: Path) -> list[str]:
        """Return the names in a folder; empty if it does not exist."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise DeployError(f"cannot list {path}: {exc.strerror}") from None

    def write(self, path: Path, content: bytes, mode: int, group: str | None) -> None:
        """Write a file atomically."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with replace_file(path, temporary, syncs=True) as file:
                file.write(content)
                _hand_over(temporary, mode, group)
        except OSError as exc:
            raise DeployError(f"cannot write {path}: {exc.strerror}") from None

    def make_folder(self, path: Path, mode: int, group: str | None) -> None:
        """Make a folder and its parents; if that fails, leave none of them."""
        made: list[Path] = []
        try:
            for folder in (*reversed(path.parents), path):
                if not folder.is_dir():
                    folder.mkdir()
                    made.append(folder)
                    folder.chmod(0o755)  # whatever the umask is
            _hand_over(path, mode, group)
        except (OSError, DeployError) as exc:
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if isinstance(exc, DeployError):
                raise
            raise DeployError(f"cannot make {path}: {exc.strerror}") from None

    def make_link(self, path: Path, target: str) -> None:
        """Make or replace a symbolic link atomically."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            temporary.symlink_to(target)
            temporary.replace(path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise DeployError(f"cannot link {path}: {exc.strerror}") from None

    def remove(self, path: Path) -> None:
        """Remove a file, a link or a folder tree, if it exists."""
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise DeployError(f"cannot remove {path}: {exc.strerror}") from None

    def which(self, name: str) -> str | None:
        """Return the path of a program; None: it is not installed."""
        return shutil.which(name)

    def run(self, command: tuple[str, ...]) -> Done:
        """Run a command and wait for its end."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT,
                umask=0o022,  # the service's user must be able to read the files
                check=False,
            )
        except OSError as exc:
            raise DeployError(f"cannot run {command[0]}: {exc.strerror}") from None
        except subprocess.TimeoutExpired:
            raise DeployError(f"{command[0]} did not end within {COMMAND_TIMEOUT:g} s") from None
        return Done(done.returncode, done.stdout, done.stderr)

    def ask(self, address: Address, path: str) -> Answer | None:
        """Send a GET to a server on this machine; return None without a response."""
        try:
            return ask(address, path)
        except OSError:
            return None

    def wait(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class PlanningMachine(RealMachine):
    """This machine for a plan that is only shown: what it does not have fails as a command."""

    def run(self, command: tuple[str, ...]) -> Done:
        """Run a command; a program that is not installed ends with status 127, as in a shell."""
        if self.which(command[0]) is None:
            return Done(127, "", f"{command[0]} is not installed")
        return super().run(command)


def _hand_over(path: Path, mode: int, group: str | None) -> None:
    if group is not None:
        try:
            number = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise DeployError(f"the group {group} does not exist") from None
        os.chown(path, 0 if os.geteuid() == 0 else -1, number)
    path.chmod(mode)
