"""A server with several workers, and what its processes hold."""

import os
from dataclasses import replace
from pathlib import Path

from tests.conftest import Launcher, Process
from tests.e2e.conftest import NUM_WORKERS, Site, serve_arguments


def start_workers(site: Site, launcher: Launcher, *flags: str) -> Site:
    """Return the site with a server of several workers."""
    server = launcher.start(
        *serve_arguments(site.origin.url, "--workers", str(NUM_WORKERS), *flags)
    )
    return replace(site, server=server)


def check_server(server: Process) -> None:
    """Check that no process of a server has died, and that none has logged a traceback."""
    assert server.popen.poll() is None, "the supervisor has died"
    assert "starting it again" not in server.log
    assert "Traceback" not in server.log


def worker_pids(server: Process) -> list[int]:
    """Return the process ids of a server's workers."""
    return [
        int(pid)
        for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ]


def num_clients(pid: int, port: int) -> int:
    """Count the accepted connections to a port that a process holds."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except FileNotFoundError:  # it was closed just now
            continue
    num = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        is_ours = int(fields[1].partition(":")[2], 16) == port
        num += is_ours and fields[3] == "01" and f"socket:[{fields[9]}]" in inodes
    return num
