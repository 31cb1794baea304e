"""Plans for systemd: what they touch, that a second one is empty, and that trouble is taken
back.
"""

import time
from pathlib import Path

import pytest

from tests.deploy.fake_machine import FakeMachine, FakeSystemd
from xetserve.deploy.applied_settings import Summary
from xetserve.deploy.local_server import Address, Speech
from xetserve.deploy.machine import DeployError, Done
from xetserve.deploy.package import Package
from xetserve.deploy.steps import Plan, carry_out
from xetserve.deploy.systemd import GROUP, SystemdTarget, find_addresses, find_systemd
from xetserve.deploy.take_over import TakeOver

UNITS = {"xetserve.service": b"service 1", "xetserve.socket": b"socket 1"}
ONE = Package("1.0", "1.0-aaaa", "/x/one.whl", UNITS, b"locked")
TWO = Package("2.0", "2.0-bbbb", "/x/two.whl", {**UNITS, "xetserve.service": b"service 2"})
THREE = Package("3.0", "3.0-cccc", "/x/three.whl", UNITS)
SPEECHES = [Speech(tls, header) for tls in (False, True) for header in (False, True)]
CONFIG = "/etc/xetserve/xetserve.toml"


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def systemd(machine: FakeMachine) -> FakeSystemd:
    return FakeSystemd(machine)


@pytest.fixture
def target(machine: FakeMachine, systemd: FakeSystemd) -> SystemdTarget:
    return SystemdTarget(
        machine,
        template=b"# template",
        python="/usr/bin/python3",
        find_speech=lambda: systemd.speech,
    )


def do(plan: Plan, machine: FakeMachine) -> list[str]:
    """Carry a plan out; gives what was said."""
    said: list[str] = []
    carry_out(plan, machine, said.append)
    return said


def snapshot(machine: FakeMachine) -> dict[str, object]:
    return dict(machine.files)


def links(machine: FakeMachine) -> tuple[str | None, str | None]:
    opt = Path("/opt/xetserve")
    return machine.read_link(opt / "current"), machine.read_link(opt / "previous")


def test_a_first_installation(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    plan = target.plan_apply(ONE)
    assert machine.changes == 0  # planning touches nothing
    said = do(plan, machine)
    assert said == [step.describe() for step in (*plan.steps, *plan.after)]
    assert f"write {CONFIG} (0640, root:{GROUP}, 10 bytes)" in said
    assert machine.files[CONFIG] == b"# template"
    assert machine.rights[CONFIG] == (0o640, GROUP)
    assert machine.rights["/etc/xetserve"] == (0o750, GROUP)
    assert machine.files["/etc/systemd/system/xetserve.service"] == b"service 1"
    assert machine.files["/etc/systemd/system/xetserve.socket"] == b"socket 1"
    assert links(machine) == ("versions/1.0-aaaa", None)
    assert machine.read_link(Path("/opt/xetserve/bin")) == "current/bin"
    assert (systemd.running, systemd.is_enabled) == ("1.0-aaaa", True)
    pip = [line for line in machine.commands if " pip install " in line]
    lock = "/opt/xetserve/versions/1.0-aaaa/requirements.lock"
    assert machine.files[lock] == b"locked"
    assert len(pip) == 2
    assert pip[0].endswith(f" --require-hashes -r {lock}")
    assert pip[1].endswith(" --no-deps /x/one.whl")
    assert target.get_status() == {
        "version": "1.0-aaaa",
        "previous": "none",
        "xetserve.socket": "active",
        "xetserve.service": "active",
        "ready": "yes, http://127.0.0.1:8080",
    }


@pytest.mark.parametrize("speech", SPEECHES, ids=str)
def test_a_service_is_asked_in_the_way_that_it_speaks(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget, speech: Speech
) -> None:
    systemd.speech = speech
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    scheme = "https" if speech.tls else "http"
    assert target.get_status()["ready"] == f"yes, {scheme}://127.0.0.1:8080"


def test_settings_that_the_server_has_not_read_yet(
    machine: FakeMachine, systemd: FakeSystemd
) -> None:
    target = SystemdTarget(
        machine, template=b"", python="python", find_speech=lambda: Speech(tls=True)
    )
    do(target.plan_apply(ONE), machine)
    assert target.get_status()["ready"] == "yes, http://127.0.0.1:8080"


def test_where_a_service_listens(machine: FakeMachine) -> None:
    listing = (
        "[::]:8080 (Stream)\n192.0.2.1:81 (Stream)\n[2001:db8::1]:82 (Stream)\n"
        "/run/xetserve/socket (Stream)\n/run/other (Datagram)\n"
    )
    machine.handlers.append(lambda _: Done(0, listing, ""))
    found = find_addresses(machine, Speech(tls=True, needs_header=True))
    assert found == [
        Address("127.0.0.1", 8080, True, True),
        Address("127.0.0.1", 8080, False, True),
        Address("192.0.2.1", 81, True, True),
        Address("192.0.2.1", 81, False, True),
        Address("2001:db8::1", 82, True, True),
        Address("2001:db8::1", 82, False, True),
        Address("/run/xetserve/socket", needs_header=True),
    ]


def test_a_second_time_there_is_nothing_to_do(machine: FakeMachine, target: SystemdTarget) -> None:
    do(target.plan_apply(ONE), machine)
    before, changes = snapshot(machine), machine.changes
    plan = target.plan_apply(ONE)
    assert (plan.steps, plan.after) == ([], [])
    assert (snapshot(machine), machine.changes) == (before, changes)


def test_settings_that_a_reload_can_change(machine: FakeMachine, systemd: FakeSystemd) -> None:
    target = SystemdTarget(
        machine,
        template=b"",
        python="python",
        summarize=lambda content: Summary(content.decode(), content.decode().partition(" live")[0]),
    )
    do(target.plan_apply(ONE), machine)
    machine.write(Path(CONFIG), b" live", 0o640, None)
    plan = target.plan_apply(ONE)
    assert plan.notes == ["settings changed: reload"]
    machine.commands.clear()
    do(plan, machine)
    changing = [line for line in machine.commands if "reload" in line or "restart" in line]
    assert changing == ["systemctl reload xetserve.service"]
    assert target.plan_apply(ONE).steps == []
    for path in (CONFIG, "/etc/xetserve/xetserve.env"):
        machine.write(Path(path), b"fixed", 0o640, None)
        plan = target.plan_apply(ONE)
        assert plan.notes[0].startswith("settings changed: restart")
        do(plan, machine)
        assert "systemctl restart xetserve.service" in machine.commands
        assert links(machine) == ("versions/1.0-aaaa", None)
        assert target.plan_apply(ONE).steps == []
    machine.write(Path(CONFIG), b"other", 0o640, None)
    assert target.plan_apply(ONE).steps
    started, systemd.started = systemd.started, time.monotonic() + 3600  # `systemctl restart`
    plan = target.plan_apply(ONE)
    assert plan.steps == []
    do(plan, machine)  # it records what the service has read by itself
    assert target.plan_apply(ONE).after == []
    systemd.started = started
    assert target.plan_apply(ONE).steps == []
    machine.write(Path(CONFIG), b"others", 0o640, None)
    systemd.running = None  # it sleeps, and reads them when it wakes
    plan = target.plan_apply(ONE)
    assert (plan.steps, plan.notes) == ([], [])
    do(plan, machine)
    assert target.plan_apply(ONE).after == []


def test_a_service_that_sleeps_is_as_it_should_be(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    systemd.running = None
    assert target.plan_apply(ONE).steps == []


def test_what_was_switched_off_is_switched_on_again(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    systemd.is_enabled = systemd.is_listening = False
    do(target.plan_apply(ONE), machine)
    assert (systemd.is_enabled, systemd.is_listening) == (True, True)


def test_a_configuration_is_never_written_again(
    machine: FakeMachine, target: SystemdTarget
) -> None:
    machine.make_folder(Path("/etc/xetserve"), 0o700, "wheel")
    machine.write(Path(CONFIG), b"mine", 0o600, "wheel")
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    assert machine.files[CONFIG] == b"mine"
    assert machine.rights[CONFIG] == (0o600, "wheel")
    assert machine.rights["/etc/xetserve"] == (0o700, "wheel")


def test_an_upgrade_restarts_behind_the_socket(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    machine.commands.clear()
    do(target.plan_apply(TWO), machine)
    assert links(machine) == ("versions/2.0-bbbb", "versions/1.0-aaaa")
    assert systemd.running == "2.0-bbbb"
    assert machine.files["/etc/systemd/system/xetserve.service"] == b"service 2"
    stopping = [
        line for line in machine.commands if " stop " in line or "systemctl disable" in line
    ]
    assert stopping == []
    assert "systemctl restart xetserve.service" in machine.commands
    # The configuration is checked by the version that is to read it, before anything happens.
    lines = machine.commands
    check = "/opt/xetserve/versions/2.0-bbbb/bin/xetserve config check --config " + CONFIG
    assert lines.index(check) < lines.index("systemctl daemon-reload")


def test_an_upgrade_with_the_same_units_does_not_wait(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    folder = Path("/opt/xetserve/versions")
    plan = target.plan_apply(THREE)
    assert TakeOver("xetserve.service", folder / "3.0-cccc") in plan.steps
    assert TakeOver("xetserve.service", folder / "1.0-aaaa", may_restart=True) in plan.undo
    do(plan, machine)
    assert systemd.running == "3.0-cccc"
    rollback = target.plan_rollback()
    assert TakeOver("xetserve.service", folder / "1.0-aaaa") in rollback.steps
    do(rollback, machine)
    assert systemd.running == "1.0-aaaa"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/etc/xetserve/xetserve.env", id="environment"),
        pytest.param("/etc/credstore/xetserve.native_secret", id="credential"),
        pytest.param("/opt/xetserve/sleeping", id="it does not run"),
    ],
)
def test_what_comes_from_systemd_needs_a_restart(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget, path: str
) -> None:
    do(target.plan_apply(ONE), machine)
    machine.make_folder(Path("/etc/credstore"), 0o700, None)
    machine.write(Path(path), b"new", 0o600, None)
    if "sleeping" in path:
        systemd.running = None
    plan = target.plan_apply(THREE)
    assert not any(isinstance(step, TakeOver) for step in plan.steps)
    machine.commands.clear()
    do(plan, machine)
    assert "systemctl restart xetserve.service" in machine.commands
    assert systemd.running == "3.0-cccc"


def test_the_configuration_is_checked_with_the_credentials_of_the_service(
    machine: FakeMachine, target: SystemdTarget
) -> None:
    machine.make_folder(Path("/etc/credstore"), 0o700, None)
    do(target.plan_apply(ONE), machine)
    (check,) = [line for line in machine.commands if " config check " in line]
    folders = "/run/credentials/xetserve.service:/etc/credstore:/run/credstore:/usr/lib/credstore"
    program = "/opt/xetserve/versions/1.0-aaaa/bin/xetserve"
    assert check == f"env CREDENTIALS_DIRECTORY={folders} {program} config check --config {CONFIG}"


def test_another_socket_cannot_be_had_without_a_stop(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    machine.commands.clear()
    other = Package("4.0", "4.0-dddd", "x", {**UNITS, "xetserve.socket": b"socket 4"})
    do(target.plan_apply(other), machine)
    assert "systemctl stop xetserve.service xetserve.socket" in machine.commands
    assert systemd.running == "4.0-dddd"


def test_one_version_before_is_kept(machine: FakeMachine, target: SystemdTarget) -> None:
    for package in (ONE, TWO, THREE):
        do(target.plan_apply(package), machine)
    assert machine.list_folder(Path("/opt/xetserve/versions")) == ["2.0-bbbb", "3.0-cccc"]


@pytest.mark.parametrize("half", [False, True], ids=["does not start", "is never ready"])
def test_a_broken_upgrade_goes_back_by_itself(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget, half: bool
) -> None:
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    before = snapshot(machine)
    systemd.broken, systemd.is_half_broken = {"3.0-cccc"}, half
    said: list[str] = []
    plan = target.plan_apply(THREE)
    machine.handlers.insert(0, lambda c: Done(0, "why\n", "") if c[0] == "journalctl" else None)
    with pytest.raises(DeployError, match=r"rolled back to versions/2\.0-bbbb$"):
        carry_out(plan, machine, said.append)
    assert "log: why" in said
    assert systemd.running == "2.0-bbbb"
    assert snapshot(machine) == before
    assert (machine.waited > 0) == half


def test_a_version_that_is_not_the_one_that_was_asked_for_goes_back(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    lying = Package("9.9", "3.0-cccc", "x", UNITS)
    with pytest.raises(DeployError, match=r"is version 3\.0; rolled back"):
        do(target.plan_apply(lying), machine)
    assert systemd.running == "1.0-aaaa"


@pytest.mark.parametrize("fault", ["not ready", "no network"])
@pytest.mark.parametrize("had", ["", "/opt/xetserve", "/etc/xetserve"])
def test_a_first_installation_that_fails_leaves_nothing(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget, fault: str, had: str
) -> None:
    """Also no configuration, unless it was there: a template of another version would stay."""
    if had:
        machine.make_folder(Path(had), 0o755, None)
    before = snapshot(machine)
    systemd.broken, systemd.pip_fails = {"1.0-aaaa"}, fault != "not ready"
    with pytest.raises(DeployError, match=r"without xetserve$|nothing has changed for clients"):
        do(target.plan_apply(ONE), machine)
    assert (systemd.running, systemd.is_enabled, systemd.has_group) == (None, False, False)
    assert {*snapshot(machine)} - {*before} <= {"/etc/systemd/system/xetserve.service.d"}
    assert snapshot(machine).items() >= before.items()


def test_an_installation_that_fails_changes_nothing_for_clients(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    before = snapshot(machine)
    systemd.pip_fails = True
    machine.commands.clear()
    with pytest.raises(DeployError, match="no such package / no network; nothing has changed"):
        do(target.plan_apply(TWO), machine)
    assert snapshot(machine) == before
    assert not any("restart" in line for line in machine.commands)


def test_what_was_interrupted_is_installed_anew(
    machine: FakeMachine, target: SystemdTarget
) -> None:
    folder = Path("/opt/xetserve/versions/1.0-aaaa")
    machine.make_folder(folder / "bin", 0o755, None)
    plan = target.plan_apply(ONE)
    assert f"remove {folder}" in [step.describe() for step in plan.steps]
    do(plan, machine)
    assert machine.exists(folder / ".complete")


def test_going_back_and_forth(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget
) -> None:
    do(target.plan_apply(ONE), machine)
    with pytest.raises(DeployError, match="no previous version"):
        target.plan_rollback()
    do(target.plan_apply(TWO), machine)
    do(target.plan_rollback(), machine)
    assert systemd.running == "1.0-aaaa"
    assert machine.files["/etc/systemd/system/xetserve.service"] == b"service 1"
    do(target.plan_rollback(), machine)
    assert systemd.running == "2.0-bbbb"
    assert links(machine) == ("versions/2.0-bbbb", "versions/1.0-aaaa")


@pytest.mark.parametrize("purge", [False, True])
def test_removing_leaves_nothing(
    machine: FakeMachine, systemd: FakeSystemd, target: SystemdTarget, purge: bool
) -> None:
    before = snapshot(machine)
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    machine.make_folder(Path("/var/cache/private/xetserve/ab"), 0o700, None)
    machine.make_link(Path("/var/cache/xetserve"), "private/xetserve")
    do(target.plan_remove(purge=False), machine)
    assert {CONFIG, "/var/cache/xetserve", "/var/cache/private/xetserve/ab"} <= set(machine.files)
    assert not any(name.startswith("/opt/xetserve") for name in machine.files)
    if purge:  # the units are gone by now
        do(target.plan_remove(purge=True), machine)
        own = {"/", "/etc", "/var", "/var/cache", "/var/cache/private"}
        assert set(machine.files) - set(before) - own == set()
    assert systemd.has_group == (not purge)
    assert (systemd.running, systemd.is_enabled) == (None, False)
    assert target.plan_remove(purge=purge).steps == []


def test_what_was_installed_by_hand_is_left_alone(
    machine: FakeMachine, target: SystemdTarget
) -> None:
    machine.make_folder(Path("/opt/xetserve/bin"), 0o755, None)
    machine.write(Path("/etc/systemd/system/xetserve.service"), b"mine", 0o644, None)
    with pytest.raises(DeployError, match="/opt/xetserve was installed by hand"):
        target.plan_apply(ONE)
    with pytest.raises(DeployError, match="nothing is removed"):
        target.plan_remove(purge=True)
    machine.remove(Path("/etc/systemd/system/xetserve.service"))
    plan = target.plan_remove(purge=True)
    assert plan.steps == []


def test_drop_ins_of_others_stay(machine: FakeMachine, target: SystemdTarget) -> None:
    do(target.plan_apply(ONE), machine)
    mine = Path("/etc/systemd/system/xetserve.service.d/mine.conf")
    machine.write(mine, b"", 0o644, None)
    do(target.plan_remove(purge=True), machine)
    assert machine.exists(mine)


def test_where_there_is_no_systemd() -> None:
    machine = FakeMachine()
    assert find_systemd(machine) == "this machine was not booted with systemd"
    machine.programs.clear()
    assert find_systemd(machine) == "systemctl is not installed"
