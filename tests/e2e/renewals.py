"""A server whose certificate or settings change while a client downloads."""

import hashlib
import signal
import socket
import ssl
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

from tests.conftest import Process, sha256_of
from tests.e2e.clients import curl
from tests.e2e.conftest import REPO, Site, environment_without_home
from tests.waiting import PATIENCE, wait_until

NAME = "big.bin"


def certificate_of(server: Process) -> bytes:
    """The sha256 of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", urllib.parse.urlsplit(server.url).port or 0)
    with (
        socket.create_connection(address, timeout=PATIENCE) as raw,
        context.wrap_socket(raw) as client,
    ):
        der = client.getpeercert(binary_form=True)
    assert der is not None
    return hashlib.sha256(der).digest()


class Download:
    """A download that has begun and stands still until it may finish."""

    def __init__(
        self, site: Site, server: Process, target: Path, *options: str, host: str = "localhost"
    ) -> None:
        self.target = target
        self.digest = site.uploaded.digests[NAME]
        port = urllib.parse.urlsplit(server.url).port
        scheme = urllib.parse.urlsplit(server.url).scheme
        url = f"{scheme}://{host}:{port}/download/{REPO}/{NAME}"
        self.client = subprocess.Popen(
            curl(url, target, "--limit-rate", "40M", *options), env=environment_without_home()
        )
        wait_until(lambda: target.exists() and target.stat().st_size > 0)
        self.client.send_signal(signal.SIGSTOP)
        assert self.client.poll() is None, "it was over before anything happened"

    def finish(self) -> None:
        self.client.send_signal(signal.SIGCONT)
        assert self.client.wait(timeout=60) == 0
        assert sha256_of(self.target) == self.digest


def metrics_of(server: Process) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    url = f"{server.url}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE, context=context) as reply:
        text: str = reply.read().decode()
    return text
