"""The load balancers whose configurations are shipped."""

import random
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import xetserve
from tests.conftest import clean_environment, need_program
from tests.waiting import PATIENCE, wait_until

CONFIGURATIONS = Path(xetserve.__file__).parent / "share/scale"
PROXY = "127.0.0.1"
SECRET = {"XETSERVE_NATIVE_SECRET": "known to all three of them and long"}


def find_port() -> int:
    """Return a port that nobody has, below those that the system gives to clients."""
    source = random.Random()
    while True:
        try:
            with socket.create_server(("127.0.0.1", source.randrange(20_000, 32_000))) as sock:
                return int(sock.getsockname()[1])
        except OSError:
            continue


@dataclass
class Balancers:
    """Run the shipped configurations."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_haproxy(self, ports: list[int], edit: Callable[[str], str] = str) -> str:
        """Start HAProxy in front of ports; return its URL."""
        config = self.folder / "haproxy.cfg"
        config.write_text(edit((CONFIGURATIONS / "haproxy.cfg").read_text()))
        names = ("LB_ONE", "LB_TWO", "LB_THREE")
        servers = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
        port, status = find_port(), find_port()
        binds = {
            "LB_BIND": f"127.0.0.1:{port}",
            "LB_STATUS_BIND": f"127.0.0.1:{status}",
        }
        command = [need_program("haproxy"), "-db", "-f", str(config)]
        self._start(command, port, {**servers, **binds})
        return f"http://127.0.0.1:{port}"

    def start_nginx(self, ports: list[int], edit: Callable[[str], str] = str) -> str:
        """Start nginx in front of ports; return its URL."""
        text = edit((CONFIGURATIONS / "nginx.conf").read_text())
        port = find_port()
        for number, member in enumerate(ports):
            text = text.replace(f"127.0.0.1:{8081 + number}", f"127.0.0.1:{member}")
        text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
        paths = "".join(
            f"    {name}_temp_path {self.folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("http {\n", f"http {{\n    access_log off;\n{paths}", 1)
        config = self.folder / "nginx.conf"
        config.write_text(
            f"daemon off;\npid {self.folder}/pid;\nerror_log {self.folder}/log;\n{text}"
        )
        command = [need_program("nginx"), "-c", str(config), "-e", str(self.folder / "start.log")]
        self._start(command, port, {})
        return f"http://127.0.0.1:{port}"

    def _start(self, command: list[str], port: int, environment: dict[str, str]) -> None:
        with (self.folder / "balancer.log").open("ab") as log:
            popen = subprocess.Popen(
                command, stdout=log, stderr=log, env=clean_environment(**environment)
            )
        self.running.append(popen)

        def is_open() -> bool:
            assert popen.poll() is None, (self.folder / "balancer.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                return False
            return True

        wait_until(is_open)

    def stop(self) -> None:
        for popen in self.running:
            popen.terminate()
            popen.wait(timeout=PATIENCE)
