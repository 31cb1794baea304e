"""`xetserve probe` against servers that listen in every way there is."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, Process, clean_environment
from tests.e2e.conftest import Site, serve_arguments, tls_flags
from tests.peers import Certificates
from tests.waiting import wait_until
from xetserve import __version__
from xetserve.cli import main

Start = Callable[..., Process]


@pytest.fixture
def start(_running_site: Site, launcher: Launcher) -> Iterator[Start]:
    def run(*flags: str) -> Process:
        return launcher.start(*serve_arguments(_running_site.origin.url, *flags))

    yield run
    for server in launcher.running:
        assert "Traceback" not in server.log


def probe(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command; it must not say more than one sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "probe", *flags],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout + done.stderr).count("\n") == 1
    return done


def port_of(server: Process) -> str:
    return str(urlsplit(server.url).port)


@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("trusted", ["", "127.0.0.1", "192.0.2.1"])
def test_what_a_port_speaks(
    start: Start, certificates: Certificates, with_tls: bool, trusted: str
) -> None:
    """Trusted or not, a health check of this machine passes, and nobody has to be exempted."""
    proxies = ("--trusted-proxies", trusted, "--proxy-protocol", "on") if trusted else ()
    flags = (*(tls_flags(certificates) if with_tls else ()), *proxies)
    server = start(*flags)
    base = f"{'https' if with_tls else 'http'}://127.0.0.1:{port_of(server)}"
    done = probe("--port", port_of(server), *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{base}/health answers 200: ok, version {__version__}\n"
    done = probe("--ready", "--port", port_of(server), *flags)
    assert (done.returncode, done.stdout) == (0, f"{base}/ready answers 200: ready\n")


def test_a_server_without_its_first_certificate(
    start: Start, certificates: Certificates, tmp_path: Path
) -> None:
    pair = Certificates(certificates.ca, tmp_path / "chain.pem", tmp_path / "key.pem")
    challenges = ("--acme-webroot", str(tmp_path), "--redirect-port", "0")
    flags = (*tls_flags(pair), *challenges, "--tls-check-interval", "0.02")
    server = start(*flags)
    address = f"127.0.0.1:{port_of(server)}"
    done = probe("--port", port_of(server), *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"http://{address}/health answers 200: ok")
    done = probe("--ready", "--port", port_of(server), *flags)
    reason = "503: unready: there is no TLS certificate yet"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"xetserve: http://{address}/ready answers {reason}\n"
    pair.key.write_bytes(certificates.key.read_bytes())
    pair.chain.write_bytes(certificates.chain.read_bytes())
    wait_until(lambda: "TLS certificate loaded" in server.log)
    done = probe("--ready", "--port", port_of(server), *flags)
    assert done.stdout == f"https://{address}/ready answers 200: ready\n"


@pytest.mark.parametrize("trusted", ["", "unix", "192.0.2.1"])
def test_the_unix_socket(start: Start, tmp_path: Path, trusted: str) -> None:
    proxies = ("--trusted-proxies", trusted, "--proxy-protocol", "on") if trusted else ()
    path = tmp_path / "socket"
    flags = ("--port", "off", "--unix-socket", str(path), *proxies)
    start(*flags)
    done = probe(*flags)
    assert done.stdout == f"unix:{path}:/health answers 200: ok, version {__version__}\n"


def test_settings_come_from_where_the_server_has_them(
    start: Start, certificates: Certificates, tmp_path: Path
) -> None:
    """A file, variables, and a key pair that is a credential."""
    server = start(*tls_flags(certificates))
    for name, source in (("tls_cert", certificates.chain), ("tls_key", certificates.key)):
        (tmp_path / f"xetserve.{name}").write_bytes(source.read_bytes())
    file = tmp_path / "xetserve.toml"
    file.write_text(f"[server]\nport = {port_of(server)}\n")
    environment = {"XETSERVE_CONFIG": str(file), "CREDENTIALS_DIRECTORY": str(tmp_path)}
    done = probe(**environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"https://127.0.0.1:{port_of(server)}/health answers 200")


def test_json(start: Start) -> None:
    server = start()
    done = probe("--json", "--port", port_of(server))
    assert json.loads(done.stdout) == {
        "url": server.url,
        "status": 200,
        "answer": {"status": "ok", "version": __version__},
        "error": None,
        "proxy_protocol": False,
    }


def test_a_server_that_is_not_ready(start: Start) -> None:
    server = start("--drain-delay", "60")
    server.popen.terminate()
    wait_until(lambda: "SIGTERM" in server.log)
    done = probe("--port", port_of(server))
    assert done.returncode == 0
    done = probe("--ready", "--port", port_of(server))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"xetserve: {server.url}/ready answers 503: draining\n"
    server.popen.kill()


def test_an_origin(launcher: Launcher, tmp_path: Path) -> None:
    flags = ("--port", "0", "--drain-delay", "60")
    origin = launcher.start("origin", str(tmp_path / "origin"), *flags)
    at = ("--port", port_of(origin))
    done = probe(*at)
    assert done.stdout == f"{origin.url}/health answers 200: ok, version {__version__}\n"
    assert probe("--ready", *at).stdout == f"{origin.url}/ready answers 200: ready\n"
    origin.popen.terminate()
    wait_until(lambda: "SIGTERM" in origin.log)
    done = probe("--ready", *at)
    assert done.stderr == f"xetserve: {origin.url}/ready answers 503: draining\n"
    origin.popen.kill()


def test_no_server(certificates: Certificates, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        done = probe("--port", port, "--timeout", "0.2")
        url = f"http://127.0.0.1:{port}/health"
        assert (done.returncode, done.stderr) == (1, f"xetserve: no answer of {url}: timed out\n")
    done = probe("--port", port)
    assert done.stderr == f"xetserve: no answer of {url}: Connection refused\n"
    done = probe("--port", port, XETSERVE_PROT="1", XETSERVE_WORKERS="x")
    assert done.returncode == 1
    assert "Connection refused (and the settings have an error: unknown environment" in done.stderr
    done = probe("--port", "0")
    assert (done.returncode, done.stderr) == (
        1,
        "xetserve: the settings name no port to ask: give --port or --unix-socket\n",
    )
    missing = tmp_path / "socket"
    done = probe("--port", "off", "--unix-socket", str(missing))
    assert done.stderr.endswith("No such file or directory\n")


def test_an_error_in_the_settings_is_no_reason_to_restart_what_runs(
    start: Start, tmp_path: Path
) -> None:
    server = start()
    file = tmp_path / "xetserve.toml"
    file.write_text(f"[server]\nport = {port_of(server)}\nprot = 1\n")
    assert probe("--config", str(file)).returncode == 0


def test_the_wrong_flag_and_the_wrong_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--timeout", "x"]) == 2
    assert main(["probe", "--rady"]) == 2
    assert "did you mean '--ready'?" in capsys.readouterr().err
