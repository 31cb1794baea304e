"""TLS as people use it: downloads with the usual clients, redirects, challenges, the Unix
socket.
"""

import json
import os
import socket
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, sha256_of
from tests.e2e.clients import CUT, answer_of, aria2, curl, run, wget
from tests.e2e.conftest import REPO, Site, serve_arguments, tls_flags
from tests.peers import Certificates
from tests.waiting import PATIENCE

NAMES = ["big.bin", "model/tensors f32.safetensors", "text/corpus.bin", "one-byte.bin", "empty.bin"]


@pytest.fixture(scope="module")
def webroot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as certbot --webroot fills it, and some things that must not be served."""
    root = tmp_path_factory.mktemp("webroot")
    folder = root / ".well-known" / "acme-challenge"
    folder.mkdir(parents=True)
    (folder / "good-Token_1").write_text("good-Token_1.thumbprint")
    (folder / "large").write_bytes(bytes(64 * 1024 + 1))
    (folder / "folder").mkdir()
    (root / "secret").write_text("secret")
    (folder / "link").symlink_to(root / "secret")
    os.mkfifo(folder / "fifo")
    return root


@pytest.fixture(scope="module")
def secure(
    _running_site: Site,
    certificates: Certificates,
    webroot: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Process]:
    """A server with TLS on a port, redirects on another one, and a Unix socket."""
    folder = tmp_path_factory.mktemp("secure")
    launched = Launcher(folder)
    server = launched.start(
        *serve_arguments(_running_site.origin.url, *tls_flags(certificates)),
        *("--redirect-port", "0", "--acme-webroot", str(webroot)),
        *("--unix-socket", str(folder / "socket"), "--hsts-max-age", "3600"),
    )
    yield server
    assert server.popen.poll() is None
    assert "Traceback" not in server.log
    assert server.stop() == 0
    assert not (folder / "socket").exists()


def secure_url(server: Process, path: str) -> str:
    port = urllib.parse.urlsplit(server.url).port
    return f"https://localhost:{port}{path}"


def redirect_base(server: Process) -> str:
    line = next(line for line in server.log.splitlines() if "listening on" in line)
    (found,) = (part for part in line.split(", ") if part.endswith(" (redirects)"))
    return found.removesuffix(" (redirects)")


def unix_path(server: Process) -> str:
    line = next(line for line in server.log.splitlines() if "listening on" in line)
    return line.rpartition("unix:")[2]


# Downloads


@pytest.mark.parametrize("client", ["curl", "curl, TLS 1.2", "wget", "aria2"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_comes_out_as_it_went_in(
    site: Site, secure: Process, certificates: Certificates, tmp_path: Path, client: str, name: str
) -> None:
    target = tmp_path / "out"
    url = secure_url(secure, f"/download/{REPO}/{urllib.parse.quote(name)}")
    ca = str(certificates.ca)
    commands = {
        "curl": curl(url, target, "--cacert", ca),
        "curl, TLS 1.2": curl(url, target, "--cacert", ca, "--tls-max", "1.2"),
        "wget": wget(url, target, f"--ca-certificate={ca}"),
        "aria2": aria2(url, target, f"--ca-certificate={ca}"),
    }
    done = run(commands[client])
    assert done.returncode == 0, done.stderr
    assert sha256_of(target) == site.uploaded.digests[name]


def test_a_cut_body_is_an_error(
    site: Site, launcher: Launcher, certificates: Certificates, tmp_path: Path
) -> None:
    limits = ("--upstream-timeout", "1", "--outage-patience", "0")
    server = launcher.start(*serve_arguments(site.origin.url, *limits, *tls_flags(certificates)))
    site.control.set_faults(reset_first=10_000)
    url = secure_url(server, f"/download/{REPO}/big.bin")
    for version in ("1.0", "1.1"):  # a body that ends with the connection, and one in chunks
        target = tmp_path / version
        done = run(curl(url, target, "--cacert", str(certificates.ca), f"--http{version}"))
        assert done.returncode in CUT
        assert 0 < target.stat().st_size < (site.uploaded.folder / "big.bin").stat().st_size
    assert "Traceback" not in server.log


def test_https_is_insisted_on_where_it_is_spoken(
    secure: Process, certificates: Certificates, tmp_path: Path
) -> None:
    url = secure_url(secure, "/health")
    status, headers, _ = answer_of(url, tmp_path, "--cacert", str(certificates.ca))
    assert (status, headers["strict-transport-security"]) == ("200", "max-age=3600")
    _, headers, _ = answer_of("http://x/health", tmp_path, "--unix-socket", unix_path(secure))
    assert "strict-transport-security" not in headers


def test_the_page_has_links_with_https(
    secure: Process, certificates: Certificates, tmp_path: Path
) -> None:
    url = secure_url(secure, "/")
    _, _, body = answer_of(url, tmp_path, "--cacert", str(certificates.ca))
    assert f"{url}download/".encode() in body


def test_plain_http_on_the_tls_port_is_told_so(secure: Process, tmp_path: Path) -> None:
    url = secure_url(secure, "/health").replace("https:", "http:")
    status, _, body = answer_of(url, tmp_path)
    assert status == "400"
    assert b"https" in body


def test_hostile_hellos_do_no_harm(
    secure: Process, certificates: Certificates, tmp_path: Path
) -> None:
    address = ("127.0.0.1", urllib.parse.urlsplit(secure.url).port or 0)
    for data in (b"\x16\x03\x01\xff\xff" + bytes(100), b"\x16" * 1000, b"\x80\x2e\x01\x00\x02"):
        with socket.create_connection(address, timeout=PATIENCE) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    url = secure_url(secure, "/health")
    assert answer_of(url, tmp_path, "--cacert", str(certificates.ca))[0] == "200"
    # That is nothing that an operator has to read.
    assert "WARNING xetserve.net.listener" not in secure.log


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-cert", "c.pem"], "must be set together"),
        (["--tls-cert", "/no/c.pem", "--tls-key", "/no/k.pem"], "cannot read /no/c.pem"),
        (["--redirect-port", "80"], "redirect_port needs TLS"),
        (["--acme-webroot", "/var/www"], "acme_webroot needs TLS"),
        (
            ["--acme-webroot", "/var/www", "--tls-cert", "/no/c.pem", "--tls-key", "/no/k.pem"],
            "acme_webroot needs redirect_port, or a socket",
        ),
    ],
)
def test_what_makes_no_sense_stops_the_start(
    launcher: Launcher, flags: list[str], message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        launcher.start(*serve_arguments("http://127.0.0.1:9", *flags))
    assert launcher.running[-1].popen.wait(timeout=PATIENCE) == 2


# Redirects


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize("path", ["/", "/download/a/b/c%20d?revision=x%2Fy", "//evil.example/"])
def test_everything_is_redirected(secure: Process, tmp_path: Path, method: str, path: str) -> None:
    options = ["-I"] if method == "HEAD" else ["-X", method]
    status, headers, _ = answer_of(redirect_base(secure) + path, tmp_path, *options)
    base = secure.url
    assert (status, headers["location"]) == ("308", base + path)


def test_the_host_is_the_one_that_was_asked_for(secure: Process, tmp_path: Path) -> None:
    port = urllib.parse.urlsplit(secure.url).port
    expectations = {"a.example": "a.example", "a.example:80": "a.example", "[::1]:8": "[::1]"}
    for host, expected in expectations.items():
        _, headers, _ = answer_of(f"{redirect_base(secure)}/x", tmp_path, "-H", f"Host: {host}")
        assert headers["location"] == f"https://{expected}:{port}/x"


def test_a_client_that_follows_has_the_file(
    site: Site, secure: Process, certificates: Certificates, tmp_path: Path
) -> None:
    base = redirect_base(secure).replace("127.0.0.1", "localhost")
    options = ("-L", "--location-trusted", "--cacert", str(certificates.ca))
    done = run(curl(f"{base}/download/{REPO}/random.bin", tmp_path / "out", *options))
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["random.bin"]


def test_a_challenge_is_answered(secure: Process, tmp_path: Path) -> None:
    url = f"{redirect_base(secure)}/.well-known/acme-challenge/good-Token_1"
    status, headers, body = answer_of(url, tmp_path)
    assert (status, headers["content-type"]) == ("200", "text/plain")
    assert body == b"good-Token_1.thumbprint"
    assert answer_of(url, tmp_path, "-X", "POST")[0] == "405"


@pytest.mark.parametrize(
    "token",
    ["absent", "large", "folder", "link", "fifo", "", "..", "a/b", "a.b", "%2567ood-Token_1",
     "../../secret", "..%2f..%2fsecret", "good-Token_1/", "good-Token_1?x", "%67ood-Token_1"],
)  # fmt: skip
def test_nothing_else_is(secure: Process, tmp_path: Path, token: str) -> None:
    url = f"{redirect_base(secure)}/.well-known/acme-challenge/{token}"
    status, _, body = answer_of(url, tmp_path, "--path-as-is")
    # A query is no part of the name, and %67 is a "g" (RFC 3986, 6.2.2.2).
    assert status == ("200" if token in ("good-Token_1?x", "%67ood-Token_1") else "404")
    assert b"secret" not in body


# The Unix socket


def test_a_unix_socket_serves_the_same(site: Site, secure: Process, tmp_path: Path) -> None:
    path = unix_path(secure)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    url = f"http://any/download/{REPO}/big.bin"
    done = run(curl(url, tmp_path / "out", "--unix-socket", path))
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["big.bin"]
    # In the access log it has no address.
    assert any(' - "GET /download' in line for line in secure.log.splitlines())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket_alone(site: Site, launcher: Launcher, tmp_path: Path, workers: str) -> None:
    path = tmp_path / "socket"
    # What a server left behind that was killed.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    flags = ["--port", "off", "--unix-socket", str(path), "--unix-socket-mode", "600"]
    server = launcher.start(*serve_arguments(site.origin.url, *flags), "--workers", workers)
    assert server.url == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    status, _, body = answer_of("http://x/health", tmp_path, "--unix-socket", str(path))
    assert status == "200"
    assert json.loads(body)["status"] == "ok"
    # One that is in use is left alone.
    with pytest.raises(AssertionError, match="in use"):
        launcher.start(*serve_arguments(site.origin.url, *flags))
    assert answer_of("http://x/health", tmp_path, "--unix-socket", str(path))[0] == "200"
    assert server.stop() == 0
    assert not path.exists()
