"""Plans for certificates: what they touch, what restarts, and that trouble is taken back."""

from pathlib import Path

import pytest

from tests.deploy.fake_engine import FakeEngine
from tests.deploy.fake_machine import OK, FakeMachine, FakeSystemd
from xetserve.deploy.certificates import (
    HOOK,
    REDIRECT,
    Certbot,
    Pair,
    add_certbot,
    add_pair,
    add_pair_to_container,
    add_removal,
    read_shared,
)
from xetserve.deploy.container_shape import Shape
from xetserve.deploy.containers import ContainerTarget
from xetserve.deploy.local_server import Address, Speech
from xetserve.deploy.machine import DeployError, Done
from xetserve.deploy.package import Package
from xetserve.deploy.steps import Plan, carry_out
from xetserve.deploy.systemd import SERVICE, SOCKET, SystemdTarget

UNITS = {SERVICE: b"service", SOCKET: b"socket"}
PACKAGE = Package("1.0", "1.0-aaaa", "/x/one.whl", UNITS, b"locked")
PAIR = Pair(b"certificate", b"key")
CERT, KEY = "/etc/credstore/xetserve.tls_cert", "/etc/credstore/xetserve.tls_key"
SEEN = "/run/credentials/xetserve.service/xetserve.tls_cert"
UNIT = f"/etc/systemd/system/{REDIRECT}"
DROP_IN = "/etc/systemd/system/xetserve.service.d/20-certbot.conf"
ENV_FILE = "/etc/xetserve/xetserve.env"
CERTBOT = Certbot("a@b.example", ("models.example", "other.example"), "https://ca.example/dir")
CERTBOT_COMMAND = (
    "certbot certonly --non-interactive --agree-tos --email a@b.example --webroot "
    "-w /var/lib/xetserve-acme --cert-name models.example -d models.example "
    "-d other.example --deploy-hook /etc/xetserve/certbot-hook --server https://ca.example/dir"
)
GIVE = "env RENEWED_LINEAGE=/etc/letsencrypt/live/models.example /etc/xetserve/certbot-hook"


class World:
    """A machine with systemd, and with certbot, whose certificates begin to serve at once."""

    def __init__(self) -> None:
        self.machine = FakeMachine()
        self.systemd = FakeSystemd(self.machine)
        self.machine.programs.add("certbot")
        self.machine.handlers.insert(0, self._handle)
        self.is_redirecting = False
        self.certbot_fails = False
        self._respond = self.machine.respond
        self.machine.respond = self._answer
        self.target = SystemdTarget(self.machine, template=b"# template", python="python3")

    def _handle(self, command: tuple[str, ...]) -> Done | None:
        match command:
            case ("systemctl", "is-enabled" | "is-active", "--quiet", unit) if unit == REDIRECT:
                return OK if self.is_redirecting else Done(1, "", "no")
            case ("systemctl", "is-active", "--quiet", unit) if unit == SERVICE:
                return OK if self.systemd.running else Done(3, "", "no")
            case ("systemctl", "enable", "--now", unit, _) if unit == REDIRECT:
                self.is_redirecting = self.systemd.is_listening = True
                return OK
            case ("systemctl", "disable", "--now", unit) if unit == REDIRECT:
                self.is_redirecting = False
                return OK
            case ("systemctl", "start", unit) if unit == SERVICE:
                return self.machine.run(("systemctl", "restart", SERVICE))
            case ("certbot", *_):
                if self.certbot_fails:
                    return Done(1, "", "the name leads elsewhere")
                self.machine.files["/etc/letsencrypt/live/models.example"] = None
            case ("env", _, "/etc/xetserve/certbot-hook"):
                self.machine.make_folder(Path("/etc/credstore"), 0o700, None)
                self.machine.files |= {CERT: b"new", KEY: b"new"}
        return None

    def _answer(self, address: Address, path: str) -> tuple[int, bytes] | None:
        answer = self._respond(address, path)
        is_waiting = self.machine.files.get(DROP_IN) and not self.machine.files.get(CERT)
        if answer is not None and is_waiting and path == "/ready":
            return 503, b'{"status": "unready", "cause": "certificate"}'
        return answer

    def run(self, plan: Plan) -> list[str]:
        """Carry a plan out; gives the commands of it."""
        num = len(self.machine.commands)
        carry_out(plan, self.machine, lambda _: None)
        return [each for each in self.machine.commands[num:] if "show" not in each]

    def plan_pair(self, pair: Pair = PAIR) -> Plan:
        plan = self.target.plan_apply(PACKAGE)
        add_pair(plan, self.machine, self.target, pair)
        return plan

    def plan_certbot(self) -> Plan:
        plan = self.target.plan_apply(PACKAGE)
        add_certbot(plan, self.machine, self.target, CERTBOT)
        return plan

    def install(self) -> None:
        self.run(self.target.plan_apply(PACKAGE))


@pytest.fixture
def world() -> World:
    return World()


# A pair of files


def test_a_first_installation_starts_with_the_pair(world: World) -> None:
    plan = world.plan_pair()
    assert world.machine.changes == 0
    assert plan.switch > 3  # it is there when the new version checks the settings
    commands = world.run(plan)
    assert (world.machine.files[CERT], world.machine.files[KEY]) == PAIR
    assert world.machine.rights[CERT] == world.machine.rights[KEY] == (0o600, None)
    assert world.machine.rights["/etc/credstore"] == (0o700, None)
    assert len([each for each in commands if "restart" in each]) == 1
    assert not world.plan_pair().steps


def test_a_service_without_tls_is_restarted(world: World) -> None:
    world.install()
    assert world.run(world.plan_pair()) == ["systemctl restart xetserve.service"]


def test_a_service_with_tls_gets_another_pair_without_a_restart(world: World) -> None:
    world.install()
    world.run(world.plan_pair())
    world.machine.files[SEEN] = b"certificate"
    plan = world.plan_pair(Pair(b"certificate 2", b"key"))
    assert world.run(plan) == ["/etc/xetserve/certbot-hook"]
    assert world.machine.files[CERT] == b"certificate 2"
    assert world.machine.files["/etc/xetserve/certbot-hook"] == read_shared(HOOK)
    assert world.machine.rights["/etc/xetserve/certbot-hook"] == (0o755, None)


def test_a_key_that_others_may_read_is_written_anew(world: World) -> None:
    world.install()
    world.run(world.plan_pair())
    world.machine.rights[KEY] = (0o644, None)
    world.run(world.plan_pair())
    assert world.machine.rights[KEY] == (0o600, None)


def test_a_pair_that_does_not_work_is_taken_back(world: World) -> None:
    world.install()
    world.run(world.plan_pair())
    world.machine.files[SEEN] = b"certificate"
    before = dict(world.machine.files)
    plan = world.plan_pair(Pair(b"certificate 2", b"key 2"))
    world.systemd.broken = {"1.0-aaaa"}
    with pytest.raises(DeployError, match="rolled back"):
        world.run(plan)
    hook = "/etc/xetserve/certbot-hook"
    assert world.machine.files == {**before, hook: read_shared(HOOK)}
    assert world.machine.commands[-1] == hook  # the service has the pair of before again


def test_a_first_installation_that_fails_leaves_no_key(world: World) -> None:
    plan = world.plan_pair()
    world.systemd.broken = {"1.0-aaaa"}
    with pytest.raises(DeployError, match="rolled back"):
        world.run(plan)
    assert not {CERT, KEY} & {*world.machine.files}
    world.systemd.pip_fails = True
    with pytest.raises(DeployError, match="nothing has changed"):
        world.run(world.plan_pair())
    assert not {CERT, KEY} & {*world.machine.files}


def test_a_variable_that_would_win_is_named(world: World) -> None:
    world.install()
    world.machine.files[ENV_FILE] = b"XETSERVE_PORT=1\nXETSERVE_TLS_KEY=/x/key.pem\n"
    for plan in (world.plan_pair, world.plan_certbot):
        with pytest.raises(DeployError, match=r"xetserve\.env sets XETSERVE_TLS_KEY=/x/key\.pem"):
            plan()
    world.machine.files[ENV_FILE] = f"XETSERVE_TLS_CERT={SEEN}\n".encode()
    assert world.plan_pair().steps


# certbot


@pytest.mark.parametrize("is_installed", [False, True])
def test_certbot_gets_a_certificate_for_a_server_that_waits(
    world: World, is_installed: bool
) -> None:
    if is_installed:
        world.install()
    commands = world.run(world.plan_certbot())
    stop = f"systemctl stop {SERVICE} {SOCKET} {REDIRECT}"
    assert commands[commands.index(stop) - 1 :] == [
        "systemctl daemon-reload",
        stop,
        f"systemctl enable --now {REDIRECT} {SOCKET}",
        f"systemctl start {SERVICE}",
        f"systemctl restart {SERVICE}",  # how the fake one starts
        CERTBOT_COMMAND,
        GIVE,
    ]
    assert world.machine.files[UNIT] == read_shared(REDIRECT)
    assert f"Environment=XETSERVE_TLS_CERT={SEEN}\n".encode() in bytes(
        world.machine.read(Path(DROP_IN)) or b""
    )
    assert world.machine.rights["/var/lib/xetserve-acme"] == (0o755, None)
    assert not world.plan_certbot().steps


@pytest.mark.parametrize("is_installed", [False, True])
def test_without_a_certificate_all_is_as_before(world: World, is_installed: bool) -> None:
    if is_installed:
        world.install()
    before = {path for path in world.machine.files if not path.startswith("/opt")}
    world.certbot_fails = True
    with pytest.raises(DeployError, match="the name leads elsewhere; rolled back"):
        world.run(world.plan_certbot())
    assert not world.is_redirecting
    assert bool(world.systemd.running) is is_installed
    left = {path for path in world.machine.files if not path.startswith("/opt")} - before
    kept = {"/etc", "/var", "/var/lib", "/var/lib/xetserve-acme", "/etc/xetserve"}
    assert left - kept <= {
        "/etc/xetserve/xetserve.toml",
        "/etc/systemd/system/xetserve.service.d",
    }


def test_a_service_that_never_gets_its_certificate_is_no_success(world: World) -> None:
    world.install()
    world.machine.handlers.insert(0, lambda command: OK if command[0] == "env" else None)
    with pytest.raises(DeployError, match="not ready"):
        world.run(world.plan_certbot())


def test_an_upgrade_may_wait_too(world: World) -> None:
    world.install()
    world.machine.files[DROP_IN] = b"x"
    world.run(world.target.plan_apply(Package("2.0", "2.0-bbbb", "/x/two.whl", UNITS)))
    assert world.target.get_status()["ready"].startswith("no, it waits for its first certificate")


def test_certbot_has_to_be_there(world: World) -> None:
    world.machine.programs.remove("certbot")
    with pytest.raises(DeployError, match="apt-get install certbot"):
        world.plan_certbot()


@pytest.mark.parametrize("purge", [False, True])
def test_everything_can_be_removed(world: World, purge: bool) -> None:
    world.run(world.plan_certbot())
    plan = world.target.plan_remove(purge=purge)
    add_removal(plan, world.machine, purge=purge)
    assert world.run(plan)[0] == f"systemctl disable --now {REDIRECT}"
    left = [path for path in world.machine.files if path.startswith("/etc/systemd/system/")]
    assert left == []
    assert (CERT in world.machine.files) is not purge
    assert ("/var/lib/xetserve-acme" in world.machine.files) is not purge


# Containers


@pytest.mark.parametrize("engine_name", ["docker", "podman"])
def test_a_container_reads_the_pair_from_its_configuration(engine_name: str) -> None:
    machine = FakeMachine()
    machine.make_folder(Path("/etc"), 0o755, None)
    engine = FakeEngine(machine)

    def apply(pair: Pair | None = None) -> list[str]:
        shape = Shape(image="x:1")
        target = ContainerTarget(
            machine,
            engine_name,
            shape,
            template=b"# toml",
            env_template=b"# env",
            gets_pair=pair is not None,
        )
        plan = target.plan_apply(None)
        if pair is not None:
            add_pair_to_container(plan, machine, target, pair)
        said: list[str] = []
        carry_out(plan, machine, said.append)
        return said

    apply()
    before = dict(machine.files)
    engine.broken = {"x:1"}
    for engine.is_trial_fine in (False, True):
        outcome = r"rolled back|rollback failed" if engine.is_trial_fine else "nothing has changed"
        with pytest.raises(DeployError, match=outcome):
            apply(PAIR)
        assert machine.files == before
    engine.broken = set()
    engine.speech = Speech(tls=True)
    apply(PAIR)
    folder = "/etc/xetserve/deployed-tls"
    assert machine.files[f"{folder}/cert.pem"] == b"certificate"
    assert machine.rights[f"{folder}/key.pem"] == (0o640, "1000")
    assert machine.rights[folder] == (0o750, "1000")
    arguments = engine.containers["xetserve"].arguments
    for name, file in (("CERT", "cert"), ("KEY", "key")):
        assert f"XETSERVE_TLS_{name}={folder}/{file}.pem" in arguments
    # An upgrade keeps TLS, and another pair is taken by the server itself.
    assert apply() == apply(PAIR) == []
    (line,) = apply(Pair(b"certificate 2", b"key"))
    assert line.startswith(f"write {folder}/cert.pem")
    assert engine.containers["xetserve"].arguments == arguments
