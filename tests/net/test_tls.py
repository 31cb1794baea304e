"""Certificates: what is loaded, what is refused, and what happens when the files change."""

import asyncio
import logging
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from tests.peers import Certificates, make_certificates
from tests.waiting import until
from xetserve.base.certificate import read_validity
from xetserve.errors import ConfigError
from xetserve.net.tls import ServerTls, make_server_context


@pytest.fixture
def pair(tmp_path: Path, certificates: Certificates) -> tuple[Path, Path]:
    """Copies of a certificate and its key, to be changed."""
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(certificates.chain.read_bytes())
    key.write_bytes(certificates.key.read_bytes())
    return chain, key


@pytest.fixture(scope="module")
def renewed(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Another certificate and its key."""
    return make_certificates(tmp_path_factory.mktemp("renewed"))


def replace(path: Path, source: Path) -> None:
    """Put another file in the place of one, as renewals do."""
    new = path.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    new.replace(path)


def sign_again(pair: Certificates, days: int) -> Path:
    """Make a certificate for the same key that ends in some days; return its path."""
    path = pair.chain.with_name(f"{days}.pem")
    signing = ["-in", str(pair.chain), "-signkey", str(pair.key), "-days", str(days)]
    command = ["openssl", "x509", *signing, "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


# What is loaded


def test_the_context_has_nothing_old(certificates: Certificates) -> None:
    context = make_server_context(certificates.chain, certificates.key)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    old = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert old
    assert all(name.startswith("ECDHE-") for name in old)
    assert all("GCM" in name or "CHACHA20" in name for name in old)
    wanted = ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    assert context.options & wanted == wanted


def test_a_file_that_is_not_there_is_named(certificates: Certificates, tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem: No such file"):
        make_server_context(absent, certificates.key)
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem: No such file"):
        make_server_context(certificates.chain, absent)


def test_a_key_of_another_certificate_is_refused(
    certificates: Certificates, renewed: Certificates
) -> None:
    with pytest.raises(ConfigError, match="key values mismatch"):
        make_server_context(certificates.chain, renewed.key)


@pytest.mark.parametrize("content", [b"", b"not PEM\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_what_is_no_certificate_is_refused(pair: tuple[Path, Path], content: bytes) -> None:
    pair[0].write_bytes(content)
    with pytest.raises(ConfigError, match="cannot use "):
        make_server_context(*pair)


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(pair: tuple[Path, Path]) -> None:
    locked = pair[1].with_name("locked.pem")
    subprocess.run(
        [
            *("openssl", "pkcs8", "-topk8", "-in", str(pair[1]), "-out", str(locked)),
            *("-passout", "pass:secret"),
        ],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ConfigError, match="must not have a passphrase"):
        make_server_context(pair[0], locked)


# What changes


def test_files_that_have_not_changed_are_left_alone(pair: tuple[Path, Path]) -> None:
    tls = ServerTls(*pair)
    before = tls.context
    tls.check()
    assert tls.context is before


def test_a_new_pair_is_taken(pair: tuple[Path, Path], renewed: Certificates) -> None:
    tls = ServerTls(*pair)
    before = tls.context
    replace(pair[0], renewed.chain)
    replace(pair[1], renewed.key)
    tls.check()
    after = tls.context
    assert after is not before
    tls.check()
    assert tls.context is after


def test_the_expiry_is_that_of_the_pair_in_use(
    pair: tuple[Path, Path], renewed: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    tls = ServerTls(*pair)
    assert tls.expiry == read_validity(pair[0].read_bytes()).ends
    # A certificate that the key does not fit changes nothing, one that has expired is taken.
    expired = sign_again(renewed, days=-1)
    before = tls.expiry
    replace(pair[0], expired)
    tls.check()
    assert tls.expiry == before
    replace(pair[1], renewed.key)
    tls.check()
    assert tls.expiry == read_validity(expired.read_bytes()).ends < time.time()
    assert [each.message for each in caplog.records if "expired on" in each.message]


# The first certificate


def test_a_first_certificate_may_be_waited_for(
    tmp_path: Path, renewed: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = tmp_path / "live" / "chain.pem", tmp_path / "live" / "key.pem"
    with pytest.raises(ConfigError, match="cannot read"):
        ServerTls(*pair)
    tls = ServerTls(*pair, may_wait=True)
    assert (tls.context, tls.expiry) == (None, None)
    assert [each.message for each in caplog.records] == [
        f"no TLS certificate yet: waiting for {pair[0]} and {pair[1]}"
    ]
    tls.reload()  # is no error
    pair[0].parent.mkdir()
    replace(pair[1], renewed.key)
    for _ in range(3):  # half a pair
        tls.check()
        tls.reload()
    assert tls.context is None
    replace(pair[0], renewed.chain)
    tls.check()
    assert tls.context is not None
    assert tls.expiry == read_validity(renewed.chain.read_bytes()).ends
    assert not errors(caplog)
    assert caplog.records[-1].message == f"TLS certificate loaded from {pair[0]}"
    pair[0].unlink()
    with pytest.raises(ConfigError, match="cannot read"):  # that is no first one any more
        tls.reload()


def test_a_first_pair_that_does_not_fit_is_said_once(
    tmp_path: Path,
    certificates: Certificates,
    renewed: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pair = tmp_path / "chain.pem", tmp_path / "key.pem"
    tls = ServerTls(*pair, may_wait=True)
    replace(pair[0], renewed.chain)
    replace(pair[1], certificates.key)
    for _ in range(4):
        tls.check()
    (message,) = errors(caplog)
    assert message.startswith("TLS certificate not loaded: cannot use")
    with pytest.raises(ConfigError, match="cannot use"):
        ServerTls(*pair, may_wait=True)
    replace(pair[1], renewed.key)
    tls.check()
    assert tls.context is not None


async def test_a_first_certificate_is_looked_for_often(
    tmp_path: Path, renewed: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xetserve.net.tls.FIRST", 0.001)
    tls = ServerTls(tmp_path / "chain.pem", tmp_path / "key.pem", may_wait=True)
    following = asyncio.create_task(tls.follow(3600))
    await asyncio.sleep(0)
    replace(tmp_path / "chain.pem", renewed.chain)
    replace(tmp_path / "key.pem", renewed.key)
    await until(lambda: tls.context is not None)
    following.cancel()


def test_a_renewed_pair_is_used_instead(
    tmp_path: Path, pair: tuple[Path, Path], renewed: Certificates
) -> None:
    folder = tmp_path / "renewed"
    folder.mkdir()
    tls = ServerTls(*pair, renewed=folder)
    old = tls.expiry
    replace(folder / "key.pem", renewed.key)
    tls.check()
    assert tls.expiry == old  # half a pair is none
    replace(folder / "chain.pem", sign_again(renewed, days=9))
    tls.check()
    assert tls.expiry == read_validity((folder / "chain.pem").read_bytes()).ends != old
    assert ServerTls(*pair, renewed=folder).expiry == tls.expiry
    missing = tmp_path / "none" / "chain.pem", tmp_path / "none" / "key.pem"
    assert ServerTls(*missing, renewed=folder, may_wait=True).context is not None


def test_a_link_that_leads_elsewhere_is_a_change(
    tmp_path: Path, certificates: Certificates, renewed: Certificates
) -> None:
    links = tmp_path / "cert", tmp_path / "key"
    for link, target in zip(links, (certificates.chain, certificates.key), strict=True):
        link.symlink_to(target)
    tls = ServerTls(*links)
    before = tls.context
    for link, target in zip(links, (renewed.chain, renewed.key), strict=True):
        link.unlink()
        link.symlink_to(target)
    tls.check()
    assert tls.context is not before


def test_half_of_a_change_is_waited_out(
    pair: tuple[Path, Path], renewed: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    tls = ServerTls(*pair)
    before = tls.context
    replace(pair[0], renewed.chain)
    tls.check()
    assert tls.context is before
    replace(pair[1], renewed.key)
    tls.check()
    assert tls.context is not before
    assert not errors(caplog)


def test_a_broken_pair_keeps_the_old_one_and_is_said_once(
    pair: tuple[Path, Path], renewed: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    tls = ServerTls(*pair)
    before = tls.context
    replace(pair[0], renewed.chain)
    for _ in range(4):
        tls.check()
    assert tls.context is before
    (said,) = errors(caplog)
    assert "not changed" in said
    assert "key values mismatch" in said
    # The next one is looked at again.
    replace(pair[1], renewed.key)
    tls.check()
    assert tls.context is not before


def test_a_pair_that_comes_back_after_it_was_bad_is_taken(
    pair: tuple[Path, Path], certificates: Certificates, renewed: Certificates
) -> None:
    tls = ServerTls(*pair)
    replace(pair[0], renewed.chain)
    tls.check()
    tls.check()
    before = tls.context
    replace(pair[0], certificates.chain)
    tls.check()
    assert tls.context is not before


def test_a_file_that_is_gone_is_said_once(
    pair: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    tls = ServerTls(*pair)
    pair[0].unlink()
    for _ in range(4):
        tls.check()
    (said,) = errors(caplog)
    assert "No such file" in said


def test_a_reload_that_fails_leaves_what_was_there(pair: tuple[Path, Path]) -> None:
    tls = ServerTls(*pair)
    before = tls.context
    pair[1].write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot use"):
        tls.reload()
    assert tls.context is before


async def test_the_files_are_followed(pair: tuple[Path, Path], renewed: Certificates) -> None:
    tls = ServerTls(*pair)
    before = tls.context
    following = asyncio.ensure_future(tls.follow(0.001))
    replace(pair[0], renewed.chain)
    replace(pair[1], renewed.key)
    await until(lambda: tls.context is not before)
    following.cancel()
