"""`xetserve deploy` as a process. With a real systemd: tests/systemd/boot.py --deploy."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, clean_environment
from tests.e2e.conftest import Site, serve_arguments, tls_flags
from tests.peers import Certificates
from xetserve.commands.service_settings import find_speech
from xetserve.deploy.machine import Done, RealMachine
from xetserve.deploy.systemd import SystemdTarget

# An engine that has nothing but the container it started, can do everything, and says what it was
# asked for.
ENGINE = """#!/bin/sh
echo "$@" >> "$0.log"
case "$1 $2" in
  "version "*) echo 20.10 ;;
  "start "*) : > "$0.$2" ;;
  *" inspect")
    [ -e "$0.$3" ] || exit 1
    echo '[{"State": {"Running": true, "Status": "running"}, "Config": {}}]' ;;
esac
"""


def deploy(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "deploy", *arguments],
        env={**clean_environment(XETSERVE_PORT="not for us"), "PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(ENGINE)
    program.chmod(0o755)
    return program


class Booted(RealMachine):
    """This machine, as if systemd had booted it and held the socket."""

    port = ""

    def run(self, command: tuple[str, ...]) -> Done:
        shown = {"show": f"127.0.0.1:{self.port} (Stream)\n", "is-active": "active\n"}
        return Done(0, shown.get(command[1], ""), "")


@pytest.mark.parametrize("proxies", [(), ("--trusted-proxies", "192.0.2.1", "--proxy-protocol")])
@pytest.mark.parametrize("with_tls", [False, True], ids=["plain", "TLS"])
def test_the_status_of_a_service_that_is_well(
    site: Site,
    launcher: Launcher,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_tls: bool,
    proxies: tuple[str, ...],
) -> None:
    """It is asked over what the flags in its unit say."""
    flags = (*(tls_flags(certificates) if with_tls else ()), *proxies)
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    machine = Booted()
    machine.port = str(urlsplit(server.url).port)
    shown = (
        "LoadState=loaded\nEnvironment=\nEnvironmentFiles=\n"
        f"ExecStart={{ argv[]=/opt/xetserve/bin/xetserve serve {' '.join(flags)} ; pid=1 }}\n"
    )
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(shown)}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    target = SystemdTarget(machine, template=b"", python="python", find_speech=find_speech)
    url = f"{'https' if with_tls else 'http'}://127.0.0.1:{machine.port}"
    assert target.get_status()["ready"] == f"yes, {url}"


@pytest.mark.parametrize("action", ["apply", "status", "logs", "rollback", "remove"])
def test_without_any_runtime(tmp_path: Path, action: str) -> None:
    done = deploy(tmp_path, action)
    assert done.returncode == 1
    for name in ("systemctl", "docker", "podman"):
        assert f"{name} is not installed" in done.stderr
    done = deploy(tmp_path, action, "--target", "podman")
    assert (
        done.stderr == "xetserve deploy: no target works on this machine: podman is not installed\n"
    )


def test_a_plan_can_be_looked_at_on_any_machine(tmp_path: Path) -> None:
    done = deploy(tmp_path, "plan")
    assert (done.returncode, done.stderr) == (0, "")
    assert "# for another machine, since here systemctl is not installed\n" in done.stdout
    assert "run systemctl enable xetserve.service xetserve.socket" in done.stdout
    done = deploy(tmp_path, "plan", "--target", "podman", "--image", "x/y:z")
    assert (done.returncode, done.stderr) == (0, "")
    assert "# for another machine, since here podman is not installed\n" in done.stdout
    assert "run podman pull x/y:z" in done.stdout


def test_a_plan_touches_nothing(docker: Path, tmp_path: Path) -> None:
    config = ("--config-dir", str(tmp_path / "etc"), "--image", "x/y:z", "--publish", "127.0.0.1:1")
    done = deploy(docker.parent, "plan", *config)
    assert done.returncode == 0, done.stderr
    assert f"write {tmp_path}/etc/xetserve.toml (0640, root:1000" in done.stdout
    assert "run docker pull x/y:z" in done.stdout
    assert not (tmp_path / "etc").exists()
    asked = Path(f"{docker}.log").read_text().splitlines()
    assert all(line.startswith("version ") or line.split()[1] == "inspect" for line in asked)


def test_a_container_that_is_never_ready_is_taken_away_again(docker: Path, tmp_path: Path) -> None:
    config = ("--config-dir", str(tmp_path / "etc"), "--image", "x/y:z", "--publish", "127.0.0.1:1")
    done = deploy(docker.parent, "apply", *config, "--timeout", "0.1")
    assert done.returncode == 1
    lines = Path(f"{docker}.log").read_text().splitlines()
    assert "start xetserve-next" in lines
    end = ["rm --force xetserve-next", "volume rm xetserve-cache", "image rm --force x/y:z"]
    assert lines[-3:] == end
    assert not (tmp_path / "etc").exists()
    assert "not ready after 0.1 s: the server does not answer; rolled back" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("apply", "--image", "x", "--from", "y"), 2),
        (("apply", "--image", "x", "--publish", "x"), 1),
        (("apply", "--timeout", "x"), 2),
        (("logs", "--lines", "x"), 2),
        (("rollback",), 1),
        ((), 2),
    ],
)
def test_usage(docker: Path, arguments: tuple[str, ...], status: int) -> None:
    done = deploy(docker.parent, *arguments)
    assert done.returncode == status
    assert "xetserve" in done.stderr
