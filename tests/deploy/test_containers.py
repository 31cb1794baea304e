"""Plans for Docker and Podman."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.deploy.fake_engine import FakeEngine
from tests.deploy.fake_machine import FakeMachine
from xetserve.deploy.applied_settings import Summary
from xetserve.deploy.container_shape import Shape, find_engine, find_flags
from xetserve.deploy.containers import ContainerTarget
from xetserve.deploy.image_build import find_revision
from xetserve.deploy.local_server import Speech
from xetserve.deploy.machine import DeployError, Done
from xetserve.deploy.package import Package
from xetserve.deploy.steps import Plan, carry_out

ONE = Package("1.0", "1.0-aaaa", "/src", {})
TWO = Package("2.0", "2.0-bbbb", "/src", {})
THREE = Package("3.0", "3.0-cccc", "/src", {})
HARDENING = [
    "--read-only",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--restart=unless-stopped",
    "--memory=512m",
    "--pids-limit=512",
]


@pytest.fixture
def machine() -> FakeMachine:
    machine = FakeMachine()
    machine.make_folder(Path("/src"), 0o755, None)
    machine.make_folder(Path("/etc"), 0o755, None)
    machine.write(Path("/src/Dockerfile.alpine"), b"FROM x", 0o644, None)
    machine.changes = 0
    return machine


@pytest.fixture
def engine(machine: FakeMachine) -> FakeEngine:
    return FakeEngine(machine)


def make(machine: FakeMachine, name: str = "docker", **changes: str) -> ContainerTarget:
    shape = replace(Shape(), **changes)  # type: ignore[arg-type]
    return ContainerTarget(machine, name, shape, template=b"# toml", env_template=b"# env")


def do(plan: Plan, machine: FakeMachine) -> list[str]:
    said: list[str] = []
    carry_out(plan, machine, said.append)
    return said


def shown(engine: FakeEngine) -> dict[str, tuple[str, bool]]:
    return {name: (each.image, each.is_running) for name, each in engine.containers.items()}


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_a_first_installation(machine: FakeMachine, engine: FakeEngine, name: str) -> None:
    target = make(machine, name)
    plan = target.plan_apply(ONE)
    assert machine.changes == 0
    assert engine.containers == {}
    said = do(plan, machine)
    assert said == [step.describe() for step in (*plan.steps, *plan.after)]
    assert shown(engine) == {"xetserve": ("xetserve:1.0-aaaa", True)}
    arguments = engine.containers["xetserve"].arguments
    assert set(HARDENING) <= set(arguments)
    assert arguments[arguments.index("--user") :][:2] == ("--user", "1000:1000")
    assert "8080:8080" in arguments
    assert arguments[-3:] == ("serve", "--config", "/etc/xetserve/xetserve.toml")
    assert machine.files["/etc/xetserve/xetserve.toml"] == b"# toml"
    assert machine.rights["/etc/xetserve/xetserve.toml"] == (0o640, "1000")
    assert machine.rights["/etc/xetserve/xetserve.env"] == (0o640, "0")
    assert engine.volumes == {"xetserve-cache"}
    (build,) = [line for line in machine.commands if f"{name} build" in line]
    assert "--file /src/Dockerfile.alpine --tag xetserve:1.0-aaaa" in build
    assert ("--format docker" in build) == (name == "podman")
    assert target.get_status()["ready"] == "yes, http://127.0.0.1:8080"


@pytest.mark.parametrize("has_probe", [True, False], ids=["probe", "an older version"])
@pytest.mark.parametrize("speech", [Speech(), Speech(tls=True), Speech(True, True)], ids=str)
def test_a_container_is_asked_in_the_way_that_it_speaks(
    machine: FakeMachine, engine: FakeEngine, speech: Speech, has_probe: bool
) -> None:
    engine.speech, engine.has_probe = speech, has_probe
    if speech.needs_header and not has_probe:
        with pytest.raises(DeployError, match="the server does not answer; rolled back"):
            do(make(machine).plan_apply(ONE), machine)
        return
    do(make(machine).plan_apply(ONE), machine)
    do(make(machine).plan_apply(TWO), machine)
    scheme = "https" if speech.tls else "http"
    target = make(machine)
    assert target.get_status()["ready"] == f"yes, {scheme}://127.0.0.1:8080"
    do(target.plan_rollback(), machine)
    assert shown(engine)["xetserve"] == ("xetserve:1.0-aaaa", True)


def test_a_port_that_is_not_published_is_not_ready(
    machine: FakeMachine, engine: FakeEngine
) -> None:
    """The server answers in its container, and clients cannot reach it."""
    engine.blocked.add(9090)
    with pytest.raises(DeployError, match="the server does not answer"):
        do(make(machine, publish="9090").plan_apply(ONE), machine)


def test_what_an_upgrade_keeps(machine: FakeMachine, engine: FakeEngine) -> None:
    assert find_flags(machine, "docker", "xetserve") is None
    shape = Shape(
        publish="127.0.0.2:9090",
        network="mine",
        memory="1g",
        config_folder=Path("/etc/mine"),
        build_arguments=("BASE=python:3.13-alpine",),
    )
    target = ContainerTarget(machine, "docker", shape, template=b"", env_template=b"")
    do(target.plan_apply(ONE), machine)
    assert Shape(**find_flags(machine, "docker", "xetserve") or {}) == shape
    del engine.containers["xetserve"].labels["io.xetserve.deploy.flags"]
    assert find_flags(machine, "docker", "xetserve") == {}  # made by an older version
    engine.containers["xetserve"].labels["io.xetserve.deploy.flags"] = '{"publish": "1"}'
    with pytest.raises(DeployError, match="not of this version"):
        find_flags(machine, "docker", "xetserve")
    engine.containers["xetserve"].labels.clear()
    assert find_flags(machine, "docker", "xetserve") is None  # somebody else's


def test_each_container_is_asked_where_it_is_published(
    machine: FakeMachine, engine: FakeEngine
) -> None:
    do(make(machine).plan_apply(ONE), machine)
    engine.broken.add("xetserve:2.0-bbbb")
    engine.is_trial_fine = True
    with pytest.raises(DeployError, match=r"9090/ready answers 503; rolled back to image"):
        do(make(machine, publish="9090").plan_apply(TWO), machine)
    engine.broken.clear()
    do(make(machine, publish="9090").plan_apply(TWO), machine)
    assert make(machine).get_status()["ready"] == "yes, http://127.0.0.1:9090"
    do(make(machine, publish="9090").plan_rollback(), machine)
    assert make(machine, publish="9090").get_status()["ready"] == "yes, http://127.0.0.1:8080"


def test_another_server_on_the_port_is_not_ours(machine: FakeMachine, engine: FakeEngine) -> None:
    do(make(machine).plan_apply(ONE), machine)
    engine.containers["other"] = engine.containers.pop("xetserve")
    assert make(machine).get_status()["ready"] == "no"


def test_a_second_time_there_is_nothing_to_do(machine: FakeMachine, engine: FakeEngine) -> None:
    do(make(machine).plan_apply(ONE), machine)
    plan = make(machine).plan_apply(ONE)
    assert (plan.steps, plan.after) == ([], [])


def test_what_it_is_made_from_counts(machine: FakeMachine, engine: FakeEngine) -> None:
    do(make(machine).plan_apply(ONE), machine)
    assert make(machine, memory="1g").plan_apply(ONE).steps
    assert make(machine, publish="127.0.0.1:8080").plan_apply(ONE).steps
    machine.write(Path("/etc/xetserve/xetserve.env"), b"XETSERVE_WORKERS=2", 0o640, "0")
    assert make(machine).plan_apply(ONE).steps
    do(make(machine).plan_apply(ONE), machine)
    assert make(machine).plan_apply(ONE).steps == []
    engine.containers["xetserve"].is_running = False
    assert make(machine).plan_apply(ONE).steps


def test_a_ready_image_is_pulled_and_noticed_when_it_is_another(
    machine: FakeMachine, engine: FakeEngine
) -> None:
    target = make(machine, image="hub.example/xetserve:latest")
    do(target.plan_apply(None), machine)
    assert "docker pull hub.example/xetserve:latest" in machine.commands
    assert target.plan_apply(None).steps == []
    container = engine.containers["xetserve"]
    container.number = "other"  # what its tag was then
    assert target.plan_apply(None).steps


DOCKERFILE = b"ARG BASE=python:3.13-alpine\nARG BUILD_BASE=${BASE}\nFROM ${BUILD_BASE} AS build\n"


@pytest.mark.parametrize("change", ["Dockerfile", "argument", "base", "older version"])
def test_what_an_image_is_built_from_counts(
    machine: FakeMachine, engine: FakeEngine, change: str
) -> None:
    machine.files["/src/Dockerfile.alpine"] = DOCKERFILE
    do(make(machine).plan_apply(ONE), machine)
    assert machine.commands.count("docker pull python:3.13-alpine") == 1
    assert make(machine).plan_apply(ONE).steps == []
    before = engine.containers["xetserve"].number
    arguments: tuple[str, ...] = ()
    reason = "the Dockerfile or the build arguments have changed"
    if change == "Dockerfile":
        machine.files["/src/Dockerfile.alpine"] = DOCKERFILE + b"# other"
    elif change == "argument":
        arguments = ("BASE=x",)
    elif change == "base":
        engine.images["python:3.13-alpine"] = "newer"
        reason = "the base image python:3.13-alpine has changed"
    else:
        engine.image_labels["xetserve:1.0-aaaa"].clear()
    shape = Shape(build_arguments=arguments)
    target = ContainerTarget(machine, "docker", shape, template=b"", env_template=b"")
    plan = target.plan_apply(ONE)
    assert plan.notes == [f"the image is built again: {reason}"]
    do(plan, machine)
    assert engine.containers["xetserve"].number != before
    assert engine.containers["xetserve-previous"].number == before
    assert target.plan_apply(ONE).steps == []
    del engine.images["x" if arguments else "python:3.13-alpine"]  # `docker image prune`
    assert target.plan_apply(ONE).steps == []


@pytest.mark.parametrize("image", ["", "x/y:1.0"])
def test_an_image_can_be_made_anew(machine: FakeMachine, engine: FakeEngine, image: str) -> None:
    package = None if image else ONE
    do(make(machine, image=image).plan_apply(package), machine)
    assert make(machine, image=image).plan_apply(package).steps == []
    shape = Shape(image=image, is_new=True)
    target = ContainerTarget(machine, "docker", shape, template=b"", env_template=b"")
    machine.commands.clear()
    do(target.plan_apply(package), machine)
    expected = "docker pull x/y:1.0" if image else "docker build --file /src/Dockerfile.alpine"
    (done,) = [line for line in machine.commands if line.startswith(expected)]
    assert ("--no-cache" in done) == (not image)
    assert "docker stop --time=45 xetserve" in machine.commands


def test_the_revision_of_an_image(machine: FakeMachine, engine: FakeEngine) -> None:
    done = [Done(0, "c0ffee-dirty\n", ""), Done(128, "", "fatal: detected dubious ownership")]
    machine.handlers.insert(0, lambda command: done.pop(0) if command[0] == "git" else None)
    assert find_revision(machine, "/src") == "unknown"  # no git
    machine.programs.add("git")
    do(make(machine).plan_apply(ONE), machine)
    (build,) = [line for line in machine.commands if "docker build" in line]
    assert " --build-arg REVISION=c0ffee-dirty " in build
    assert find_revision(machine, "/src") == "unknown"
    assert make(machine).plan_apply(ONE).steps == []  # without a look at the commit


def summarize(content: bytes) -> Summary:
    return Summary(content.decode(), content.decode().partition(" live")[0])


def test_settings_that_a_reload_can_change(machine: FakeMachine, engine: FakeEngine) -> None:
    target = ContainerTarget(
        machine, "docker", Shape(), template=b"", env_template=b"", summarize=summarize
    )
    do(target.plan_apply(ONE), machine)
    number = len(machine.commands)
    config = Path("/etc/xetserve/xetserve.toml")
    machine.write(config, b" live", 0o640, None)
    plan = target.plan_apply(ONE)
    assert plan.notes == ["settings changed: reload"]
    assert machine.files["/etc/xetserve/.xetserve.applied"] == b'["", ""]'
    engine.is_config_bad = True
    with pytest.raises(DeployError, match="unknown key; nothing has changed for clients"):
        do(plan, machine)
    engine.is_config_bad = False
    do(target.plan_apply(ONE), machine)
    changing = ("build", "create", "start", "stop", "kill")
    done = [line for line in machine.commands[number:] if line.split()[1] in changing]
    assert done == ["docker kill --signal=HUP xetserve"]
    assert target.plan_apply(ONE).steps == []
    machine.write(config, b"fixed live", 0o640, None)
    plan = target.plan_apply(ONE)
    assert plan.notes[0].startswith("settings changed: restart")
    do(plan, machine)
    assert set(engine.containers) == {"xetserve", "xetserve-previous"}
    assert target.plan_apply(ONE).steps == []
    machine.write(config, b"other", 0o640, None)
    assert target.plan_apply(ONE).steps
    engine.containers["xetserve"].started = "2999-01-01T00:00:00.123456789Z"  # `docker restart`
    assert target.plan_apply(ONE).steps == []
    do(target.plan_remove(purge=False), machine)
    assert machine.list_folder(Path("/etc/xetserve")) == ["xetserve.env", "xetserve.toml"]


def test_an_upgrade_and_back_and_forth(machine: FakeMachine, engine: FakeEngine) -> None:
    target = make(machine)
    do(target.plan_apply(ONE), machine)
    with pytest.raises(DeployError, match="no previous container"):
        target.plan_rollback()
    for package in (TWO, THREE):
        do(target.plan_apply(package), machine)
    two, three = "xetserve:2.0-bbbb", "xetserve:3.0-cccc"
    assert set(engine.images) == {two, three}  # the first one is not needed any more
    assert shown(engine) == {"xetserve": (three, True), "xetserve-previous": (two, False)}
    do(target.plan_rollback(), machine)
    assert shown(engine) == {"xetserve": (two, True), "xetserve-previous": (three, False)}
    do(target.plan_rollback(), machine)
    assert shown(engine) == {"xetserve": (three, True), "xetserve-previous": (two, False)}


def test_a_broken_upgrade_goes_back_by_itself(machine: FakeMachine, engine: FakeEngine) -> None:
    target = make(machine)
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    before = shown(engine)
    engine.broken.add("xetserve:3.0-cccc")
    engine.is_trial_fine = True
    with pytest.raises(DeployError, match=r"answers 503; rolled back to image xetserve:2\.0-bbbb"):
        do(target.plan_apply(THREE), machine)
    assert shown(engine) == before
    lines = machine.commands  # what it has to say is asked for while it is there
    assert lines.index("docker logs --tail=10 xetserve-next") < lines.index(
        "docker rm --force xetserve-next"
    )


@pytest.mark.parametrize("ends", [False, True])
def test_a_broken_version_is_tried_beside_the_running_one(
    machine: FakeMachine, engine: FakeEngine, ends: bool
) -> None:
    target = make(machine)
    do(target.plan_apply(ONE), machine)
    before = shown(engine)
    engine.broken.add("xetserve:2.0-bbbb")
    engine.ends = ends
    number, machine.waited = len(machine.commands), 0.0
    reason = r"xetserve-trial has exited with status 3: xetserve: said" if ends else "answers 503"
    with pytest.raises(DeployError, match=f"{reason}; nothing has changed for clients"):
        do(target.plan_apply(TWO), machine)
    assert (machine.waited == 0) == ends, "one that has ended is not waited for"
    assert shown(engine) == before
    done = machine.commands[number:]
    assert not any(line.startswith("docker stop") for line in done)
    (create,) = [line for line in done if "create --name xetserve-trial" in line]
    assert "--publish" not in create
    assert "--restart" not in create
    assert "--volume xetserve-cache:/var/cache/xetserve" in create


def test_what_cannot_be_tried(machine: FakeMachine, engine: FakeEngine) -> None:
    """A first version stops nothing, and on the network of the host, the ports are taken."""
    plan = make(machine).plan_apply(ONE)
    assert not any("trial" in step.describe() for step in plan.steps)
    do(plan, machine)
    shape = Shape(network="host")
    target = ContainerTarget(machine, "docker", shape, template=b"", env_template=b"")
    assert not any("trial" in step.describe() for step in target.plan_apply(TWO).steps)
    do(make(machine).plan_apply(TWO), machine)
    assert set(shown(engine)) == {"xetserve", "xetserve-previous"}


def test_a_broken_rollback_too(machine: FakeMachine, engine: FakeEngine) -> None:
    target = make(machine)
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    before = shown(engine)
    engine.broken.add("xetserve:1.0-aaaa")
    with pytest.raises(DeployError, match="rolled back to the container that ran"):
        do(target.plan_rollback(), machine)
    assert shown(engine) == before


@pytest.mark.parametrize("had_settings", [False, True])
@pytest.mark.parametrize("fault", ["not ready", "bad configuration"])
def test_a_first_installation_that_fails_leaves_nothing(
    machine: FakeMachine, engine: FakeEngine, fault: str, had_settings: bool
) -> None:
    machine.make_folder(Path("/run/systemd/system"), 0o755, None)
    machine.make_folder(Path("/etc/systemd/system"), 0o755, None)
    if had_settings:
        machine.make_folder(Path("/etc/xetserve"), 0o750, None)
        machine.write(Path("/etc/xetserve/xetserve.toml"), b"mine", 0o640, None)
    before = dict(machine.files)
    if fault == "not ready":
        engine.broken.add("xetserve:1.0-aaaa")
    engine.is_config_bad = fault != "not ready"
    with pytest.raises(DeployError, match=r"without xetserve|nothing has changed for clients"):
        do(make(machine, "podman").plan_apply(ONE), machine)
    assert (engine.containers, engine.images, engine.labelled) == ({}, {}, {})
    assert engine.volumes == set()
    assert engine.enabled == set()
    assert machine.files == before


def test_what_an_apply_of_today_adds_to_an_older_one(
    machine: FakeMachine, engine: FakeEngine
) -> None:
    """Podman starts no container with the machine; a unit does, also for one that runs already."""
    target = make(machine, "podman")
    plan = target.plan_apply(ONE)
    assert plan.notes == ["there is no systemd to start the container after a reboot"]
    do(plan, machine)
    machine.make_folder(Path("/run/systemd/system"), 0o755, None)
    machine.make_folder(Path("/etc/systemd/system"), 0o755, None)
    machine.commands.clear()
    do(target.plan_apply(ONE), machine)
    unit = "container-xetserve.service"
    assert [line for line in machine.commands if "systemctl" in line and "is-" not in line] == [
        "systemctl daemon-reload",
        f"systemctl enable {unit}",
        f"systemctl start {unit}",
    ]
    assert not any("podman stop" in line for line in machine.commands)
    content = machine.read(Path("/etc/systemd/system", unit)) or b""
    assert b"\nExecStart=/usr/bin/podman start xetserve\n" in content
    plan = target.plan_apply(ONE)
    assert (plan.steps, plan.after, plan.notes) == ([], [], [])
    assert make(machine, "docker").plan_apply(ONE).steps == []
    do(target.plan_remove(purge=True), machine)
    assert (engine.enabled, machine.list_folder(Path("/etc/systemd/system"))) == (set(), [])


def test_a_bad_configuration_stops_nobody(machine: FakeMachine, engine: FakeEngine) -> None:
    do(make(machine).plan_apply(ONE), machine)
    before = shown(engine)
    engine.is_config_bad = True
    with pytest.raises(DeployError, match="unknown key; nothing has changed for clients"):
        do(make(machine).plan_apply(TWO), machine)
    assert shown(engine) == before
    assert not any(" stop " in line for line in machine.commands)


def test_what_was_interrupted_is_cleared_away(machine: FakeMachine, engine: FakeEngine) -> None:
    do(make(machine).plan_apply(ONE), machine)
    engine.containers["xetserve-next"] = replace(engine.containers["xetserve"], is_running=False)
    do(make(machine).plan_apply(TWO), machine)
    assert shown(engine)["xetserve"] == ("xetserve:2.0-bbbb", True)
    assert "xetserve-next" not in engine.containers


@pytest.mark.parametrize("purge", [False, True])
def test_removing_leaves_nothing(machine: FakeMachine, engine: FakeEngine, purge: bool) -> None:
    target = make(machine)
    do(target.plan_apply(ONE), machine)
    do(target.plan_apply(TWO), machine)
    do(target.plan_remove(purge=purge), machine)
    assert (engine.containers, engine.labelled) == ({}, {})
    assert engine.volumes == (set() if purge else {"xetserve-cache"})
    assert machine.exists(Path("/etc/xetserve")) == (not purge)
    assert target.plan_remove(purge=purge).steps == []


def test_the_hosts_network_needs_no_port(machine: FakeMachine, engine: FakeEngine) -> None:
    target = make(machine, network="host", publish="9000")
    plan = target.plan_apply(ONE)
    (created,) = [step.describe() for step in plan.steps if " create --name" in step.describe()]
    assert "--publish" not in created
    assert "--env XETSERVE_PORT=9000" in created


def test_another_server_on_the_port_of_the_host(machine: FakeMachine, engine: FakeEngine) -> None:
    """Its answers would be taken for those of the container, which cannot listen."""
    do(make(machine, publish="9090").plan_apply(ONE), machine)
    engine.containers["other"] = engine.containers.pop("xetserve")
    with pytest.raises(DeployError, match=r"answers at http://127.0.0.1:9090: .* \(--publish\)"):
        do(make(machine, network="host", publish="9090").plan_apply(TWO), machine)
    assert set(engine.containers) == {"other"}


@pytest.mark.parametrize("publish", ["", "x", "0", "70000", "1.2.3.4", "localhost:80", "80:80"])
def test_a_port_that_is_none(machine: FakeMachine, publish: str) -> None:
    with pytest.raises(DeployError, match="--publish must be"):
        make(machine, publish=publish)


def test_without_anything_to_build_from(machine: FakeMachine, engine: FakeEngine) -> None:
    with pytest.raises(DeployError, match="name an image"):
        make(machine).plan_apply(None)
    with pytest.raises(DeployError, match=r"Dockerfile\.alpine does not exist"):
        make(machine).plan_apply(replace(ONE, requirement="/other"))


def test_where_there_is_no_engine() -> None:
    machine = FakeMachine()
    assert find_engine(machine, "docker") is None
    machine.handlers.append(lambda _: Done(1, "", "Cannot connect\nIs the daemon running?"))
    assert find_engine(machine, "podman") == "podman does not work: Is the daemon running?"
    machine.programs.clear()
    assert find_engine(machine, "docker") == "docker is not installed"
