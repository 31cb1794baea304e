"""The validity of certificates, as OpenSSL writes it."""

import subprocess
from pathlib import Path

import pytest

from tests.peers import make_certificates
from xetserve.base.certificate import read_validity


def make_certificate(folder: Path, begins: str, ends: str, *, version_1: bool = False) -> bytes:
    """Make a self-signed certificate with `openssl ca`, which takes both times."""
    (folder / "index").touch()
    extensions = "" if version_1 else "x509_extensions = extensions\n"
    (folder / "conf").write_text(
        "[ca]\ndefault_ca = own\n"
        f"[own]\ndatabase = index\nnew_certs_dir = .\nrand_serial = yes\ndefault_md = sha256\n"
        f"policy = policy\n{extensions}"
        "[policy]\ncommonName = supplied\n[extensions]\nbasicConstraints = CA:FALSE\n"
        "[req]\ndistinguished_name = name\n[name]\n"
    )

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "csr",
            "-subj", "/CN=localhost", "-config", "conf")  # fmt: skip
    openssl("ca", "-batch", "-config", "conf", "-selfsign", "-keyfile", "key", "-in", "csr",
            "-startdate", begins, "-enddate", ends, "-out", "cert")  # fmt: skip
    return (folder / "cert").read_bytes()  # text for people comes first


def test_both_ends_are_read(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path, "20240229120000Z", "20490101000001Z")
    assert read_validity(pem) == (1709208000, 2493072001)


def test_other_years_have_another_form(tmp_path: Path) -> None:
    pem = make_certificate(tmp_path, "19500102000000Z", "20550102030405Z", version_1=True)
    assert read_validity(pem) == (-631065600, 2682471845)


def test_the_first_certificate_counts(tmp_path: Path) -> None:
    other = make_certificates(tmp_path).ca.read_bytes()
    first = make_certificate(tmp_path, "20240101000000Z", "20240102000000Z")
    assert read_validity(first + other) == read_validity(first)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\n=\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIT/////\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_is_an_error(pem: bytes) -> None:
    with pytest.raises(ValueError, match=r"certificate|padding"):
        read_validity(pem)


def test_half_a_certificate_is_an_error(tmp_path: Path) -> None:
    lines = make_certificates(tmp_path).chain.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) - 2):
        with pytest.raises(ValueError, match=r"certificate|padding"):
            read_validity(b"".join([*lines[: 1 + kept], lines[-1]]))
