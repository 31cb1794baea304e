"""The disk cache of a real server: no data is asked for twice, and no damage of its files comes
through.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Launcher, OriginControl, Process, sha256_of
from tests.e2e.cached_site import download, entries, num_bytes, start_server
from tests.e2e.clients import curl, file_url, run
from tests.e2e.conftest import (
    REPO,
    TOKEN,
    Site,
    Uploaded,
    environment_without_home,
    serve_arguments,
)
from tests.e2e.hub import start_origin, upload
from tests.waiting import PATIENCE, wait_until

NAMES = ["model/tensors f32.safetensors", "text/corpus.bin", "repeats.bin", "big.bin"]


def stop(server: Process) -> None:
    assert server.stop() == 0, server.log
    assert "Traceback" not in server.log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cached(site: Site, launcher: Launcher, folder: Path) -> Site:
    return start_server(site, launcher, folder)


def warm(site: Site, name: str, target: Path, folder: Path) -> None:
    """Download a file until all of it is stored: on a busy machine a part may be left out at
    first.
    """
    deadline = time.monotonic() + PATIENCE
    while download(site, name, target):
        assert time.monotonic() < deadline
        wait_until(lambda: not any((folder / "tmp").iterdir()))


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_file_needs_no_data_from_upstream(
    cached: Site, tmp_path: Path, folder: Path, name: str
) -> None:
    warm(cached, name, tmp_path / "out", folder)
    # Neither a part of it, nor when no data can be had at all.
    cached.control.set_faults(data_status_burst={"status": 500, "count": 10_000})
    assert download(cached, name, tmp_path / "out") == []
    size = (cached.uploaded.folder / name).stat().st_size
    part = ("-r", f"{size // 3}-{size // 2}")
    assert run(curl(file_url(cached, name), tmp_path / "part", *part)).returncode == 0
    content = (cached.uploaded.folder / name).read_bytes()
    assert (tmp_path / "part").read_bytes() == content[size // 3 : size // 2 + 1]


def test_a_restart_forgets_nothing(
    cached: Site, launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    warm(cached, "big.bin", tmp_path / "out", folder)
    stop(cached.server)
    again = start_server(cached, launcher, folder)
    assert download(again, "big.bin", tmp_path / "out") == []


def test_a_part_of_a_proven_file_is_verified_after_a_restart(
    cached: Site, launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    warm(cached, "big.bin", tmp_path / "out", folder)
    wait_until(lambda: len(list(folder.glob("ledgers/*/*"))) == 1)
    stop(cached.server)
    again = start_server(cached, launcher, folder, "--access-log", "json")
    done = run(curl(file_url(again, "big.bin"), tmp_path / "part", "-r", "30000000-30000009"))
    assert done.returncode == 0, done.stderr
    stop(again.server)
    (line,) = [line for line in again.server.log.splitlines() if line.startswith("{")]
    assert json.loads(line)["verified"] is True


def test_a_plain_file_is_fetched_once_and_given_to_those_who_may_read_it(
    cached: Site, tmp_path: Path, folder: Path
) -> None:
    url = file_url(cached, "config.json")
    content = (cached.uploaded.folder / "config.json").read_bytes()

    def fetches() -> int:
        """Download it, and give how often it was fetched for that."""
        cached.control.reset_requests()
        assert run(curl(url, tmp_path / "out")).returncode == 0
        assert (tmp_path / "out").read_bytes() == content
        asked = cached.control.requests()
        assert next(one["method"] for one in asked if "/resolve/" in one["path"]) == "HEAD"
        return sum(one["method"] == "GET" for one in asked)

    assert fetches() == 1
    wait_until(lambda: len(list(folder.glob("plain/*/*"))) == 1)
    assert fetches() == 0
    assert run(curl(url, tmp_path / "part", "-r", "3-9")).returncode == 0
    assert (tmp_path / "part").read_bytes() == content[3:10]
    (stored,) = folder.glob("plain/*/*")
    stored.write_bytes(content[::-1])
    assert fetches() == 1
    wait_until(lambda: len(list(folder.glob("plain/*/*"))) == 1)
    assert fetches() == 0
    stranger = curl(url, tmp_path / "stolen", "--oauth2-bearer", "hf_" + "x" * 34)
    at = stranger.index("-H")
    del stranger[at : at + 2]
    assert run(stranger).returncode == 22
    assert not (tmp_path / "stolen").exists()


def test_two_servers_share_a_folder(
    cached: Site, launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    other = start_server(cached, launcher, folder, "--workers", "2")
    warm(cached, "repeats.bin", tmp_path / "out", folder)
    assert download(other, "repeats.bin", tmp_path / "out") == []
    warm(other, "text/corpus.bin", tmp_path / "out", folder)
    assert download(cached, "text/corpus.bin", tmp_path / "out") == []


def test_a_new_revision_costs_what_is_new(
    uploaded: Uploaded, launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    # Of its own: files of one upload share fewer chunks than revisions do.
    origin = start_origin(launcher, tmp_path / "origin")
    control = OriginControl(origin.url)
    repo = "tester/revisions"
    sizes: list[int] = []
    digests: list[str] = []

    def fetch() -> int:
        """Download the file and give the bytes of data that were asked for."""
        control.reset_requests()
        url = f"{server.url}/download/{repo}/file.bin"
        assert run(curl(url, tmp_path / "out")).returncode == 0, server.log[-3000:]
        assert sha256_of(tmp_path / "out") == digests[-1]
        return num_bytes([asked for asked in control.requests() if asked["kind"] == "data"])

    cache = ("--cache-dir", str(folder), "--cache-min-free", "0")
    server = launcher.start(*serve_arguments(origin.url, *cache))
    for name in ("big.bin", "big-edited.bin"):
        (tmp_path / name).mkdir()
        source = uploaded.folder / name
        (tmp_path / name / "file.bin").hardlink_to(source)
        upload(sys.executable, origin.url, tmp_path / "home", "model", repo, tmp_path / name)
        digests.append(uploaded.digests[name])
        sizes.append(fetch())
        wait_until(lambda: not any((folder / "tmp").iterdir()))
        while fetch():
            wait_until(lambda: not any((folder / "tmp").iterdir()))
    # The text is new, and so are the chunks that the edits touch.
    assert 0 < sizes[1] < sizes[0] // 10


def test_a_cached_file_is_for_those_who_may_read_it(
    cached: Site, tmp_path: Path, folder: Path
) -> None:
    warm(cached, "random.bin", tmp_path / "out", folder)
    stranger = ("-w", "%{http_code}", "--oauth2-bearer", "hf_" + "x" * 34)
    command = curl(file_url(cached, "random.bin"), tmp_path / "stolen", *stranger)
    at = command.index("-H")
    del command[at : at + 2]
    assert run(command).stdout == "401"
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize("place", [0.001, 0.3, 0.7, 0.999999], ids=["head", "0.3", "0.7", "tail"])
def test_damage_on_disk_does_not_come_through(
    cached: Site, launcher: Launcher, tmp_path: Path, folder: Path, place: float
) -> None:
    warm(cached, "big.bin", tmp_path / "out", folder)
    for path in entries(folder):
        with path.open("r+b") as file:
            at = int(path.stat().st_size * place)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 0x55]))
    if place > 0.99:  # an index that was read before does not matter any more
        stop(cached.server)
        cached = start_server(cached, launcher, folder)
    assert download(cached, "big.bin", tmp_path / "out") != []
    # What was damaged has been replaced.
    warm(cached, "big.bin", tmp_path / "out", folder)


@pytest.mark.parametrize("how", ["cut", "remove"])
def test_files_that_are_cut_or_gone_do_not_matter(
    cached: Site, tmp_path: Path, folder: Path, how: str
) -> None:
    warm(cached, "big.bin", tmp_path / "out", folder)
    source = random.Random(1)
    for path in entries(folder):
        if how == "cut":
            os.truncate(path, source.randrange(path.stat().st_size))
        else:
            path.unlink()
    assert download(cached, "big.bin", tmp_path / "out") != []
    warm(cached, "big.bin", tmp_path / "out", folder)


def test_a_folder_that_goes_does_not_matter(cached: Site, tmp_path: Path, folder: Path) -> None:
    warm(cached, "random.bin", tmp_path / "out", folder)
    folder.rename(tmp_path / "elsewhere")
    for _ in range(2):
        assert download(cached, "random.bin", tmp_path / "out") != []


def test_a_killed_server_leaves_nothing_wrong(
    cached: Site, launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    cached.control.set_faults(bandwidth=8_000_000)
    client = subprocess.Popen(
        curl(file_url(cached, "big.bin"), tmp_path / "out"),
        env=environment_without_home(),
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: bool(entries(folder)) and any((folder / "tmp").iterdir()))
    cached.server.popen.send_signal(signal.SIGKILL)
    cached.server.popen.wait()
    assert client.wait(timeout=PATIENCE) in (18, 56)
    left = set((folder / "tmp").iterdir())
    assert left
    cached.control.set_faults()
    again = start_server(cached, launcher, folder)
    wait_until(lambda: not left & set((folder / "tmp").iterdir()))
    download(again, "big.bin", tmp_path / "out")
    warm(again, "big.bin", tmp_path / "out", folder)


def test_a_small_quota_is_kept(
    site: Site, launcher: Launcher, tmp_path: Path, folder: Path
) -> None:
    limit = 20_000_000
    small = start_server(site, launcher, folder, "--cache-size", str(limit))
    for name in ["big.bin", "big-edited.bin", "repeats.bin"]:
        download(small, name, tmp_path / "out")
        wait_until(lambda: not any((folder / "tmp").iterdir()))
        assert sum(path.stat().st_size for path in entries(folder)) <= limit
    stop(small.server)


def test_what_is_on_disk_names_nobody(cached: Site, tmp_path: Path, folder: Path) -> None:
    warm(cached, "random.bin", tmp_path / "out", folder)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        secrets = [TOKEN, "Signature"]
        if "meta" not in path.parts:  # what the Hub said about repositories is there, by token
            secrets += ["http://", REPO, "random.bin"]
        for secret in secrets:
            assert secret.encode() not in content
    names = "".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert "random" not in names
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_used_stops_the_start(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    launched = Launcher(tmp_path)
    with pytest.raises(AssertionError, match="cannot keep a cache in"):
        start_server(site, launched, tmp_path / "file")
    launched.stop_all()
