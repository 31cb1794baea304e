"""Upstreams that are gone for a while: what the log says, and downloads that survive it."""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launcher, OriginControl, Process, clean_environment, sha256_of
from tests.e2e.clients import Connection, curl, run
from tests.e2e.conftest import REPO, TOKEN, Uploaded, serve_arguments
from tests.e2e.hub import run_script, start_origin
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
    assert len(re.findall(r"WARNING \S+: request \S+: the Hub: cannot connect", server.log)) == 1
    assert server.stop() == 0
    assert re.search(r"WARNING \S+: 2 more within 60 s, the last: request \S+: the Hub", server.log)


@dataclass
class Stand:
    """An origin of a test's own, with slow data, and an impatient server in front of it."""

    launcher: Launcher
    uploaded: Uploaded
    origin: Process
    server: Process

    @classmethod
    def start(cls, launcher: Launcher, uploaded: Uploaded, *flags: str) -> "Stand":
        origin = start_origin(launcher, uploaded.origin_folder)
        server = launcher.start(*serve_arguments(origin.url, "--upstream-timeout", "1", *flags))
        stand = cls(launcher, uploaded, origin, server)
        stand.set_faults()
        return stand

    def set_faults(self, **faults: Any) -> None:
        OriginControl(self.origin.url).set_faults(bandwidth=1_000_000, **faults)

    def have_outage(self) -> None:
        """Kill the origin, and start another one after longer than anybody waits for a head."""
        self.origin.popen.kill()
        self.origin.popen.wait()
        wait_a_while()
        self.origin = start_origin(
            self.launcher, self.uploaded.origin_folder, port=port_of(self.origin)
        )

    def assert_told(self, num_outages: int = 1) -> None:
        """Check that the log has two lines for each response, however many tries there were."""
        wait_until(lambda: len(lines_about(self.server, ": goes on after ")) == num_outages)
        assert len(lines_about(self.server, "the upstream fails, trying again for")) == num_outages
        assert not lines_about(self.server, ": cut after ")


def wait_a_while() -> None:
    """Let an outage last three times as long as the server waits for a head."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 3)


def begun(target: Path) -> bool:
    return target.exists() and target.stat().st_size > 0


def test_a_download_that_has_begun_survives_an_outage(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path
) -> None:
    stand, target = Stand.start(launcher, uploaded), tmp_path / "out"
    with subprocess.Popen(curl(f"{stand.server.url}/download/{REPO}/{NAME}", target)) as client:
        wait_until(lambda: begun(target))
        stand.have_outage()
        assert client.wait() == 0
    assert sha256_of(target) == uploaded.digests[NAME]
    stand.assert_told()


@pytest.mark.parametrize("kind", ["data", "cas", "hub"])
def test_a_download_survives_an_outage_of_one_upstream(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path, kind: str
) -> None:
    """Data hosts, the CAS, and the Hub, which gives tokens for the CAS, fail one at a time."""
    stand, target, name = Stand.start(launcher, uploaded), tmp_path / "out", "big.bin"
    short = {"token_lifetime": 1.0}  # so a token is requested for every question
    stand.set_faults(**short)
    with subprocess.Popen(curl(f"{stand.server.url}/download/{REPO}/{name}", target)) as client:
        wait_until(lambda: begun(target))
        burst = {"status": 503, "count": 10_000, "retry_after": 1}
        stand.set_faults(**short, **{f"{kind}_status_burst": burst})
        wait_until(lambda: lines_about(stand.server, "the upstream fails, trying again for"))
        assert client.poll() is None
        OriginControl(stand.origin.url).set_faults()
        assert client.wait() == 0
    assert sha256_of(target) == uploaded.digests[name]
    stand.assert_told()


# Names lead to this machine, until a file appears; then no name has an address.
RESOLVER = """
import pathlib, socket
import xetserve.app.errors, xetserve.net.connect

async def look_up(host, port):
    if pathlib.Path({flag!r}).exists():
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return ["127.0.0.1"]

xetserve.net.connect._look_up = look_up
xetserve.app.errors.HUB_CLIENT_DELAY = 1
"""


@pytest.mark.parametrize("client", ["curl", "huggingface_hub"])
def test_a_download_survives_an_outage_of_the_resolver(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path, client: str
) -> None:
    """curl waits; huggingface_hub leaves, resumes, and is told when to try again."""
    flag, folder = tmp_path / "no-names", tmp_path / "client"
    folder.mkdir()
    origin = start_origin(launcher, uploaded.origin_folder)
    flags = ("--upstream-timeout", "1", "--upstream-networks", "127.0.0.0/8")
    arguments = serve_arguments(f"http://hub.test:{port_of(origin)}", *flags)
    server = launcher.start(*arguments, code=RESOLVER.format(flag=str(flag)))
    stand = Stand(launcher, uploaded, origin, server)
    stand.set_faults()

    def get() -> Path:
        if client == "curl":
            assert download(server, folder / "out") == "200"
            return folder / "out"
        script = "print(hf_hub_download(sys.argv[1], sys.argv[2]))"
        impatience = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
        what = (script, REPO, NAME)
        return Path(run_script(sys.executable, server.url, folder, *what, **impatience))

    with ThreadPoolExecutor() as threads:
        target = threads.submit(get)
        route = "download" if client == "curl" else "resolve"
        wait_until(lambda: count_sent(server, route) > 0)
        flag.touch()
        stand.have_outage()
        stand.set_faults()
        wait_until(lambda: lines_about(server, "Temporary failure in name resolution"))
        if client == "huggingface_hub":
            wait_until(lambda: lines_about(server, f'/{NAME}" 429 '))
        flag.unlink()
        assert sha256_of(target.result()) == uploaded.digests[NAME]
    assert lines_about(server, "the upstream fails, trying again for")


def test_the_parts_of_one_body_survive_an_outage(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path
) -> None:
    stand, target = Stand.start(launcher, uploaded), tmp_path / "out"
    url = f"{stand.server.url}/download/{REPO}/{NAME}"
    wanted = "0-999999,1500000-1999999,2500000-2500009"
    with subprocess.Popen(curl(url, target, "-r", wanted)) as client:
        wait_until(lambda: begun(target))
        stand.have_outage()
        assert client.wait() == 0
    content, body = (uploaded.folder / NAME).read_bytes(), target.read_bytes()
    for first, last in re.findall(r"(\d+)-(\d+)", wanted):
        assert content[int(first) : int(last) + 1] in body
    assert body.endswith(b"--\r\n")


def test_native_ranges_survive_an_outage(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path
) -> None:
    stand = Stand.start(launcher, uploaded, "--xet-mode", "native")
    with ThreadPoolExecutor() as threads:
        script = "print(hf_hub_download(sys.argv[1], sys.argv[2]))"
        arguments = (sys.executable, stand.server.url, tmp_path / "home", script, REPO, NAME)
        client = threads.submit(run_script, *arguments)
        wait_until(lambda: lines_about(stand.server, "native: xorb"))
        wait_until(lambda: count_sent(stand.server) > 0)
        stand.have_outage()
        assert sha256_of(Path(client.result())) == uploaded.digests[NAME]
    assert lines_about(stand.server, ": goes on after ")
    assert not lines_about(stand.server, ": cut after ")


def count_sent(server: Process, route: str = "xorb") -> float:
    """The body bytes of a route that a server has sent."""
    with closing(Connection(server.url, None)) as connection:
        text = connection.ask("/metrics").body.decode()
    found = re.search(
        rf'^xetserve_sent_bytes_total\{{route="{route}"\}} (\S+)$', text, re.MULTILINE
    )
    return 0.0 if found is None else float(found[1])


def test_a_pull_survives_an_outage(uploaded: Uploaded, launcher: Launcher, tmp_path: Path) -> None:
    """One file is being read, and the next ones are not yet asked for."""
    stand = Stand.start(launcher, uploaded)
    command = [
        *(sys.executable, "-m", "xetserve", "pull", REPO, "--hub-url", stand.origin.url),
        *("--cache-dir", str(tmp_path / "cache"), "--cache-min-free", "0", "--json"),
        *("--upstream-timeout", "1", "--jobs", "1"),
        *("--include", "random.bin", "--include", "damage/*", "--include", "config.json"),
    ]
    environment = clean_environment(HF_TOKEN=TOKEN)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as client:
        control = OriginControl(stand.origin.url)
        wait_until(lambda: any(each["kind"] == "data" for each in control.requests()))
        stand.have_outage()
        assert client.stdout is not None
        summary = json.loads(client.stdout.read())
        assert client.wait() == 0, summary
    assert (summary["failed"], summary["files"]) == ([], 5)


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
