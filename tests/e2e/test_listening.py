"""Several addresses and both families, with workers: who is reached, and what the log has of it."""

import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import Launcher, Process, clean_environment
from tests.e2e.clients import curl, run

SERVE = ("serve", "--port", "0", "--hub-url", "http://127.0.0.1:9", "--access-log", "json")
HOSTS = ("127.0.0.1", "[::1]")


def find_url(server: Process, note: str) -> str:
    """The address of a listener that the log has with a note."""
    found = re.search(rf"(http://\S+:\d+){note}(?:,|$)", server.log, re.MULTILINE)
    assert found, server.log
    return found[1]


def ask(url: str, folder: Path) -> int:
    return run(curl(url, folder / "out")).returncode


def test_two_colons_are_both_families(launcher: Launcher, tmp_path: Path) -> None:
    own = ("--status-listen", "[::]:0", "--workers", "2")
    server = launcher.start(*SERVE, "--host", "::", *own)
    figures = find_url(server, r" \(figures\)")
    for host in HOSTS:
        assert ask(server.url.replace("[::]", host) + "/health", tmp_path) == 0
        assert ask(figures.replace("[::]", host) + "/metrics", tmp_path) == 0
    port = server.url.rpartition(":")[2]
    probe = subprocess.run(
        [sys.executable, "-m", "xetserve", "probe", "--host", "::", "--port", port],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (probe.returncode, probe.stderr) == (0, "")
    assert server.stop() == 0
    seen = re.findall(r'"peer": "([^"]*)"', server.log)
    assert set(seen) == {"127.0.0.1", "::1"}


def test_a_list_is_these_addresses_at_one_port(launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(*SERVE, "--host", "127.0.0.1,[::1],127.0.0.2")
    port = server.url.rpartition(":")[2]
    addresses = [f"http://{host}:{port}" for host in (*HOSTS, "127.0.0.2")]
    assert f"listening on {', '.join(addresses)}" in server.log
    for url in addresses:
        assert ask(f"{url}/health", tmp_path) == 0
    assert ask(f"http://127.0.0.3:{port}/health", tmp_path) == 7  # CURLE_COULDNT_CONNECT


def test_an_address_that_cannot_be_used_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", *SERVE, "--host", "127.0.0.1,2001:db8::1"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "cannot listen on [2001:db8::1]:0: " in done.stderr
    assert "choose another --host" in done.stderr
