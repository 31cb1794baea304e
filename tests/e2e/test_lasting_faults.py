"""What cannot pass by itself: told at once, by name, and not tried again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher, clean_environment
from tests.e2e.clients import curl, run
from tests.e2e.conftest import REPO, serve_arguments, tls_flags
from tests.peers import Certificates, make_certificates
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_a_certificate_that_is_not_trusted_is_asked_once(
    certificates: Certificates, launcher: Launcher, tmp_path: Path
) -> None:
    # Any server with TLS will do as the Hub: nobody gets beyond the handshake.
    hub = launcher.start(*serve_arguments("http://127.0.0.1:9", *tls_flags(certificates)))
    server = launcher.start(*serve_arguments(hub.url))
    command = curl(f"{server.url}/download/{REPO}/a.bin", tmp_path / "out", "-w", "%{http_code}")
    command.remove("-f")
    assert run(command).stdout == "502"
    error = json.loads((tmp_path / "out").read_text())["error"]
    assert error.startswith("cannot connect to 127.0.0.1: unable to get local issuer certificate")
    assert error.endswith("(see SSL_CERT_FILE)")
    assert "again in" not in server.log


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        pytest.param(
            {"SSL_CERT_FILE": "/nowhere/ca.pem"},
            "SSL_CERT_FILE: cannot read '/nowhere/ca.pem': No such file or directory",
            id="no CA file",
        ),
        pytest.param(
            {"HTTPS_PROXY": "socks4://user:word@127.0.0.1:1080", "NO_PROXY": ""},
            "cannot use a proxy with scheme 'socks4', only http, https, socks5 and socks5h: "
            "correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or name the host in NO_PROXY",
            id="a proxy's scheme",
        ),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_start_ends_with_one_sentence(
    environment: dict[str, str], sentence: str, workers: str
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "xetserve", "serve", "--host", "127.0.0.1", "--port", "0"),
            *("--hub-url", "https://hub.invalid", "--workers", workers),
        ],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"xetserve: {sentence}"]
