"""Which target `xetserve deploy` means, and what it keeps of earlier runs."""

import json
import sys
from pathlib import Path

import pytest

from tests.deploy.fake_engine import FakeEngine
from tests.deploy.fake_machine import FakeMachine, FakeSystemd
from xetserve.commands import deploy as module
from xetserve.commands.arguments import parse_arguments
from xetserve.commands.deploy import choose_target, make_plan, run_deploy
from xetserve.commands.deploy_report import describe_outcome
from xetserve.commands.service_settings import summarize_settings
from xetserve.deploy.containers import ContainerTarget
from xetserve.deploy.local_server import Answer
from xetserve.deploy.machine import DeployError
from xetserve.deploy.steps import Plan, carry_out
from xetserve.deploy.systemd import SystemdTarget
from xetserve.errors import ConfigError

LOOPBACK = ("--target", "docker", "--image", "x:1.0", "--publish", "127.0.0.1:8080")


@pytest.fixture
def machine() -> FakeMachine:
    machine = FakeMachine()
    machine.make_folder(Path("/etc"), 0o755, None)
    return machine


@pytest.fixture
def engine(machine: FakeMachine) -> FakeEngine:
    machine.programs.remove("podman")
    return FakeEngine(machine)


def choose(
    machine: FakeMachine, *arguments: str
) -> tuple[SystemdTarget | ContainerTarget, list[str]]:
    return choose_target(parse_arguments(["deploy", *arguments]), machine)


def plan(machine: FakeMachine, *arguments: str) -> Plan:
    options = parse_arguments(["deploy", *arguments])
    return make_plan(options, choose_target(options, machine)[0])


def apply(machine: FakeMachine, *arguments: str) -> None:
    carry_out(plan(machine, "apply", *arguments), machine, lambda _: None)


def test_an_upgrade_stays_where_the_service_is(machine: FakeMachine, engine: FakeEngine) -> None:
    apply(machine, *LOOPBACK, "--network", "mine", "--memory", "1g", "--config-dir", "/etc/mine")
    first = engine.containers["xetserve"].arguments
    apply(machine, "--image", "x:2.0")
    second = engine.containers["xetserve"].arguments
    assert second == tuple(each.replace("x:1.0", "x:2.0") for each in first)[:1] + second[1:]
    for kept in (
        "127.0.0.1:8080:8080",
        "--network=mine",
        "--memory=1g",
        "/etc/mine:/etc/xetserve:ro",
    ):
        assert kept in second
    assert plan(machine, "apply", "--image", "x:2.0").steps == []


def test_an_apply_from_an_installed_package_keeps_the_image(
    machine: FakeMachine, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to build from, and settings or flags may have changed."""
    monkeypatch.setattr(module, "find_clone", lambda: None)
    with pytest.raises(DeployError, match=r"name a clone \(--from DIR\) or an image"):
        plan(machine, "apply", "--target", "docker")
    apply(machine, *LOOPBACK)
    assert plan(machine, "apply").steps == []
    machine.write(Path("/etc/xetserve/xetserve.toml"), b"[limits]\nidle_timeout = 5", 0o640, None)
    apply(machine)
    assert "docker kill --signal=HUP xetserve" in machine.commands
    apply(machine, "--memory", "1g")
    assert "--memory=1g" in engine.containers["xetserve"].arguments
    assert engine.containers["xetserve"].image == "x:1.0"


def test_a_flag_that_changes_something_is_shown(machine: FakeMachine, engine: FakeEngine) -> None:
    apply(machine, *LOOPBACK, "--network", "mine", "--build-arg", "BASE=a")
    flags = (
        "--publish",
        "8080",
        "--network",
        "default",
        "--memory",
        "512m",
        "--build-arg",
        "BASE=b",
    )
    _, notes = choose(machine, "plan", "--image", "x:2.0", *flags)
    assert notes == [
        "--publish changes: 127.0.0.1:8080 -> 8080",
        "--network changes: mine -> default",
        "--build-arg changes: BASE=a -> BASE=b",
    ]
    apply(machine, "--image", "x:2.0", *flags)
    assert "8080:8080" in engine.containers["xetserve"].arguments
    assert choose(machine, "plan", "--image", "x:2.0", *flags)[1] == []


def test_purge_removes_the_folder_that_was_used(machine: FakeMachine, engine: FakeEngine) -> None:
    machine.make_folder(Path("/etc/xetserve"), 0o755, None)  # of another service
    apply(machine, *LOOPBACK, "--config-dir", "/etc/mine")
    carry_out(plan(machine, "remove", "--purge"), machine, lambda _: None)
    assert not machine.exists(Path("/etc/mine"))
    assert machine.exists(Path("/etc/xetserve"))


def test_what_an_older_version_deployed_needs_its_address(
    machine: FakeMachine, engine: FakeEngine
) -> None:
    apply(machine, *LOOPBACK)
    del engine.containers["xetserve"].labels["io.xetserve.deploy.flags"]
    with pytest.raises(DeployError, match="did not record its flags: give --publish once more"):
        plan(machine, "apply", "--image", "x:2.0")
    assert choose(machine, "status")[0].get_status()["current"] == "x:1.0, running"
    apply(machine, *LOOPBACK)
    apply(machine, "--image", "x:2.0")
    assert "127.0.0.1:8080:8080" in engine.containers["xetserve"].arguments


@pytest.mark.parametrize("action", ["apply", "status", "logs", "rollback", "remove"])
def test_the_target_that_has_the_service(
    machine: FakeMachine, engine: FakeEngine, action: str
) -> None:
    """The machine was booted with systemd, too."""
    machine.make_folder(Path("/run/systemd/system"), 0o755, None)
    assert isinstance(choose(machine, action)[0], SystemdTarget)
    apply(machine, *LOOPBACK)
    assert isinstance(choose(machine, action)[0], ContainerTarget)
    machine.make_folder(Path("/opt/xetserve/versions"), 0o755, None)
    with pytest.raises(DeployError, match=r"systemd and docker have .* \(--target\)"):
        choose(machine, action)
    assert isinstance(choose(machine, action, "--target", "systemd")[0], SystemdTarget)


@pytest.mark.parametrize(
    "flag", ["--publish", "--network", "--memory", "--config-dir", "--image", "--rebuild"]
)
def test_flags_that_systemd_would_ignore(machine: FakeMachine, flag: str) -> None:
    FakeSystemd(machine)
    machine.programs = {"systemctl"}
    with pytest.raises(ConfigError, match=f"{flag} is for containers"):
        choose(machine, "apply", flag, *([] if flag == "--rebuild" else ["127.0.0.1:8080"]))


def test_the_python_of_systemd(machine: FakeMachine) -> None:
    FakeSystemd(machine)
    machine.programs = {"systemctl"}
    steps = [each.describe() for each in plan(machine, "plan").steps]
    assert any(each.startswith(f"run {sys.executable} -m venv ") for each in steps)


def test_what_counts_in_a_settings_file() -> None:
    first = summarize_settings(b"[limits]\nmax_connections = 5\n[server]\nport = 8080\n")
    assert first == summarize_settings(
        b"# said otherwise\n[server]\nport = 8080\n\n[limits]\nmax_connections = 5"
    )
    live = summarize_settings(b"[limits]\nmax_connections = 6\n[server]\nport = 8080\n")
    assert (live.settings != first.settings, live.fixed == first.fixed) == (True, True)
    fixed = summarize_settings(b"[limits]\nmax_connections = 5\n[server]\nport = 8081\n")
    assert fixed.fixed != first.fixed
    assert summarize_settings(b"port = 1") != summarize_settings(b"port = 2")
    assert summarize_settings(b"[") != summarize_settings(b"[[")


def ready(cause: str | None) -> Answer:
    return Answer("http://h", 200, json.dumps({"cause": cause, "status": "degraded"}).encode())


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, None, ""),
        (None, "hub", ", but degraded (hub). This does"),
        ("hub", "hub", ", but degraded, as before (hub). This does"),
        ("hub", "cache", ", but degraded (cache), and was not before. This does"),
    ],
)
def test_a_degraded_service_is_told_of(
    before: str | None, after: str | None, expected: str
) -> None:
    found = describe_outcome("done", ready(before) if before else None, ready(after))
    assert found.startswith(f"done{expected}")
    assert found.endswith("not count against the version that runs") == bool(expected)


def run(machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    for name in ("RealMachine", "PlanningMachine"):
        monkeypatch.setattr(module, name, lambda: machine)
    return run_deploy(parse_arguments(["deploy", *arguments]))


def test_the_next_steps(
    machine: FakeMachine,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(machine, monkeypatch, "apply", *LOOPBACK) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "done: the service is ready",
        "  URL       http://127.0.0.1:8080",
        "  settings  /etc/xetserve/xetserve.toml; after a change: xetserve deploy apply",
        "  logs      docker logs --tail=100 --follow xetserve",
    ]


def test_json_for_programs(
    machine: FakeMachine,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each action prints one object, and its progress elsewhere."""
    flags = ("--image", "x:1.0", "--json")
    changed = []
    for action in ("plan", "apply", "plan", "apply"):
        assert run(machine, monkeypatch, action, "--target", "docker", *flags) == 0
        printed, progress = capsys.readouterr()
        found = json.loads(printed)
        changed.append(found["changed"])
        assert bool(found["steps"]) == found["changed"]
        assert bool(progress) == (found["changed"] and action == "apply")
        if action == "apply":
            assert found["url"] == "http://127.0.0.1:8080"
            assert found["settings"] == "/etc/xetserve/xetserve.toml"
            assert found["ready"] == "yes"
            assert found["logs"].startswith("docker logs ")
    assert changed == [True, True, False, False]
    assert run(machine, monkeypatch, "remove", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["changed"], "url" in found) == (True, False)
    engine.is_config_bad = True
    assert run(machine, monkeypatch, "apply", "--target", "docker", *flags) == 1
    assert "unknown key" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.parametrize("action", ["apply", "status", "logs", "rollback", "remove"])
def test_podman_of_another_user(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    FakeEngine(machine)
    machine.programs = {"podman"}
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(DeployError, match="only root can deploy with podman: use sudo"):
        choose(machine, action)
    assert isinstance(choose(machine, "plan")[0], ContainerTarget)
