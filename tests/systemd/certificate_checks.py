"""The checks of `boot.py --certificates`, run as root inside the booted system: `xetserve deploy`
gives the service a pair of files, and one from certbot, whose ACME server is Pebble.

/wheels has the project as it is.
"""

import hashlib
import http.client
import json
import os
import random
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).parent))

import checks  # type: ignore[import-not-found]

TOOL = "/root/tool/bin/xetserve"
SERVICE = "xetserve.service"
NAME = "models.test"
PEBBLE = Path("/run/pebble")
LIVE = Path("/etc/letsencrypt/live") / NAME
RUNNING = Path("/run/xetserve/xetserve.tls_cert")
PAIR = ("--tls-cert", "/checks/cert.pem", "--tls-key", "/checks/key.pem")


def deploy(*arguments: str, status: int = 0) -> str:
    """Run the command; gives what it says."""
    done = subprocess.run(
        [TOOL, "deploy", *arguments],
        env={
            **os.environ,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/wheels",
            "REQUESTS_CA_BUNDLE": str(PEBBLE / "ca.pem"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert "Traceback" not in said, said
    return said


def apply(*arguments: str, status: int = 0) -> str:
    (wheel,) = Path("/wheels").glob("xetserve-*.whl")
    return deploy("apply", "--from", str(wheel), *arguments, status=status)


def make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1 and a name."""
    folder.mkdir(exist_ok=True)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    checks.sh(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "30", "-keyout", str(key), "-out", str(certificate)),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"),
    )
    return certificate, key


def connect() -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(checks.connect())


def shown_certificate() -> bytes:
    """Give the certificate of a new connection."""
    with connect() as client:
        return client.getpeercert(binary_form=True) or b""


def first_certificate(path: Path) -> bytes:
    end = "-----END CERTIFICATE-----"
    return ssl.PEM_cert_to_DER_cert(path.read_text().partition(end)[0] + end)


class Download:
    """A client over TLS that has begun with a large file; leaving the block reads the rest."""

    def __enter__(self) -> Self:
        self._pid = checks.main_pid()
        client = http.client.HTTPConnection("127.0.0.1", checks.PORT)
        client.sock = connect()
        headers = {"Authorization": f"Bearer {checks.TOKEN}"}
        client.request("GET", f"/download/{checks.REPO}/big.bin", headers=headers)
        self._client, self._answer = client, client.getresponse()
        self._digest = hashlib.sha256(self._answer.read(checks.MIB))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            while data := self._answer.read(checks.MIB):
                self._digest.update(data)
            assert self._digest.hexdigest() == checks.digests["big.bin"]
            assert checks.main_pid() == self._pid, "it was restarted"
        self._client.close()


def ask_plain(port: int, path: str) -> http.client.HTTPResponse:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=checks.PATIENCE)
    client.request("GET", path, headers={"Host": NAME})
    return client.getresponse()


# Checks


def prepare() -> str:
    """the tool, an origin with files, and the settings"""
    pip = ("/root/tool/bin/pip", "install", "--quiet", "--no-index", "--find-links=/wheels")
    checks.sh("python3", "-m", "venv", "/root/tool")
    checks.sh(*pip, "xetserve")
    folder = Path("/srv/files")
    folder.mkdir(parents=True)
    content = random.Random(1).randbytes(48 * checks.MIB)
    (folder / "big.bin").write_bytes(content)
    checks.digests["big.bin"] = hashlib.sha256(content).hexdigest()
    unit = f"""[Service]
ExecStart={TOOL} origin /srv/origin --host 127.0.0.1 --port 9090 \
--import {checks.REPO}={folder} --token {checks.TOKEN}=tester
Type=notify
"""
    Path("/run/systemd/system/origin.service").write_text(unit)
    checks.sh("systemctl", "daemon-reload")
    checks.sh("systemctl", "start", "origin.service")
    write_settings()
    return ""


def write_settings() -> None:
    checks.CONFIG.parent.mkdir()
    checks.CONFIG.write_text('[hub]\nhub_url = "http://127.0.0.1:9090"\n')


def pair_of_files() -> str:
    """a first installation with a pair begins with TLS"""
    apply(*PAIR)
    assert "ready: yes, https://127.0.0.1:8080" in deploy("status")
    assert shown_certificate() == first_certificate(Path("/checks/cert.pem"))
    for name in ("tls_cert", "tls_key"):
        found = Path("/etc/credstore", f"xetserve.{name}").stat()
        assert (found.st_mode & 0o777, found.st_uid) == (0o600, 0)
    assert apply(*PAIR).strip() == "nothing to change"
    return ""


def another_pair() -> str:
    """another pair is taken without a restart, and by the next start"""
    certificate, key = make_pair(Path("/root/pair"), "other")
    with Download():
        said = apply("--tls-cert", str(certificate), "--tls-key", str(key))
        assert "restart" not in said, said
        wanted = first_certificate(certificate)
        checks.until(lambda: shown_certificate() == wanted, "the new certificate is used")
    found, owner = RUNNING.stat(), RUNNING.parent.stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, owner.st_uid)
    assert owner.st_uid != 0
    checks.sh("systemctl", "restart", SERVICE)
    assert not RUNNING.exists()
    assert shown_certificate() == wanted
    return f"owner {owner.st_uid}"


def bad_pairs() -> str:
    """a pair that does not fit or has expired changes nothing"""
    before = shown_certificate()
    certificate, key = make_pair(Path("/root/expired"), "other")
    signing = ("-in", str(certificate), "-signkey", str(key), "-days", "-1")
    checks.sh("openssl", "x509", *signing, "-out", str(certificate))
    said = apply("--tls-cert", str(certificate), "--tls-key", str(key), status=2)
    assert "expired at" in said, said
    said = apply("--tls-cert", str(certificate), "--tls-key", "/checks/key.pem", status=2)
    assert "key values mismatch" in said, said
    assert shown_certificate() == before
    return said.strip()


def removed() -> str:
    """remove --purge leaves no key"""
    deploy("remove", "--purge")
    assert not list(Path("/etc/credstore").glob("xetserve.tls_*"))
    write_settings()
    return ""


def acme_server() -> str:
    """Pebble, and a DNS in which every name is 127.0.0.1"""
    certificate, key = make_pair(PEBBLE, "localhost")
    (PEBBLE / "ca.pem").write_text(certificate.read_text())
    addresses = {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000"}
    pair = {"certificate": str(certificate), "privateKey": str(key)}
    config = {"pebble": {**addresses, **pair, "httpPort": 80, "tlsPort": 5001}}
    (PEBBLE / "config.json").write_text(json.dumps(config))
    unused = ("-http01", "-https01", "-tlsalpn01", "-defaultIPv6")
    dns = ["pebble-challtestsrv", "-dns01", "127.0.0.1:8053"]
    dns += ["-management", "127.0.0.1:8055"]
    dns += [word for flag in unused for word in (flag, "")]
    pebble = ["pebble", "-config", str(PEBBLE / "config.json"), "-dnsserver", "127.0.0.1:8053"]
    for name, command in (("dns", dns), ("pebble", pebble)):
        variables = ("--setenv=PEBBLE_VA_NOSLEEP=1", "--setenv=PEBBLE_AUTHZREUSE=0")
        checks.sh("systemd-run", f"--unit={name}", *variables, "--", *command)

    def is_open() -> bool:
        try:
            socket.create_connection(("127.0.0.1", 14000)).close()
        except OSError:
            return False
        return True

    checks.until(is_open, "Pebble listens")
    return ""


CERTBOT = (
    *("--certbot", "someone@models.test", "--domain", NAME),
    *("--certbot-server", "https://127.0.0.1:14000/dir"),
)


def first_by_certbot() -> str:
    """from nothing to a certificate: deploy apply --certbot"""
    start = time.monotonic()
    apply(*CERTBOT)
    seconds = time.monotonic() - start
    assert "ready: yes, https://127.0.0.1:8080" in deploy("status")
    assert shown_certificate() == first_certificate(LIVE / "fullchain.pem")
    with ask_plain(80, "/x") as answer:
        assert (answer.status, answer.getheader("location")) == (308, f"https://{NAME}:8080/x")
    assert "waiting for /run/credentials/xetserve.service/xetserve.tls_cert" in checks.journal()
    assert apply(*CERTBOT).strip() == "nothing to change"
    return f"{seconds:.1f} s"


def renewal() -> str:
    """certbot renews: a new serial without a cut connection or a restart"""
    os.environ["REQUESTS_CA_BUNDLE"] = str(PEBBLE / "ca.pem")
    before = shown_certificate()
    with Download():
        checks.sh("certbot", "renew", "--force-renewal", "--no-random-sleep-on-renew")
        wanted = first_certificate(LIVE / "fullchain.pem")
        assert wanted != before
        checks.until(lambda: shown_certificate() == wanted, "the new certificate is used")
    checks.sh("systemctl", "restart", SERVICE)
    assert shown_certificate() == wanted
    return str(checks.sh("openssl", "x509", "-noout", "-serial", "-in", str(LIVE / "cert.pem")))


def failing_certbot() -> str:
    """a certificate that cannot be had leaves nothing behind"""
    deploy("remove", "--purge")
    assert not Path("/etc/systemd/system/xetserve.service.d").exists()
    write_settings()
    checks.sh("systemctl", "stop", "pebble")
    said = apply(*CERTBOT, "--domain", "other.test", "--timeout", "5", status=1)
    assert "certbot certonly: status 1" in said, said
    assert "rolled back" in said, said
    units = checks.sh("systemctl", "list-units", "--all", "--plain", "--no-legend", "xetserve*")
    assert "xetserve" not in units, units
    return said.splitlines()[-1][:160]


CHECKS = (
    prepare,
    pair_of_files,
    another_pair,
    bad_pairs,
    removed,
    acme_server,
    first_by_certbot,
    renewal,
    failing_certbot,
)


def main() -> int:
    status: int = checks.run_checks([(check, ()) for check in CHECKS], lambda: None)
    return status


if __name__ == "__main__":
    sys.exit(main())
