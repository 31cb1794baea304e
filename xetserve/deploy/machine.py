"""The machine that is deployed to, as far as it is touched: files, commands, questions to the
server.
"""

import contextlib
import grp
import http.client
import os
import secrets
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from xetserve.base.atomic_file import replace_file
from xetserve.errors import XetserveError

COMMAND_TIMEOUT: Final = 900.0  # seconds; an image may have to be built
ASK_TIMEOUT: Final = 5.0
MAX_ANSWER_SIZE: Final = 64 * 1024


class DeployError(XetserveError):
    """It cannot be done; the message says why, and what would help."""


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    errors: str


class Machine(Protocol):
    """What deploying needs. Every method may raise DeployError."""

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file; None: it is not there."""
        ...

    def exists(self, path: Path) -> bool:
        """Return whether there is something, be it a link to nowhere."""
        ...

    def read_link(self, path: Path) -> str | None:
        """Return where a link points to; None: there is none."""
        ...

    def list_folder(self, path: Path) -> list[str]:
        """Return the names in a folder; none if there is no folder."""
        ...

    def write(self, path: Path, content: bytes, mode: int, group: str | None) -> None:
        """Write a file, all of it or nothing. group: name or number; None: as it comes."""
        ...

    def make_folder(self, path: Path, mode: int, group: str | None) -> None:
        """Make a folder, and those that it is in."""
        ...

    def make_link(self, path: Path, target: str) -> None:
        """Point a link elsewhere, in one step."""
        ...

    def remove(self, path: Path) -> None:
        """Remove whatever is there."""
        ...

    def which(self, name: str) -> str | None:
        """Find a program."""
        ...

    def run(self, command: tuple[str, ...]) -> Done:
        """Run a command to its end."""
        ...

    def ask(self, url: str) -> tuple[int, bytes] | None:
        """Send a GET; gives status and body, None where there is no answer."""
        ...

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        ...


class RealMachine:
    """The one that we run on."""

    def read(self, path: Path) -> bytes | None:
        """Return the content of a file; None: it is not there."""
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise DeployError(f"cannot read {path}: {exc.strerror}") from None

    def exists(self, path: Path) -> bool:
        """Return whether there is something, be it a link to nowhere."""
        try:
            return os.path.lexists(path)
        except OSError as exc:
            raise DeployError(f"cannot look at {path}: {exc.strerror}") from None

    def read_link(self, path: Path) -> str | None:
        """Return where a link points to; None: there is none."""
        try:
            return str(path.readlink())
        except OSError:
            return None

    def list_folder(self, path: Path) -> list[str]:
        """Return the names in a folder; none if there is no folder."""
        try:
            return sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as exc:
            raise DeployError(f"cannot look into {path}: {exc.strerror}") from None

    def write(self, path: Path, content: bytes, mode: int, group: str | None) -> None:
        """Write a file, all of it or nothing."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with replace_file(path, temporary, syncs=True) as file:
                file.write(content)
                _hand_over(temporary, mode, group)
        except OSError as exc:
            raise DeployError(f"cannot write {path}: {exc.strerror}") from None

    def make_folder(self, path: Path, mode: int, group: str | None) -> None:
        """Make a folder, and those that it is in."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            _hand_over(path, mode, group)
        except OSError as exc:
            raise DeployError(f"cannot make {path}: {exc.strerror}") from None

    def make_link(self, path: Path, target: str) -> None:
        """Point a link elsewhere, in one step."""
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            temporary.symlink_to(target)
            temporary.replace(path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise DeployError(f"cannot link {path}: {exc.strerror}") from None

    def remove(self, path: Path) -> None:
        """Remove whatever is there."""
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as exc:
            raise DeployError(f"cannot remove {path}: {exc.strerror}") from None

    def which(self, name: str) -> str | None:
        """Find a program."""
        return shutil.which(name)

    def run(self, command: tuple[str, ...]) -> Done:
        """Run a command to its end."""
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT,
                umask=0o022,  # a service's user has to read what is installed
                check=False,
            )
        except OSError as exc:
            raise DeployError(f"cannot run {command[0]}: {exc.strerror}") from None
        except subprocess.TimeoutExpired:
            raise DeployError(f"{command[0]} was not done after {COMMAND_TIMEOUT:g} s") from None
        return Done(done.returncode, done.stdout, done.stderr)

    def ask(self, url: str) -> tuple[int, bytes] | None:
        """Send a GET; gives status and body, None where there is no answer. No proxy, and any
        certificate: it is we.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                host, port, timeout=ASK_TIMEOUT, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=ASK_TIMEOUT)
        try:
            connection.request("GET", parts.path or "/", headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_SIZE)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)


def _hand_over(path: Path, mode: int, group: str | None) -> None:
    if group is not None:
        try:
            number = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise DeployError(f"there is no group {group}") from None
        os.chown(path, 0 if os.geteuid() == 0 else -1, number)
    path.chmod(mode)
