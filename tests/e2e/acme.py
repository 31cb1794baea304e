"""An ACME server as Let's Encrypt has one, and a client of it: Pebble and certbot."""

import json
import socket
import ssl
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.conftest import clean_environment, need_program
from tests.e2e.balancers import find_port
from tests.peers import make_certificates
from tests.waiting import PATIENCE, wait_until

NAME = "models.test"


class Acme:
    """Pebble with a DNS in which every name is 127.0.0.1, and certbot.

    Args:
        http_port: where Pebble looks for the answers to its challenges.

    Attributes:
        root: the certificate of the CA that Pebble signs with.
        live: the folder where certbot keeps the pair in use.
    """

    def __init__(self, folder: Path, http_port: int) -> None:
        self._folder = folder
        self.http_port = http_port
        self._running: list[subprocess.Popen[bytes]] = []
        self._own = make_certificates(folder)
        self.root = folder / "root.pem"
        self.live = folder / "conf" / "live" / NAME
        dns, port, management = find_port(), find_port(), find_port()
        self._url = f"https://localhost:{port}/dir"
        unused = ("-http01", "-https01", "-tlsalpn01", "-defaultIPv6")
        self._start(
            *(need_program("pebble-challtestsrv"), "-dns01", f"127.0.0.1:{dns}"),
            *("-management", f"127.0.0.1:{find_port()}"),
            *(word for flag in unused for word in (flag, "")),
        )
        config = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{management}",
            "certificate": str(self._own.chain),
            "privateKey": str(self._own.key),
            "httpPort": http_port,
            "tlsPort": find_port(),
        }
        path = folder / "pebble.json"
        path.write_text(json.dumps({"pebble": config}))
        self._start(
            *(need_program("pebble"), "-config", str(path), "-dnsserver", f"127.0.0.1:{dns}"),
            PEBBLE_VA_NOSLEEP="1",
            PEBBLE_AUTHZREUSE="0",  # each renewal is a challenge
        )
        wait_until(lambda: all(map(_is_open, (dns, port, management))))
        context = ssl.create_default_context(cafile=str(self._own.ca))
        address = f"https://localhost:{management}/roots/0"
        with urllib.request.urlopen(address, timeout=PATIENCE, context=context) as reply:
            self.root.write_bytes(reply.read())

    def certbot(self, *arguments: str) -> None:
        """Run certbot, which must succeed."""
        places = {"config": "conf", "work": "work", "logs": "logs"}
        command = [
            *(need_program("certbot"), *arguments, "--non-interactive", "--server", self._url),
            *(f"--{name}-dir={self._folder / place}" for name, place in places.items()),
        ]
        done = subprocess.run(
            command,
            env=clean_environment(REQUESTS_CA_BUNDLE=str(self._own.ca)),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def get_first(self, webroot: Path, hook: str) -> None:
        """Get a first certificate, as the chapter says."""
        account = ("--agree-tos", "--email", "someone@models.test")
        flags = ("--webroot", "-w", str(webroot), "-d", NAME, "--deploy-hook", hook)
        self.certbot("certonly", *account, *flags)

    def renew(self) -> None:
        """Renew the certificate, as certbot's timer does when it is time."""
        self.certbot("renew", "--force-renewal", "--no-random-sleep-on-renew")

    def stop(self) -> None:
        """Stop Pebble and its DNS."""
        for each in self._running:
            each.terminate()
        for each in self._running:
            each.wait(timeout=PATIENCE)

    def _start(self, *command: str, **environment: str) -> None:
        with (self._folder / f"{Path(command[0]).name}.log").open("wb") as log:
            env = clean_environment(**environment)
            self._running.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))


def _is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        return True
    return False
