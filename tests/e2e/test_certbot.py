"""Certificates from an ACME server: the first one, and renewals that cut nobody.

certbot writes its answers to the challenges into our webroot, and Pebble fetches them from our
redirect port.
"""

import os
import stat
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.acme import NAME, Acme
from tests.e2e.balancers import find_port
from tests.e2e.clients import answer_of
from tests.e2e.conftest import Site, serve_arguments
from tests.e2e.renewals import Download, certificate_of, metrics_of
from tests.e2e.workers import worker_pids
from tests.waiting import wait_until
from xetserve.base.certificate import read_validity

HOOK = Path(__file__).parents[2] / "systemd" / "xetserve-certbot-hook"


@pytest.fixture
def acme(tmp_path: Path) -> Iterator[Acme]:
    (tmp_path / "acme").mkdir()
    found = Acme(tmp_path / "acme", find_port())
    yield found
    found.stop()


class Folders:
    """Where the pair of a server is, and what certbot has to run to put it there.

    Attributes:
        filled: folders that the hook fills; the server reads the last one.
    """

    def __init__(self, base: Path, kind: str) -> None:
        self.environment: dict[str, str] = {}
        used = base / "used"
        used.mkdir()
        if os.geteuid() == 0:  # the pair is for the user that the server runs as
            os.chown(used, 12345, 12345)
        if kind == "files":
            self.names = ("cert.pem", "key.pem")
            self.filled: tuple[Path, ...] = (used,)
            self.hook = f"{HOOK} {used}"
            settings = used
        else:  # of systemd: a store, a copy of it that nobody can change, and a folder in /run
            self.names = ("xetserve.tls_cert", "xetserve.tls_key")
            self.filled = (base / "credstore", used)
            hook = base / "hook"
            text = HOOK.read_text().replace("/etc/credstore", str(self.filled[0]))
            hook.write_text(text.replace("/run/xetserve", str(used)))
            hook.chmod(0o755)
            self.hook = str(hook)
            self.environment["RUNTIME_DIRECTORY"] = str(used)
            settings = base / "fixed"
        certificate, key = (str(settings / name) for name in self.names)
        self.flags = ("--tls-cert", certificate, "--tls-key", key)

    @property
    def certificate(self) -> Path:
        """The file with the certificate that the server uses."""
        return self.filled[-1] / self.names[0]


def plain_url(server: Process, path: str) -> str:
    return server.url.replace("https:", "http:") + path


@pytest.mark.parametrize(("kind", "workers"), [("files", 1), ("credentials", 2)])
def test_the_first_certificate_and_a_renewal(
    site: Site, launcher: Launcher, acme: Acme, tmp_path: Path, kind: str, workers: int
) -> None:
    webroot = tmp_path / "webroot"
    webroot.mkdir()
    folders = Folders(tmp_path, kind)
    flags = ("--redirect-port", str(acme.http_port), "--acme-webroot", str(webroot))
    server = launcher.start(
        *serve_arguments(site.origin.url, *folders.flags, *flags, "--workers", str(workers)),
        *("--tls-check-interval", "0.1"),
        **folders.environment,
    )
    pids = worker_pids(server)

    # Before: health checks in plain HTTP, and nothing else.
    status, _, body = answer_of(plain_url(server, "/ready"), tmp_path)
    assert (status, b'"certificate"' in body) == ("503", True)
    assert answer_of(plain_url(server, "/health"), tmp_path)[0] == "200"
    assert answer_of(plain_url(server, "/"), tmp_path)[0] == "503"
    redirect = f"http://{NAME}:{acme.http_port}/x"
    resolve = ("--resolve", f"{NAME}:{acme.http_port}:127.0.0.1")
    assert answer_of(redirect, tmp_path, *resolve)[0] == "503"

    # The first certificate.
    acme.get_first(webroot, folders.hook)
    wait_until(lambda: server.log.count("TLS certificate loaded") == workers)
    first = certificate_of(server)
    port = urllib.parse.urlsplit(server.url).port
    secure = ("--resolve", f"{NAME}:{port}:127.0.0.1", "--cacert", str(acme.root))
    status, _, body = answer_of(f"https://{NAME}:{port}/ready", tmp_path, *secure)
    assert (status, body) == ("200", b'{"status": "ready"}\n')
    status, headers, _ = answer_of(redirect, tmp_path, *resolve)
    assert (status, headers["location"]) == ("308", f"https://{NAME}:{port}/x")
    for folder in folders.filled:
        assert sorted(os.listdir(folder)) == sorted(folders.names)
        for name in folders.names:
            found = (folder / name).stat()
            assert stat.S_IMODE(found.st_mode) == 0o600
            assert (found.st_uid, found.st_gid) == (folder.stat().st_uid, folder.stat().st_gid)

    # A renewal, in the middle of a download.
    download = Download(site, server, tmp_path / "out", *secure, host=NAME)
    acme.renew()
    wait_until(lambda: server.log.count("TLS certificate loaded") >= 2 * workers)
    for _ in range(2 * workers):
        assert certificate_of(server) != first
    assert serial_of(folders.certificate) == serial_of(acme.live / "fullchain.pem")
    download.finish()
    expiry = read_validity((acme.live / "fullchain.pem").read_bytes()).ends
    assert f"xetserve_tls_certificate_expiry_seconds {expiry:.0f}\n" in metrics_of(server)
    assert worker_pids(server) == pids
    assert "Traceback" not in server.log
    assert server.stop() == 0


def serial_of(certificate: Path) -> str:
    command = ["openssl", "x509", "-noout", "-serial", "-in", str(certificate)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
