"""Programs of others that listen on a port: proxies and web servers."""

import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import clean_environment, need_program
from tests.e2e.balancers import find_port
from tests.waiting import wait_until


@dataclass
class Programs:
    """Programs that listen on a port each, and what they log."""

    folder: Path
    running: list[tuple[subprocess.Popen[bytes], Path]] = field(default_factory=list)

    def start(
        self,
        name: str,
        arguments: Callable[[int, Path], list[str]],
        config: str = "",
        **values: str,
    ) -> int:
        """Start a program; return its port.

        Args:
            arguments: makes them of the port and the path of the configuration.
        """
        port = find_port()
        folder = self.folder / f"{name}-{port}"
        folder.mkdir()
        file, log = folder / "configuration", folder / "log"
        file.write_text(config.format(port=port, folder=folder, **values))
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [need_program(name), *arguments(port, file)],
                stdout=output,
                stderr=output,
                env=clean_environment(),
            )
        self.running.append((popen, log))

        def is_open() -> bool:
            assert popen.poll() is None, log.read_text()
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", port)) == 0

        wait_until(is_open)
        return port

    @property
    def log(self) -> str:
        return "".join(log.read_text("utf-8", "replace") for _, log in self.running)

    def stop(self) -> None:
        for popen, _ in reversed(self.running):
            popen.terminate()
        for popen, _ in self.running:
            popen.wait()
