"""Downloads through real forward proxies of each kind, verified to the last byte.

The Hub is asked over TLS, the CAS and the data host over plain HTTP, so HTTP proxies open tunnels
and take requests.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, sha256_of
from tests.e2e.clients import curl, run
from tests.e2e.conftest import REPO, Site, serve_arguments
from tests.e2e.listeners import Programs
from tests.peers import Certificates

NAMES = ["big.bin", "text/corpus.bin", "config.json"]
LOGIN = "me:word"

NGINX = """daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    server {{
        listen 127.0.0.1:{port} ssl;
        listen [::1]:{port} ssl;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        location / {{
            proxy_pass {origin};
            proxy_set_header Host {authority};
        }}
    }}
}}
"""
TINYPROXY = """Listen 127.0.0.1
Port {port}
LogLevel Connect
BasicAuth me word
"""
STUNNEL = """foreground = yes
pid =
debug = info
[proxy]
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{inner}
cert = {chain}
key = {key}
"""
DANTE = """logoutput: stderr
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
socksmethod: none
clientmethod: none
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 log: connect }}
"""


class Proxies(Programs):
    """Proxies of each kind. Each method returns the URL of one."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        super().__init__(folder)
        self.pair = {"chain": str(certificates.chain), "key": str(certificates.key)}

    def start_tinyproxy(self) -> int:
        return self.start("tinyproxy", lambda _, file: ["-d", "-c", str(file)], TINYPROXY)

    def start_http(self) -> str:
        return f"http://{LOGIN}@127.0.0.1:{self.start_tinyproxy()}"

    def start_https(self) -> str:
        inner = self.start_tinyproxy()
        port = self.start(
            "stunnel4", lambda _, file: [str(file)], STUNNEL, inner=str(inner), **self.pair
        )
        return f"https://{LOGIN}@localhost:{port}"

    def start_socks5(self) -> str:
        return f"socks5://127.0.0.1:{self.start('danted', lambda _, f: ['-f', str(f)], DANTE)}"

    def start_socks5h(self) -> str:
        def arguments(port: int, _: Path) -> list[str]:
            return ["-i", "127.0.0.1", "-p", str(port), "-u", "me", "-P", "word"]

        return f"socks5h://{LOGIN}@127.0.0.1:{self.start('microsocks', arguments)}"


@pytest.fixture
def programs(tmp_path: Path, certificates: Certificates) -> Iterator[Proxies]:
    made = Proxies(tmp_path, certificates)
    yield made
    made.stop()


def start_hub(programs: Proxies, site: Site) -> str:
    """Serve the origin over TLS, at a name; it names itself as it is reached without TLS."""
    origin = site.origin.url
    port = programs.start(
        "nginx",
        lambda _, file: ["-c", str(file), "-e", "stderr"],
        NGINX,
        origin=origin,
        authority=urlsplit(origin).netloc,
        **programs.pair,
    )
    return f"https://localhost:{port}"


# Kind of proxy, and what its log has of a tunnel to the Hub and of a connection to the origin.
KINDS = {
    "http": (r"CONNECT localhost:{hub} ", r"GET http://127.0.0.1:{origin}/"),
    "https": (r"CONNECT localhost:{hub} ", r"GET http://127.0.0.1:{origin}/"),
    "socks5": (r"127\.0\.0\.1\.{hub}\b", r"127\.0\.0\.1\.{origin}\b"),
    "socks5h": (r"connected to localhost:{hub}\b", r"connected to 127\.0\.0\.1:{origin}\b"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_download(
    site: Site,
    launcher: Launcher,
    programs: Proxies,
    certificates: Certificates,
    tmp_path: Path,
    kind: str,
) -> None:
    hub = start_hub(programs, site)
    proxy = getattr(programs, f"start_{kind}")()
    server = launcher.start(
        *serve_arguments(hub),
        HTTPS_PROXY=proxy,
        http_proxy=proxy,
        NO_PROXY="",
        SSL_CERT_FILE=str(certificates.ca),
    )
    for number, name in enumerate(NAMES):
        target = tmp_path / f"out{number}"
        url = f"{server.url}/download/{REPO}/{name}"
        done = run(curl(url, target))
        assert (done.returncode, sha256_of(target)) == (0, site.uploaded.digests[name]), server.log
    ports = {"hub": urlsplit(hub).port, "origin": urlsplit(site.origin.url).port}
    for pattern in KINDS[kind]:
        assert re.search(pattern.format(**ports), programs.log), programs.log
    assert LOGIN not in server.log
    assert "word" not in server.log


def test_a_wrong_password_is_said(
    site: Site, launcher: Launcher, programs: Proxies, tmp_path: Path
) -> None:
    proxy = programs.start_socks5h().replace(LOGIN, "me:wrong")
    server = launcher.start(*serve_arguments(site.origin.url), all_proxy=proxy, NO_PROXY="")
    command = curl(
        f"{server.url}/download/{REPO}/config.json", tmp_path / "out", "--fail-with-body"
    )
    command.remove("-f")
    assert run(command).returncode == 22
    assert "the proxy refuses user and password" in (tmp_path / "out").read_text()
    assert "wrong" not in server.log
