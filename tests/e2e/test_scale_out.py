"""Three servers behind HAProxy and behind nginx, with the configurations that are shipped."""

import http.client
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.balancers import CONFIGURATIONS, PROXY, SECRET, Balancers, find_port
from tests.e2e.clients import TIMEOUT, answer_of, curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import run_script, start_origin, write_files
from tests.peers import Certificates
from tests.waiting import wait_until

CLIENT = "127.0.0.5"
REPO = "tester/fleet"
NUM_FILES = 60
WAYS = ("status", "string")
BIG = "big.bin"


def make_files() -> dict[str, bytes]:
    """Small files with names of all kinds, and one that takes a while."""
    source = random.Random(86)
    files = {f"d {n % 3}/größe-{n}.bin": source.randbytes(9_000 + n) for n in range(NUM_FILES)}
    return {**files, BIG: source.randbytes(30_000_000)}


@dataclass(frozen=True)
class Origin:
    url: str
    files: dict[str, bytes]
    folder: Path


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    base = tmp_path_factory.mktemp("fleet")
    files = make_files()
    write_files(base / "files", files)
    launched = Launcher(base)
    try:
        imported = f"{REPO}={base / 'files'}"
        folder = base / "origin"
        yield Origin(start_origin(launched, folder, "--import", imported).url, files, folder)
    finally:
        launched.stop_all()


@dataclass
class Fleet:
    """Three servers, each at a port of its own; what they have logged before they were started
    again is kept.
    """

    origin: Origin
    launcher: Launcher
    ports: list[int]
    members: list[Process] = field(default_factory=list)
    past: dict[int, list[Process]] = field(default_factory=dict)
    url: str = ""
    hub: Process | None = None
    more: tuple[str, ...] = ()
    caches: Path | None = None

    def start(self, number: int) -> None:
        """Start a server, or start it again."""
        flags = ("--port", str(self.ports[number]), "--trusted-proxies", PROXY, "--allow-anonymous")
        more = ("--drain-delay", "2", "--access-log", "json", "--xet-mode", "native")
        caches = ("--cache-dir", str(self.caches / str(number))) if self.caches else ()
        room = ("--cache-min-free", "0")
        arguments = serve_arguments(self.origin.url, *flags, *more, *caches, *room, *self.more)
        process = self.launcher.start(*arguments, **SECRET)
        if number == len(self.members):
            self.members.append(process)
        else:
            self.past.setdefault(number, []).append(self.members[number])
            self.members[number] = process

    def kill(self, number: int) -> None:
        self.members[number].popen.send_signal(signal.SIGKILL)
        self.members[number].popen.wait()

    def lines(self, number: int) -> list[dict[str, object]]:
        """The access log of a server, from its first start on."""
        logs = [process.log for process in (*self.past.get(number, ()), self.members[number])]
        lines = "".join(logs).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def places(self, agent: str, expected: int, status: int = 200) -> dict[str, int]:
        """Path -> the server that answered it, for the requests of a user agent."""
        found: dict[str, int] = {}

        def look() -> bool:
            found.clear()
            for number in range(len(self.members)):
                for line in self.lines(number):
                    if line["user_agent"] == agent and line["status"] == status:
                        found[str(line["path"])] = number
            return len(found) >= expected

        wait_until(look)
        assert len(found) == expected
        return found

    def wait_for_checks(self) -> None:
        """Wait until a balancer has seen what each server answers to checks since its start."""
        for member in self.members:
            wait_until(lambda: member.log.count('"path": "/ready"') >= 3)  # noqa: B023 - waits here

    def who_answered(self, agent: str) -> list[int]:
        """The servers that answered a user agent, one for each request."""
        return [n for n in range(3) for line in self.lines(n) if line["user_agent"] == agent]

    def has_served(self, number: int) -> bool:
        """Tell whether a server has answered a download since it was last started."""
        return '"path": "/download/' in self.members[number].log

    def lose_hub(self) -> None:
        """Start all servers again without their Hub, and wait until the balancer has seen it."""
        assert self.hub is not None
        self.hub.stop()
        for number, member in enumerate(self.members):
            member.stop()
            self.start(number)
        self.wait_for_checks()

    def get(self, path: str, agent: str, **fields: str) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
        try:
            connection.request("GET", path, headers={"User-Agent": agent, **fields})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get_all(self, agent: str) -> dict[str, int]:
        """Download all small files; path in the repository -> the server that answered."""
        for name, content in self.origin.files.items():
            if name != BIG:
                status, body = self.get(f"/download/{REPO}/{quote(name)}", agent)
                assert (status, body == content) == (200, True), name
        return self.find_places(agent, NUM_FILES)

    def find_places(self, agent: str, expected: int, status: int = 200) -> dict[str, int]:
        """Path in the repository -> the server that answered it."""
        found = self.places(agent, expected, status)
        return {path.removeprefix(f"/download/{REPO}/"): n for path, n in found.items()}


@pytest.fixture
def members(origin: Origin, launcher: Launcher) -> Iterator[Fleet]:
    """Three servers, with nobody in front of them."""
    fleet = Fleet(origin, launcher, [find_port() for _ in range(3)])
    for number in range(3):
        fleet.start(number)
    yield fleet
    for process in launcher.running:
        process.popen.terminate()
    for process in launcher.running:
        process.stop()  # the second SIGTERM spares the delay
        assert "Traceback" not in process.log


@pytest.fixture(params=["haproxy", "nginx"])
def fleet(members: Fleet, balancers: Balancers, request: pytest.FixtureRequest) -> Fleet:
    start = balancers.start_haproxy if request.param == "haproxy" else balancers.start_nginx
    members.url = start(members.ports)
    return members


def test_every_file_has_its_server_and_a_death_moves_no_other(fleet: Fleet) -> None:
    before = fleet.get_all("first")
    assert min(Counter(before.values())[number] for number in range(3)) >= NUM_FILES // 10
    assert fleet.get_all("second") == before
    fleet.kill(1)
    after = fleet.get_all("third")  # at once: nobody has noticed yet
    assert {name for name, n in after.items() if n != before[name]} == {
        name for name, n in before.items() if n == 1
    }
    assert {n for name, n in after.items() if before[name] == 1} == {0, 2}
    fleet.start(1)
    number = iter(range(10_000))
    wait_until(lambda: fleet.get_all(f"again {next(number)}") == before)


@pytest.fixture
def start_fleet(
    tmp_path: Path, launcher: Launcher, origin: Origin, balancers: Balancers
) -> Iterator[Callable[..., Fleet]]:
    """Start three servers with caches behind HAProxy, and an origin that can be stopped."""
    folder = tmp_path / "origin"

    def start(*more: str, edit: Callable[[str], str] = str) -> Fleet:
        shutil.copytree(origin.folder, folder)
        hub = start_origin(launcher, folder)
        fleet = Fleet(replace(origin, url=hub.url), launcher, [find_port() for _ in range(3)])
        fleet.more = ("--drain-delay", "0", *more)
        fleet.hub, fleet.caches = hub, tmp_path / "caches"
        for number in range(3):
            fleet.start(number)
        fleet.url = balancers.start_haproxy(fleet.ports, edit)
        return fleet

    yield start
    for process in launcher.running:
        process.stop()
        assert "Traceback" not in process.log


def test_a_fleet_without_its_hub_serves_what_it_has_stored(
    start_fleet: Callable[..., Fleet],
) -> None:
    fleet = start_fleet()
    before = fleet.get_all("before")
    fleet.lose_hub()
    assert fleet.get_all("after") == before
    status, body = fleet.get("/ready", "x")
    assert (status, json.loads(body)["status"], json.loads(body)["cause"]) == (
        200,
        "degraded",
        "hub",
    )


def test_a_fleet_of_which_no_server_is_ready_answers_for_itself(
    start_fleet: Callable[..., Fleet],
) -> None:
    """Without checks then; a server that is gone is passed over."""
    fleet = start_fleet("--stale-for", "0", "--upstream-timeout", "1")
    before = fleet.get_all("before")
    fleet.caches = None
    fleet.lose_hub()
    names = list(before)[:6]
    for name in names:
        status, body = fleet.get(f"/download/{REPO}/{name}", "after")
        assert (status, "the Hub" in json.loads(body)["error"]) == (502, True), (status, body)
    asked = fleet.find_places("after", len(names), 502)
    assert asked == {name: before[name] for name in names}
    status, body = fleet.get("/ready", "x")
    assert (status, json.loads(body)["status"]) == (503, "unready")
    fleet.kill(before[names[0]])
    assert fleet.get("/health", "x")[0] == 200
    assert fleet.get(f"/download/{REPO}/{names[0]}", "again")[0] == 502


def test_a_full_disk_empties_no_fleet(start_fleet: Callable[..., Fleet]) -> None:
    fleet = start_fleet("--cache-min-free", "1000TB")
    fleet.wait_for_checks()
    fleet.get_all("all")
    status, body = fleet.get("/ready", "x")
    assert (status, json.loads(body)["status"], json.loads(body)["cause"]) == (
        200,
        "degraded",
        "cache",
    )


def test_files_of_one_that_alone_has_lost_its_hub_can_move(
    start_fleet: Callable[..., Fleet],
) -> None:
    """By the line of the chapter."""
    chapter = (CONFIGURATIONS.parents[1] / "docs/scaling.md").read_text()
    old, new = (re.search(rf"`(http-check expect {kind} .*)`", chapter) for kind in WAYS)
    assert old is not None
    assert new is not None
    fleet = start_fleet(edit=lambda text: text.replace(old[1], new[1]))
    before = fleet.get_all("before")
    fleet.origin = replace(fleet.origin, url="http://127.0.0.1:9")
    fleet.members[1].stop()
    fleet.start(1)
    fleet.wait_for_checks()
    after = fleet.get_all("after")
    assert 1 not in after.values()
    assert all(after[name] == number for name, number in before.items() if number != 1)


def test_all_urls_of_a_file_lead_to_one_server(fleet: Fleet) -> None:
    for number, name in enumerate(list(fleet.origin.files)[:8]):
        agent = f"file {number}"
        path = quote(name)
        for target in (
            f"/download/{REPO}/{path}",
            f"/download/{REPO}/{path}?revision=main&type=model",
            f"/download/{REPO}/{path.replace('%C3%B6', '%c3%b6').replace('d', '%64', 1)}",
            f"/{REPO}/resolve/main/{path}",
            f"/{REPO}/resolve/refs%2Fheads%2Fmain/{path}",
            f"/{REPO}/resolve/refs/heads/main/{path}",
        ):
            status, body = fleet.get(target, agent)
            assert status in (200, 404)  # 404: only one of the last two need be a name of main
            assert status == 404 or body == fleet.origin.files[name]
        wait_until(lambda: len(fleet.who_answered(agent)) == 6)  # noqa: B023 - waits here
        assert len(set(fleet.who_answered(agent))) == 1, name


class Load:
    """Clients that download small files one after the other until they are told to stop."""

    def __init__(self, fleet: Fleet, count: int) -> None:
        self.failures: list[str] = []
        self.num_done = 0
        self._fleet = fleet
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        source = random.Random(number)
        names = [name for name in self._fleet.origin.files if name != BIG]
        while not self._over.is_set():
            name = source.choice(names)
            try:
                answer = self._fleet.get(f"/download/{REPO}/{quote(name)}", "load")
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
            else:
                if answer != (200, self._fleet.origin.files[name]):
                    self.failures.append(f"{answer[0]}: {answer[1][:200]!r}")
            self.num_done += 1

    def wait_for(self, count: int) -> None:
        """Wait for some more downloads."""
        goal = self.num_done + count
        wait_until(lambda: self.num_done >= goal)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_rolling_restart_loses_no_download(fleet: Fleet, tmp_path: Path) -> None:
    load = Load(fleet, 4)
    try:
        load.wait_for(20)
        for number in range(3):
            target = tmp_path / f"slow-{number}"
            slow = curl(f"{fleet.url}/download/{REPO}/{BIG}", target, "--limit-rate", "8M")
            with subprocess.Popen(slow, stderr=subprocess.PIPE, text=True) as popen:
                load.wait_for(20)
                assert fleet.members[number].stop() == 0
                load.wait_for(20)
                fleet.start(number)
                wait_until(lambda: fleet.has_served(number))  # noqa: B023 - waits here
                _, errors = popen.communicate(timeout=TIMEOUT)
            assert (popen.returncode, errors) == (0, "")
            assert target.read_bytes() == fleet.origin.files[BIG]
    finally:
        load.stop()
    assert load.failures == []
    assert len(fleet.past) == 3


def test_what_a_death_cuts_can_be_resumed(fleet: Fleet, tmp_path: Path) -> None:
    """Bodies that have begun are cut, visibly; nothing else fails."""
    target = tmp_path / "out"
    url = f"{fleet.url}/download/{REPO}/{BIG}"
    assert run(curl(url, target, "-r", "0-9", "-A", "probe")).returncode == 0
    wait_until(lambda: len(fleet.who_answered("probe")) == 1)
    (victim,) = fleet.who_answered("probe")
    load = Load(fleet, 2)
    try:
        command = curl(url, target, "--limit-rate", "6M")
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as popen:
            wait_until(lambda: target.exists() and target.stat().st_size > 1_000_000)
            fleet.kill(victim)
            popen.communicate(timeout=TIMEOUT)
        assert popen.returncode in (18, 56), popen.returncode
        assert 0 < target.stat().st_size < len(fleet.origin.files[BIG])
        done = run(curl(url, target, "-C", "-"))
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == fleet.origin.files[BIG]
        load.wait_for(20)
    finally:
        load.stop()
    # Small files may have been on their way, too: one for each client of the load at most.
    assert len(load.failures) <= 2


def test_native_clients_bring_to_one_what_another_has_signed(fleet: Fleet, tmp_path: Path) -> None:
    script = f"snapshot_download({REPO!r}, local_dir={str(tmp_path / 'model')!r})"
    run_script(sys.executable, fleet.url, tmp_path / "home", script)
    for name, content in fleet.origin.files.items():
        assert (tmp_path / "model" / name).read_bytes() == content
    logs = [fleet.members[number].log for number in range(3)]
    tokens, data = (
        {n for n, log in enumerate(logs) if f'"path": "{start}' in log}
        for start in (f"/api/models/{REPO}/xet-read-token/", "/v")
    )
    assert tokens
    assert len(data) > 1  # reconstructions were asked of several
    assert any('"path": "/xorbs/' in log for log in logs)


def test_long_heads_pass(fleet: Fleet) -> None:
    """A token for the CAS may be of 24 KiB."""
    target = f"/v1/reconstructions/{'1' * 64}"
    status, body = fleet.get(target, "x", Authorization=f"Bearer {'t' * 24_000}")
    assert (status, json.loads(body)) == (
        401,
        {"error": "the access token was not issued by this server: get a new one"},
    )
    grant = f"/xorbs/{'1' * 64}?file={'2' * 64}&grant={'g' * 7000}"
    assert fleet.get(grant, "x")[0] == 409


@pytest.mark.parametrize(
    "path", ["/metrics", "/status?x=1", "/operator", "/%6detrics", "/status/", "//metrics"]
)
def test_figures_are_kept_from_the_public(fleet: Fleet, path: str) -> None:
    status, body = fleet.get(path, "x")
    assert (status, json.loads(body)) == (404, {"error": "figures are not published here"})
    assert fleet.get("/health", "x")[0] == 200


def test_the_balancer_says_who_the_client_is(fleet: Fleet, tmp_path: Path) -> None:
    lies = ("-H", "X-Forwarded-For: 198.51.100.1", "-H", "X-Forwarded-Proto: https")
    more = ("-H", "X-Forwarded-Host: evil.example", "-H", "Forwarded: for=198.51.100.2")
    answer = answer_of(f"{fleet.url}/", tmp_path, "--interface", CLIENT, "-A", "me", *lies, *more)
    assert f"{fleet.url}/download/" in answer[2].decode()
    wait_until(lambda: len(fleet.who_answered("me")) == 1)
    peers = [ln["peer"] for n in range(3) for ln in fleet.lines(n) if ln["user_agent"] == "me"]
    assert peers == [CLIENT]


def test_tls_ends_at_haproxy(
    members: Fleet,
    balancers: Balancers,
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    pem, port = tmp_path / "both.pem", find_port()
    pem.write_text(certificates.chain.read_text() + certificates.key.read_text())

    def edit(text: str) -> str:
        text = text.replace("LB_BIND_TLS-:8443", f"NOT_SET-127.0.0.1:{port}")
        text = text.replace("LB_PEM-/usr/local/etc/haproxy/xetserve.pem", f"NOT_SET-{pem}")
        return re.sub(r"#(bind .* ssl )", r"\1", text)

    balancers.start_haproxy(members.ports, edit)
    trust = ("--cacert", str(certificates.ca))
    base = f"https://localhost:{port}"
    assert f"{base}/download/" in answer_of(f"{base}/", tmp_path, *trust)[2].decode()
    done = run(curl(f"{base}/download/{REPO}/{BIG}", tmp_path / "out", *trust))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_bytes() == members.origin.files[BIG]
