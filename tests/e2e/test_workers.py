"""Several worker processes behind one port: what one does alone, and what happens when one dies."""

import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, Process, sha256_of
from tests.e2e.clients import CUT, curl, file_url, run
from tests.e2e.conftest import NUM_WORKERS, Site, environment_without_home, serve_arguments
from tests.e2e.faults import PASSING
from tests.e2e.workers import check_server, num_clients, start_workers, worker_pids
from tests.waiting import PATIENCE, wait_until

NUM_DOWNLOADS = 8
NAME = "big.bin"
READY = re.compile(r"worker (\d+) \(pid (\d+)\) is ready")


@pytest.fixture
def site(site: Site, server_with_workers: Process) -> Iterator[Site]:
    """The site with several workers."""
    yield replace(site, server=server_with_workers)
    check_server(server_with_workers)


def wait_for_end(pidfds: list[int]) -> None:
    """Wait until all these processes have ended."""
    waiting = set(pidfds)
    while waiting:
        ended, _, _ = select.select(list(waiting), [], [], PATIENCE)
        assert ended, "a process is still there"
        waiting -= set(ended)


class Downloads:
    """Downloads of one file that have all begun, at a rate that keeps them busy for a while."""

    def __init__(self, site: Site, folder: Path, num: int, rate: str) -> None:
        self.targets = [folder / f"out-{index}" for index in range(num)]
        self.digest = site.uploaded.digests[NAME]
        url = file_url(site, NAME)
        self.clients = [
            subprocess.Popen(
                curl(url, target, "--limit-rate", rate),
                env=environment_without_home(),
                stderr=subprocess.DEVNULL,
            )
            for target in self.targets
        ]
        wait_until(lambda: all(path.exists() and path.stat().st_size for path in self.targets))

    def finish(self) -> list[int]:
        """Wait for the clients; gives their statuses. Those that say 0 have the file."""
        statuses = [client.wait(timeout=60) for client in self.clients]
        for status, target in zip(statuses, self.targets, strict=True):
            assert (status == 0) == (sha256_of(target) == self.digest)
        return statuses


@pytest.mark.parametrize(
    "fault", ["data URLs refused at first", "resets", "CAS 500", "v2 answers 404"]
)
def test_passing_trouble_passes_here_too(site: Site, tmp_path: Path, fault: str) -> None:
    site.control.set_faults(**PASSING[fault])
    done = run(curl(file_url(site, "big-edited.bin"), tmp_path / "out"))
    assert done.returncode == 0, done.stderr + site.server.log[-3000:]
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["big-edited.bin"]


def test_all_workers_are_ready_before_the_address_is_told(site: Site) -> None:
    lines = site.server.log.splitlines()
    (listening,) = (index for index, line in enumerate(lines) if "listening on" in line)
    ready = READY.findall("\n".join(lines[:listening]))
    assert sorted(int(number) for number, _ in ready) == list(range(1, NUM_WORKERS + 1))
    assert {int(pid) for _, pid in ready} == set(worker_pids(site.server))


def test_a_worker_that_is_killed_costs_its_own_downloads_and_no_other(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    site = start_workers(site, launcher)
    pids = worker_pids(site.server)
    downloads = Downloads(site, tmp_path, NUM_DOWNLOADS, "25M")
    port = urlsplit(site.server.url).port
    assert port is not None
    held = {pid: num_clients(pid, port) for pid in pids}
    assert sum(held.values()) == NUM_DOWNLOADS
    victim = max(pids, key=lambda pid: held[pid])
    pidfd = os.pidfd_open(victim)
    os.kill(victim, signal.SIGKILL)
    wait_for_end([pidfd])
    os.close(pidfd)
    for _ in range(10):
        done = run(curl(file_url(site, "five-kilobytes.bin"), tmp_path / "new"))
        assert done.returncode == 0, done.stderr
        assert sha256_of(tmp_path / "new") == site.uploaded.digests["five-kilobytes.bin"]
    wait_until(lambda: len(READY.findall(site.server.log)) == NUM_WORKERS + 1)
    (number,) = (n for n, pid in READY.findall(site.server.log) if int(pid) == victim)
    assert f"worker {number} (pid {victim}) died of SIGKILL; starting it again" in site.server.log
    assert len(worker_pids(site.server)) == NUM_WORKERS
    statuses = downloads.finish()
    cut = [status for status in statuses if status]
    assert len(cut) == held[victim]
    assert set(cut) <= set(CUT)
    assert site.server.stop() == 0


def test_sigterm_lets_the_downloads_of_all_workers_finish(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    site = start_workers(site, launcher)
    downloads = Downloads(site, tmp_path, NUM_DOWNLOADS, "60M")
    site.server.popen.send_signal(signal.SIGTERM)
    # 7 is curl's "cannot connect": nobody listens while downloads go on.
    command = curl(file_url(site, "one-byte.bin"), tmp_path / "new")
    wait_until(lambda: run(command).returncode == 7)
    assert site.server.popen.poll() is None
    assert downloads.finish() == [0] * NUM_DOWNLOADS
    assert site.server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_the_whole_group_is_one_signal(
    site: Site, launcher: Launcher, tmp_path: Path, number: signal.Signals
) -> None:
    site = start_workers(site, launcher)
    downloads = Downloads(site, tmp_path, NUM_WORKERS, "60M")
    for pid in [*worker_pids(site.server), site.server.pid]:  # as systemd and Ctrl-C do
        os.kill(pid, number)
    assert downloads.finish() == [0] * NUM_WORKERS
    assert site.server.popen.wait(timeout=PATIENCE) == 0


def test_a_second_sigterm_cuts(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    site = start_workers(site, launcher)
    downloads = Downloads(site, tmp_path, NUM_DOWNLOADS, "1M")
    site.server.popen.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM: draining" in site.server.log)
    site.server.popen.send_signal(signal.SIGTERM)
    statuses = downloads.finish()
    assert set(statuses) <= set(CUT)
    assert site.server.popen.wait(timeout=PATIENCE) == 0


def test_a_supervisor_that_is_killed_leaves_no_process_behind(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    site = start_workers(site, launcher)
    downloads = Downloads(site, tmp_path, NUM_WORKERS, "60M")
    pidfds = [os.pidfd_open(pid) for pid in worker_pids(site.server)]
    assert len(pidfds) == NUM_WORKERS
    site.server.popen.kill()
    site.server.popen.wait()
    # What has begun is finished, as after a SIGTERM.
    assert downloads.finish() == [0] * NUM_WORKERS
    wait_for_end(pidfds)
    for pidfd in pidfds:
        os.close(pidfd)


def test_sighup_changes_nothing(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    site = start_workers(site, launcher)
    before = worker_pids(site.server)
    site.server.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP" in site.server.log)
    for _ in range(NUM_WORKERS):
        assert run(curl(file_url(site, "random.bin"), tmp_path / "out")).returncode == 0
    assert worker_pids(site.server) == before
    assert site.server.stop() == 0


def test_a_worker_that_is_told_to_leave_finishes_and_is_replaced(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    site = start_workers(site, launcher)
    downloads = Downloads(site, tmp_path, NUM_WORKERS, "60M")
    for pid in worker_pids(site.server):
        os.kill(pid, signal.SIGTERM)
    assert downloads.finish() == [0] * NUM_WORKERS
    wait_until(lambda: len(READY.findall(site.server.log)) == 2 * NUM_WORKERS)
    assert run(curl(file_url(site, "random.bin"), tmp_path / "new")).returncode == 0
    assert site.server.stop() == 0


def test_one_worker_is_one_process(site: Site, launcher: Launcher) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--workers", "1"))
    assert worker_pids(server) == []
    assert server.stop() == 0
