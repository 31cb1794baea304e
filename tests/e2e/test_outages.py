"""Upstreams that are gone for a while: what the log says, and downloads that survive it."""

import re
import subprocess
import time
from pathlib import Path

from tests.conftest import Launcher, OriginControl, Process, sha256_of
from tests.e2e.clients import curl, run
from tests.e2e.conftest import REPO, Uploaded, serve_arguments
from tests.e2e.hub import start_origin
from tests.waiting import wait_until

NAME = "random.bin"


def port_of(origin: Process) -> int:
    """The port of an origin, to start another one there."""
    return int(origin.url.rpartition(":")[2])


def download(server: Process, target: Path, name: str = NAME) -> str:
    """The status of a download."""
    return run(curl(f"{server.url}/download/{REPO}/{name}", target, "-w", "%{http_code}")).stdout


def lines_about(server: Process, text: str) -> list[str]:
    return [line for line in server.log.splitlines() if text in line]


def test_the_log_tells_when_the_hub_goes_and_comes_back(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path
) -> None:
    origin = start_origin(launcher, uploaded.origin_folder)
    arguments = serve_arguments(origin.url, "--upstream-timeout", "1")
    arguments[arguments.index("debug")] = "info"
    server = launcher.start(*arguments)
    wait_until(lambda: lines_about(server, "the Hub answers"))
    origin.stop()
    assert [download(server, tmp_path / "out") for _ in range(3)] == ["502"] * 3
    late = launcher.start(*arguments)
    wait_until(lambda: lines_about(late, "the Hub does not answer: "))
    start_origin(launcher, uploaded.origin_folder, port=port_of(origin))
    assert [download(server, tmp_path / "out") for _ in range(3)] == ["200"] * 3
    told = [
        line for line in server.log.splitlines() if " WARNING " in line and "the Hub at" in line
    ]
    where = re.escape(origin.url.removeprefix("http://"))
    assert len(told) == 2
    assert re.search(rf"the Hub at {where} fails: cannot connect to 127\.0\.0\.1: ", told[0])
    assert re.search(rf"the Hub at {where} answers again, after \d+ s$", told[1])
    assert len(re.findall(r"WARNING \S+: request \S+: the Hub: cannot connect", server.log)) == 3


def test_a_download_that_has_begun_survives_an_outage(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path
) -> None:
    origin = start_origin(launcher, uploaded.origin_folder)
    server = launcher.start(*serve_arguments(origin.url, "--upstream-timeout", "1"))
    OriginControl(origin.url).set_faults(bandwidth=1_000_000)
    target = tmp_path / "out"
    command = curl(f"{server.url}/download/{REPO}/{NAME}", target)
    with subprocess.Popen(command) as client:
        wait_until(lambda: target.exists() and target.stat().st_size > 0)
        origin.stop()
        gone = time.monotonic()
        wait_until(lambda: time.monotonic() - gone > 3)
        assert client.poll() is None
        start_origin(launcher, uploaded.origin_folder, port=port_of(origin))
        assert client.wait() == 0
    assert sha256_of(target) == sha256_of(uploaded.folder / NAME)


def test_a_client_that_leaves_in_an_outage_is_noticed(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path
) -> None:
    origin = start_origin(launcher, uploaded.origin_folder)
    server = launcher.start(*serve_arguments(origin.url, "--upstream-timeout", "1"))
    OriginControl(origin.url).set_faults(bandwidth=1_000_000)
    target = tmp_path / "out"
    command = curl(f"{server.url}/download/{REPO}/{NAME}", target)
    with subprocess.Popen(command) as client:
        wait_until(lambda: target.exists() and target.stat().st_size > 0)
        origin.stop()
        client.kill()
    wait_until(lambda: lines_about(server, "xetserve.access: "))
    assert server.stop() == 0
