"""nginx and HAProxy in front of us: who the client is, what it reads in links, and that nobody else
can say so.
"""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, Process, need_program, sha256_of
from tests.e2e.clients import answer_of, curl, run
from tests.e2e.conftest import REPO, Site, serve_arguments, tls_flags
from tests.peers import Certificates
from tests.waiting import PATIENCE, wait_until

CLIENT = "127.0.0.5"  # loopback has many addresses; the proxies connect from 127.0.0.1
PROXY = "127.0.0.1"

NGINX = """
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
daemon off;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {backend};
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto https;
            proxy_set_header X-Forwarded-Host "";
        }}
    }}
}}
"""

HAPROXY = """
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    mode {mode}
    bind fd@{fd}
    default_backend back
backend back
    mode {mode}
    {option}
    server one 127.0.0.1:{port} {send}
"""


class Proxies:
    """Proxies that are running, to be stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def start_nginx(self, backend: str) -> str:
        """Start nginx in front of a URL; gives its own."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        config = self._folder / "nginx.conf"
        config.write_text(NGINX.format(folder=self._folder, port=port, backend=backend))
        command = [need_program("nginx"), "-c", str(config), "-e", str(self._folder / "start.log")]
        self._start(command, ())
        wait_until(lambda: is_open(port))
        return f"http://localhost:{port}"

    def start_haproxy(
        self, server: Process, send: str = "", *, mode: str = "tcp", option: str = ""
    ) -> str:
        """Start HAProxy in front of a server; gives its URL."""
        port = urlsplit(server.url).port
        with socket.create_server(("127.0.0.1", 0)) as sock:
            config = self._folder / "haproxy.cfg"
            text = HAPROXY.format(mode=mode, fd=sock.fileno(), option=option, port=port, send=send)
            config.write_text(text)
            command = [need_program("haproxy"), "-db", "-f", str(config)]
            self._start(command, (sock.fileno(),))
            return f"{urlsplit(server.url).scheme}://localhost:{sock.getsockname()[1]}"

    def _start(self, command: list[str], descriptors: tuple[int, ...]) -> None:
        with (self._folder / "proxy.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(command, pass_fds=descriptors, stdout=log, stderr=log)
            )

    def stop(self) -> None:
        for popen in self._running:
            popen.terminate()
            popen.wait(timeout=PATIENCE)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def proxies(tmp_path: Path) -> Iterator[Proxies]:
    folder = tmp_path / "proxies"
    folder.mkdir()
    proxies = Proxies(folder)
    yield proxies
    proxies.stop()


@pytest.fixture
def start(site: Site, launcher: Launcher) -> Iterator[Callable[..., Process]]:
    servers = []

    def start(*flags: str) -> Process:
        arguments = serve_arguments(site.origin.url, *flags, "--access-log", "json")
        servers.append(launcher.start(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        assert "Traceback" not in server.log
        assert server.stop() == 0


def peers(server: Process) -> list[Any]:
    lines = [line for line in server.log.splitlines() if line.startswith("{")]
    return [json.loads(line)["peer"] for line in lines]


def assert_peers(server: Process, expected: list[str]) -> None:
    """The access log has these and no others; a line comes after the answer."""
    wait_until(lambda: len(peers(server)) >= len(expected))
    assert peers(server) == expected


def download(site: Site, base: str, folder: Path, *options: str) -> None:
    options = ("--interface", CLIENT, *options)
    done = run(curl(f"{base}/download/{REPO}/big.bin", folder / "out", *options))
    assert done.returncode == 0, done.stderr
    assert sha256_of(folder / "out") == site.uploaded.digests["big.bin"]


def page(base: str, folder: Path, *options: str) -> str:
    return answer_of(f"{base}/", folder, "--interface", CLIENT, *options)[2].decode()


# nginx


def test_nginx_tells_of_its_clients(
    site: Site, start: Callable[..., Process], proxies: Proxies, tmp_path: Path
) -> None:
    server = start("--trusted-proxies", PROXY)
    base = proxies.start_nginx(server.url)
    download(site, base, tmp_path, "-H", "X-Forwarded-For: 198.51.100.1")
    # The scheme is nginx's word, the host is passed on.
    assert f"{base.replace('http:', 'https:')}/download/" in page(base, tmp_path)
    # Forwarded is not what this proxy writes.
    page(base, tmp_path, "-H", "Forwarded: for=198.51.100.2")
    assert_peers(server, [CLIENT] * 3)


def test_what_strangers_say_is_ignored(start: Callable[..., Process], tmp_path: Path) -> None:
    server = start("--trusted-proxies", PROXY)
    told = ("-H", "X-Forwarded-For: 198.51.100.1", "-H", "X-Forwarded-Proto: https")
    text = page(server.url, tmp_path, *told, "-H", "X-Forwarded-Host: evil.example")
    assert f"{server.url}/download/" in text
    assert "evil" not in text
    assert_peers(server, [CLIENT])


def test_without_trust_the_client_is_the_proxy(
    start: Callable[..., Process], proxies: Proxies, tmp_path: Path
) -> None:
    server = start()
    page(proxies.start_nginx(server.url), tmp_path)
    assert_peers(server, [PROXY])


def test_rates_are_those_of_the_clients(
    start: Callable[..., Process], proxies: Proxies, tmp_path: Path
) -> None:
    server = start("--trusted-proxies", PROXY, "--address-request-rate", "0.001")
    base = proxies.start_nginx(server.url)
    statuses = [
        answer_of(f"{base}/", tmp_path, "--interface", address)[0]
        for address in ("127.0.0.5", "127.0.0.5", "127.0.0.6", "127.0.0.6")
    ]
    assert statuses == ["200", "429", "200", "429"]


def test_nginx_on_the_unix_socket(
    site: Site, start: Callable[..., Process], proxies: Proxies, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    flags = ("--port", "off", "--unix-socket", str(path), "--unix-socket-mode", "666")
    server = start(*flags, "--trusted-proxies", "unix")
    # Its workers are another user's, who has to come through the folders.
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == path.stat().st_uid:
            folder.chmod(folder.stat().st_mode | 0o011)
    download(site, proxies.start_nginx(f"http://unix:{path}:"), tmp_path)
    assert_peers(server, [CLIENT])


# HAProxy


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_haproxy_says_who_connects(
    site: Site, start: Callable[..., Process], proxies: Proxies, tmp_path: Path, send: str
) -> None:
    server = start("--trusted-proxies", PROXY, "--proxy-protocol", "on")
    base = proxies.start_haproxy(server, send)
    download(site, base, tmp_path)
    # The client is not one whose fields count.
    page(base, tmp_path, "-H", "X-Forwarded-For: 198.51.100.1")
    assert_peers(server, [CLIENT] * 2)


@pytest.mark.parametrize("send", ["send-proxy", "send-proxy-v2"])
def test_haproxy_in_front_of_tls(
    site: Site,
    start: Callable[..., Process],
    proxies: Proxies,
    certificates: Certificates,
    tmp_path: Path,
    send: str,
) -> None:
    flags = ("--trusted-proxies", PROXY, "--proxy-protocol", "on")
    server = start(*flags, *tls_flags(certificates))
    base = proxies.start_haproxy(server, send)
    download(site, base, tmp_path, "--cacert", str(certificates.ca))
    assert f"{base}/download/" in page(base, tmp_path, "--cacert", str(certificates.ca))
    assert_peers(server, [CLIENT] * 2)


def test_haproxy_checks_its_servers(
    start: Callable[..., Process], proxies: Proxies, tmp_path: Path
) -> None:
    """Its checks are LOCAL: they have a header without a client."""
    server = start("--trusted-proxies", PROXY, "--proxy-protocol", "on")
    option = "option httpchk GET /ready"
    base = proxies.start_haproxy(server, "check inter 50ms send-proxy-v2", option=option)
    wait_until(lambda: PROXY in peers(server))
    page(base, tmp_path)
    wait_until(lambda: CLIENT in peers(server))


def test_forwarded_is_read_if_that_is_what_proxies_write(
    start: Callable[..., Process], proxies: Proxies, tmp_path: Path
) -> None:
    server = start("--trusted-proxies", PROXY, "--proxy-headers", "forwarded")
    base = proxies.start_nginx(server.url)  # passes on what the client says
    page(base, tmp_path, "-H", 'Forwarded: for="198.51.100.1:80";proto=https;host="a.example"')
    assert_peers(server, ["198.51.100.1"])


@pytest.mark.parametrize("with_tls", [False, True])
def test_connections_past_the_proxy_are_refused(
    start: Callable[..., Process],
    certificates: Certificates,
    tmp_path: Path,
    with_tls: bool,
) -> None:
    flags = tls_flags(certificates) if with_tls else ()
    server = start("--trusted-proxies", "192.0.2.1", "--proxy-protocol", "on", *flags)
    command = curl(f"{server.url}/health", tmp_path / "out", "-k", "-w", "%{http_code}")
    done = run(command)
    assert (done.returncode, done.stdout) == ((35, "000") if with_tls else (22, "403"))
    assert peers(server) == []


def test_a_trusted_address_without_a_header_is_closed(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    server = start("--trusted-proxies", PROXY, "--proxy-protocol", "on")
    assert run(curl(f"{server.url}/health", tmp_path / "out")).returncode == 52  # empty reply
    assert "does not begin with a PROXY header" in server.log
