"""SIGHUP, and certificates that change on disk: new settings for new requests, and nobody is
cut.
"""

import hashlib
import os
import re
import signal
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.clients import curl, run
from tests.e2e.conftest import Site, serve_arguments
from tests.e2e.renewals import Download, certificate_of, metrics_of
from tests.e2e.workers import worker_pids
from tests.peers import Certificates, make_certificates
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Certificates]:
    """Two certificates of two authorities."""
    return [make_certificates(tmp_path_factory.mktemp(f"pair-{number}")) for number in range(2)]


class Renewed:
    """Links to a certificate and its key, as certbot has them."""

    def __init__(self, folder: Path, first: Certificates) -> None:
        self.chain, self.key = folder / "fullchain.pem", folder / "privkey.pem"
        self.lead_to(first)

    def lead_to(self, pair: Certificates, *, chain: bool = True, key: bool = True) -> None:
        for link, target, wanted in ((self.chain, pair.chain, chain), (self.key, pair.key, key)):
            if wanted:
                new = link.with_suffix(".new")
                new.symlink_to(target)
                new.replace(link)

    @property
    def flags(self) -> list[str]:
        return ["--tls-cert", str(self.chain), "--tls-key", str(self.key)]


def expiry_of(pair: Certificates) -> int:
    """Unix seconds at which the certificate expires, as OpenSSL says."""
    command = ["openssl", "x509", "-noout", "-enddate", "-in", str(pair.chain)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return ssl.cert_time_to_seconds(done.stdout.strip().removeprefix("notAfter="))


def digest_of(pair: Certificates) -> bytes:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.chain.read_text())).digest()


def hang_up(server: Process, said: str, times: int = 1) -> None:
    """Send SIGHUP and wait until the log says so, as often as that."""
    server.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: server.log.count(said) >= times)


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_takes_a_new_certificate_and_cuts_nobody(
    site: Site, launcher: Launcher, pairs: list[Certificates], tmp_path: Path, workers: int
) -> None:
    renewed = Renewed(tmp_path, pairs[0])
    flags = [*renewed.flags, "--workers", str(workers), "--tls-check-interval", "1000"]
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    assert certificate_of(server) == digest_of(pairs[0])
    pids = worker_pids(server)
    download = Download(site, server, tmp_path / "out", "--cacert", str(pairs[0].ca))
    renewed.lead_to(pairs[1])
    hang_up(server, "reloaded; changed", workers if workers == 1 else workers + 1)
    for _ in range(2 * workers):
        assert certificate_of(server) == digest_of(pairs[1])
        expiry = f"xetserve_tls_certificate_expiry_seconds {expiry_of(pairs[1])}\n"
        assert expiry in metrics_of(server)
    download.finish()
    assert worker_pids(server) == pids
    assert "Traceback" not in server.log
    assert server.stop() == 0


def test_a_certificate_that_changes_on_disk_is_taken(
    site: Site, launcher: Launcher, pairs: list[Certificates], tmp_path: Path
) -> None:
    renewed = Renewed(tmp_path, pairs[0])
    flags = [*renewed.flags, "--tls-check-interval", "0.02"]
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    download = Download(site, server, tmp_path / "out", "--cacert", str(pairs[0].ca))
    # The certificate alone is no good, and stays without effect.
    renewed.lead_to(pairs[1], key=False)
    wait_until(lambda: "certificate not changed" in server.log)
    assert certificate_of(server) == digest_of(pairs[0])
    renewed.lead_to(pairs[1], chain=False)
    wait_until(lambda: certificate_of(server) == digest_of(pairs[1]))
    download.finish()
    assert server.log.count("certificate not changed") == 1
    assert server.stop() == 0


def test_a_worker_that_starts_later_has_what_is_new(
    site: Site, launcher: Launcher, pairs: list[Certificates], tmp_path: Path
) -> None:
    renewed = Renewed(tmp_path, pairs[0])
    config = tmp_path / "xetserve.toml"
    config.write_text("[limits]\nmax_url_size = 4096\n")
    flags = [*renewed.flags, "--workers", "2", "--tls-check-interval", "1000"]
    server = launcher.start(*serve_arguments(site.origin.url, *flags, "--config", str(config)))
    renewed.lead_to(pairs[1])
    config.write_text("[limits]\nmax_url_size = 300\n")
    hang_up(server, "reloaded; changed: max_url_size", 3)
    for pid in worker_pids(server):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.log.count("is ready") == 4)
    for _ in range(4):
        assert certificate_of(server) == digest_of(pairs[1])
        url = f"{server.url}/{'x' * 400}"
        done = run(curl(url, tmp_path / "out", "-k", "-w", "%{http_code}"))
        assert done.stdout == "414"
    assert server.stop() == 0


def test_settings_change_for_what_comes_next(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    config = tmp_path / "xetserve.toml"
    config.write_text("[admission]\naddress_request_rate = 0\n[log]\naccess_log = 'text'\n")
    arguments = [
        *("--host", "127.0.0.1", "--port", "0", "--hub-url", site.origin.url),
        *("--config", str(config)),
    ]
    server = launcher.start("serve", *arguments)
    url = f"{server.url}/"

    def status() -> str:
        return run(curl(url, tmp_path / "page", "-w", "%{http_code}")).stdout

    assert [status() for _ in range(3)] == ["200"] * 3
    download = Download(site, server, tmp_path / "out")
    config.write_text(
        "[admission]\naddress_request_rate = 0.001\n[log]\naccess_log = 'json'\n"
        "[server]\nwrite_timeout = 50\n[limits]\nmax_connections_per_client = 7\n"
        "[memory]\nmemory_budget = '64MiB'\n"
    )
    hang_up(server, "reloaded; changed: ")
    assert "a restart is needed to change memory_budget" in server.log
    assert [status() for _ in range(3)] == ["200", "429", "429"]
    wait_until(lambda: '{"time": ' in server.log)
    download.finish()
    assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[limits]\nmax_url_size = 'many'\n", "max_url_size must be a size"),
        ("[limits]\nmax_ulr_size = 300\n", "unknown key"),
        ("not TOML", "is not TOML"),
        ("[tls]\nredirect_port = 80\n", "redirect_port needs TLS"),
    ],
)
def test_bad_settings_change_nothing(
    site: Site, launcher: Launcher, tmp_path: Path, workers: str, content: str, message: str
) -> None:
    config = tmp_path / "xetserve.toml"
    first = "[limits]\nmax_url_size = 300\n"
    config.write_text(first)
    server = launcher.start(
        *serve_arguments(site.origin.url, "--config", str(config), "--workers", workers)
    )
    config.write_text(content + "[admission]\naddress_request_rate = 0.001\n")
    hang_up(server, "nothing reloaded: ")
    assert message in server.log
    url = f"{server.url}/{'x' * 400}"
    for _ in range(3):
        assert run(curl(url, tmp_path / "out", "-w", "%{http_code}")).stdout == "414"
        assert "xetserve_config_last_reload_successful 0" in metrics_of(server)
    # The metric is about the last reload: a good one ends the alert, and the hash is the file's.
    assert f'sha256="{hashlib.sha256(first.encode()).hexdigest()}"' in metrics_of(server)
    assert "\nxetserve_tls_certificate_expiry_seconds" not in metrics_of(server)
    config.write_text("")
    hang_up(server, "reloaded; changed: max_url_size")
    wait_until(lambda: "xetserve_config_last_reload_successful 1" in metrics_of(server))
    assert re.findall(r"xetserve_config_info{(.*)} 1", metrics_of(server)) == [
        f'sha256="{hashlib.sha256().hexdigest()}"'
    ]
    assert server.stop() == 0


def test_a_bad_certificate_keeps_the_old_settings_too(
    site: Site, launcher: Launcher, pairs: list[Certificates], tmp_path: Path
) -> None:
    renewed = Renewed(tmp_path, pairs[0])
    config = tmp_path / "xetserve.toml"
    config.write_text("")
    flags = [*renewed.flags, "--tls-check-interval", "1000", "--config", str(config)]
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    renewed.lead_to(pairs[1], key=False)
    config.write_text("[limits]\nmax_url_size = 300\n")
    hang_up(server, "nothing reloaded: cannot use ")
    assert certificate_of(server) == digest_of(pairs[0])
    done = run(curl(f"{server.url}/{'x' * 400}", tmp_path / "out", "-k", "-w", "%{http_code}"))
    assert done.stdout == "404"
    assert server.stop() == 0


def test_the_origin_does_not_die_of_sighup(launcher: Launcher, tmp_path: Path) -> None:
    flags = ["--host", "127.0.0.1", "--port", "0"]
    origin = launcher.start("origin", str(tmp_path / "origin"), *flags)
    hang_up(origin, "reloaded; changed: no settings")
    assert origin.stop() == 0
