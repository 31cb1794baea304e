"""The access log of a real server: one line a request, in both forms, or none."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.conftest import Launcher, Process, clean_environment
from tests.e2e.clients import curl, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments
from tests.e2e.socket_activation import start_on
from tests.waiting import PATIENCE

NAME = "random.bin"


def access_lines(server: Process) -> list[str]:
    return [line for line in server.log.splitlines() if " xetserve.access: " in line]


def json_lines(server: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]


def send_raw(server: Process, data: bytes) -> bytes:
    """Send bytes on a connection of their own; gives all that comes back."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=PATIENCE) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer


def use(site: Site, server: Process, folder: Path) -> None:
    """A download, one that is refused, and a request that is none."""
    url = f"{server.url}/download/{REPO}/{NAME}"
    done = run(
        curl(url, folder / "out", "-A", 'evil "agent"\\', "-H", "X-Request-Id: from-a-proxy")
    )
    assert done.returncode == 0
    assert run(
        curl(f"{server.url}/download/{REPO}/absent?revision={TOKEN}", folder / "no")
    ).returncode
    assert b" 400 " in send_raw(server, f"GET / HTTP/1.1\r\nX {TOKEN}: y\r\n\r\n".encode())


def test_text(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--access-log", "text"))
    use(site, server, tmp_path)
    assert server.stop() == 0
    found, missing, broken = access_lines(server)
    size = (site.uploaded.folder / NAME).stat().st_size
    assert re.search(
        rf' from-a-proxy 127\.0\.0\.1 "GET /download/{REPO}/{NAME}" 200 {size} \d+\.\d{{3}} head=',
        found,
    )
    assert re.search(r" token=[0-9a-f]{8} ", found)
    assert found.endswith('"evil \\x22agent\\x22\\x5c"')
    assert f'"GET /download/{REPO}/absent?revision=***" 404 ' in missing
    assert '"- -" 400 ' in broken
    assert TOKEN not in server.log


def test_json(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--access-log", "json"))
    use(site, server, tmp_path)
    assert server.stop() == 0
    found, missing, broken = json_lines(server)
    size = (site.uploaded.folder / NAME).stat().st_size
    assert (found["id"], found["status"], found["bytes"]) == ("from-a-proxy", 200, size)
    assert (found["complete"], found["user_agent"]) == (True, 'evil "agent"\\')
    assert found["verified"] is True
    assert missing["verified"] is None
    assert (missing["path"], missing["status"]) == (f"/download/{REPO}/absent?revision=***", 404)
    assert missing["token"] == found["token"]
    assert (broken["method"], broken["status"], broken["token"]) == ("-", 400, None)
    assert access_lines(server) == []
    assert TOKEN not in server.log


def test_where_the_bytes_came_from(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    flags = (
        "--access-log",
        "json",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--cache-min-free",
        "0",
    )
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    url = f"{server.url}/download/{REPO}/{NAME}"
    for part in ((), (), ("-r", "10-1000"), ("-r", "0-9,20-29")):
        assert run(curl(url, tmp_path / "out", *part)).returncode == 0
    assert server.stop() == 0
    cold, warm, one, several = json_lines(server)
    packed = cold["upstream_bytes"]
    assert isinstance(packed, int)
    assert packed > (site.uploaded.folder / NAME).stat().st_size * 0.9
    assert (cold["cache_bytes"], cold["cache_hits"]) == (0, 0)
    assert (warm["upstream_bytes"], warm["cache_bytes"]) == (0, packed)
    assert warm["cache_hits"]
    assert [line["verified"] for line in (warm, one, several)] == [True] * 3
    assert one["cache_bytes"]
    assert several["upstream_bytes"] == 0


def test_off(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--access-log", "off"))
    use(site, server, tmp_path)
    assert server.stop() == 0
    assert (access_lines(server), json_lines(server)) == ([], [])


def test_workers_say_who_they_are(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--workers", "2"))
    assert run(curl(f"{server.url}/health", tmp_path / "out")).returncode == 0
    assert server.stop() == 0
    (line,) = access_lines(server)
    assert re.search(r" INFO \[worker [12]\] xetserve\.access: ", line)


def test_everything_is_json(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    flags = ["--log-format", "json", "--workers", "2"]
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    use(site, server, tmp_path)
    assert server.stop() == 0
    found = [json.loads(line) for line in server.log.splitlines()]
    assert {each["logger"] for each in found} >= {"xetserve", "xetserve.access"}
    assert all({"time", "level"} <= set(each) for each in found)
    assert len([each for each in found if each["logger"] == "xetserve.access"]) == 3


def test_a_client_of_ipv4_has_its_address_on_a_socket_for_both(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = sock.getsockname()[1]
        server = start_on(sock, site, launcher)
    assert run(curl(f"http://127.0.0.1:{port}/health", tmp_path / "out")).returncode == 0
    assert server.stop() == 0
    (line,) = access_lines(server)
    assert ' 127.0.0.1 "GET /health" ' in line


def test_the_journal_gets_priorities(site: Site, tmp_path: Path) -> None:
    """Standard error is a socket that JOURNAL_STREAM names, as systemd makes it."""
    ours, theirs = socket.socketpair()
    status = os.fstat(theirs.fileno())
    flags = ["--host", "127.0.0.1", "--port", "0", "--hub-url", "http://127.0.0.1:9"]
    server = subprocess.Popen(
        [sys.executable, "-m", "xetserve", "serve", *flags],
        stderr=theirs.fileno(),
        env=clean_environment(JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}"),
    )
    theirs.close()
    ours.settimeout(PATIENCE)
    lines = []
    with server, ours, ours.makefile() as journal:
        for line in journal:
            lines.append(line.rstrip())
            if found := re.search(r"listening on (http://127\S+)", line):
                assert run(curl(f"{found[1]}/health", tmp_path / "out")).returncode == 0
            if "the Hub does not answer" in line:
                server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    assert all(re.match(r"<6>INFO |<4>WARNING ", line) for line in lines)
    assert any(line.startswith("<4>WARNING xetserve") for line in lines)
    assert any(line.startswith("<6>INFO xetserve.access: ") for line in lines)
