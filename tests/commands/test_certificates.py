"""The flags of `xetserve deploy` for certificates: what is refused before anything changes."""

import subprocess
from pathlib import Path

import pytest

from tests.deploy.fake_engine import FakeEngine
from tests.deploy.fake_machine import FakeMachine, FakeSystemd
from tests.peers import Certificates, make_certificates
from xetserve.commands.arguments import parse_arguments
from xetserve.commands.certificates import add_certificates
from xetserve.commands.deploy import choose_target
from xetserve.deploy.steps import Plan
from xetserve.errors import ConfigError

CERTBOT = ("--certbot", "a@b.example")
DOMAIN = ("--domain", "models.example")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pair"))


def plan(*arguments: str, target: str = "systemd") -> Plan:
    """Plan the change of a certificate alone."""
    machine = FakeMachine()
    FakeSystemd(machine) if target == "systemd" else FakeEngine(machine)
    machine.programs.add("certbot")
    options = parse_arguments(["deploy", "apply", "--target", target, *arguments])
    found = Plan()
    add_certificates(options, machine, choose_target(options, machine)[0], found)
    return found


def sign(pair: Certificates, folder: Path, *arguments: str) -> Path:
    """Make another certificate for the key of a pair."""
    path = folder / "other.pem"
    command = ["openssl", "x509", "-in", str(pair.chain), "-signkey", str(pair.key)]
    subprocess.run([*command, *arguments, "-out", str(path)], check=True, capture_output=True)
    return path


def test_without_flags_nothing_is_added() -> None:
    assert plan() == Plan()


def test_a_pair_is_read_as_it_is(pair: Certificates) -> None:
    found = plan("--tls-cert", str(pair.chain), "--tls-key", str(pair.key))
    contents = [getattr(step, "content", None) for step in found.steps]
    assert contents == [None, pair.chain.read_bytes(), pair.key.read_bytes()]


def test_a_key_of_another_certificate_is_refused(pair: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    with pytest.raises(ConfigError, match="key values mismatch"):
        plan("--tls-cert", str(pair.chain), "--tls-key", str(other.key))
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.pem: No such file"):
        plan("--tls-cert", str(tmp_path / "absent.pem"), "--tls-key", str(other.key))


def test_a_certificate_of_another_time_is_refused(pair: Certificates, tmp_path: Path) -> None:
    path = sign(pair, tmp_path, "-days", "-1")
    with pytest.raises(ConfigError, match=r"other\.pem expired at 20\d\d-.* UTC"):
        plan("--tls-cert", str(path), "--tls-key", str(pair.key))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tls-cert", "x.pem"), "must be given together"),
        (DOMAIN, "need --certbot EMAIL"),
        (("--certbot-server", "https://x/dir"), "need --certbot EMAIL"),
        (CERTBOT, "--certbot needs --domain NAME"),
        (("--certbot", "a", *DOMAIN), "must be an address for e-mail, not 'a'"),
        (("--certbot=-x@y", *DOMAIN), "must be an address for e-mail"),
        ((*CERTBOT, "--domain", "*.example"), "must be a name such as"),
        ((*CERTBOT, "--domain", "../x.example"), "must be a name such as"),
        ((*CERTBOT, *DOMAIN, "--certbot-server", "http://x"), "must begin with https://"),
    ],
)
def test_flags_that_make_no_sense(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(*arguments)


def test_there_is_one_source_of_a_certificate(pair: Certificates) -> None:
    files = ("--tls-cert", str(pair.chain), "--tls-key", str(pair.key))
    with pytest.raises(ConfigError, match="exclude each other"):
        plan(*files, *CERTBOT, *DOMAIN)


def test_certbot_is_for_the_host() -> None:
    with pytest.raises(ConfigError, match="--certbot is for --target systemd"):
        plan(*CERTBOT, *DOMAIN, "--image", "x:1", target="docker")
