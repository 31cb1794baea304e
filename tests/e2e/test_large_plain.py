"""Large files that are not Xet: kept as they stream, and given again from the disk, whole and in
parts.

Our own origin keeps all large files as Xet; behind a server that tells nobody of Xet they are LFS
files as old Hubs have them.
"""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, clean_environment, sha256_of
from tests.e2e.clients import Connection, aria2, ask, curl, run
from tests.e2e.commands import run_command, told
from tests.e2e.conftest import TOKEN, environment_without_home, serve_arguments
from tests.e2e.dataset import MIB
from tests.waiting import wait_until
from xetserve.pipeline.cache.blob_file import BLOCK_SIZE, MAX_SMALL_SIZE

REPO = "tester/large-plain"
NAME = "weights.bin"
SIZE = MAX_SMALL_SIZE + 20 * MIB + 12_345
PATH = f"/{REPO}/resolve/main/{NAME}"


@dataclass
class Place:
    """A Hub without Xet, and the file that it has."""

    origin: Process
    hub: Process
    content: bytes
    digest: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("place")
    source = random.Random(31)
    content = b"".join(source.randbytes(MIB) for _ in range(SIZE // MIB)) + source.randbytes(12_345)
    (base / "files").mkdir()
    (base / "files" / NAME).write_bytes(content)
    launched = Launcher(base)
    try:
        origin = launched.start(
            *("origin", str(base / "origin"), "--host", "127.0.0.1", "--port", "0"),
            *("--token", f"{TOKEN}=tester", "--import", f"{REPO}={base / 'files'}"),
        )
        hub = launched.start(*serve_arguments(origin.url, "--xet-mode", "plain"))
        with closing(Connection(hub.url)) as connection:
            head = connection.ask(PATH, method="HEAD")
        assert "x-xet-hash" not in head.headers
        yield Place(origin, hub, content, sha256_of(base / "files" / NAME))
    finally:
        launched.stop_all()


def start(
    place: Place, launcher: Launcher, folder: Path, *flags: str, offline: bool = False
) -> Process:
    return launcher.start(
        *serve_arguments(place.hub.url, "--cache-dir", str(folder), "--cache-min-free", "0"),
        *flags,
        **({"XETSERVE_OFFLINE": "1"} if offline else {}),
    )


def count_sent(hub: Process) -> int:
    """Give the body bytes that the Hub has sent."""
    with closing(Connection(hub.url, None)) as connection:
        lines = connection.ask("/metrics").body.decode().splitlines()
    return int(
        sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("xetserve_sent_bytes_total")
        )
    )


def kept(folder: Path) -> list[Path]:
    return list(folder.glob("large/*/*"))


def download(server: Process, target: Path, place: Place) -> int:
    """Download all of it; gives the bytes that the Hub sent for it."""
    before = count_sent(place.hub)
    done = run(curl(f"{server.url}/download/{REPO}/{NAME}", target))
    assert done.returncode == 0, done.stderr + server.log[-3000:]
    assert sha256_of(target) == place.digest
    return count_sent(place.hub) - before


def test_what_was_read_once_is_kept(place: Place, launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    server = start(place, launcher, folder)
    assert download(server, tmp_path / "out", place) > SIZE
    assert len(kept(folder)) == 1
    assert list((folder / "tmp").iterdir()) == []
    assert download(server, tmp_path / "out", place) < MIB
    for start_, end in (
        (0, 1),
        (BLOCK_SIZE - 1, BLOCK_SIZE + 1),
        (SIZE // 2, SIZE // 2 + 3_000_000),
        (SIZE - 1, SIZE),
    ):
        reply = ask(server, PATH, ("Range", f"bytes={start_}-{end - 1}"))
        assert (reply.status, reply.body) == (206, place.content[start_:end])
    before = count_sent(place.hub)
    url = f"{server.url}{PATH}"
    assert run(aria2(url, tmp_path / "parts", "-x8", "-s8", "-k1M")).returncode == 0
    assert sha256_of(tmp_path / "parts") == place.digest
    assert count_sent(place.hub) - before < MIB
    stats = told(folder, "stats")
    assert stats["plain"]["files"] >= 1
    assert stats["plain"]["bytes"] > SIZE
    assert told(folder, "verify")["damaged"] == []
    assert server.peak_memory() < 100 * MIB
    assert "Traceback" not in server.log


def test_a_client_that_leaves_leaves_nothing(
    place: Place, launcher: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    server = start(place, launcher, folder)
    url = f"{server.url}/download/{REPO}/{NAME}"
    slow = [
        subprocess.Popen(
            curl(url, tmp_path / f"left{number}", "--limit-rate", "20M"),
            env=environment_without_home(),
            stderr=subprocess.DEVNULL,
        )
        for number in range(2)
    ]
    wait_until(lambda: len(list((folder / "tmp").iterdir())) == 2)
    slow[0].kill()
    slow[0].wait()
    wait_until(lambda: len(list((folder / "tmp").iterdir())) == 1)
    slow[1].kill()
    slow[1].wait()
    wait_until(lambda: not list((folder / "tmp").iterdir()))
    assert kept(folder) == []
    wait_until(lambda: (folder / "usage").read_text().strip("\0 \n") == "0")
    # Two at once, and one of them stays.
    clients = [
        subprocess.Popen(curl(url, tmp_path / f"out{number}"), env=environment_without_home())
        for number in range(2)
    ]
    assert [client.wait(timeout=60) for client in clients] == [0, 0]
    assert {sha256_of(tmp_path / f"out{number}") for number in range(2)} == {place.digest}
    assert len(kept(folder)) == 1
    assert download(server, tmp_path / "again", place) < MIB


def test_a_killed_server_leaves_nothing_wrong(
    place: Place, launcher: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    server = start(place, launcher, folder)
    url = f"{server.url}/download/{REPO}/{NAME}"
    client = subprocess.Popen(
        curl(url, tmp_path / "cut", "--limit-rate", "20M"),
        env=environment_without_home(),
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: bool(list((folder / "tmp").iterdir())))
    server.popen.send_signal(signal.SIGKILL)
    server.popen.wait()
    assert client.wait(timeout=60) != 0
    assert kept(folder) == []
    server = start(place, launcher, folder)
    wait_until(lambda: not list((folder / "tmp").iterdir()))
    assert download(server, tmp_path / "out", place) > SIZE
    assert download(server, tmp_path / "out", place) < MIB


@pytest.mark.parametrize("wanted", [None, SIZE // 3], ids=["whole", "part"])
def test_a_download_that_has_begun_survives_an_outage(
    place: Place, launcher: Launcher, tmp_path: Path, wanted: int | None
) -> None:
    """It goes on at the byte where the Hub went, and is stored as if nothing had happened."""
    arguments = serve_arguments(place.origin.url, "--xet-mode", "plain")
    hub = launcher.start(*arguments)
    folder, target = tmp_path / "cache", tmp_path / "out"
    server = launcher.start(
        *serve_arguments(hub.url, "--cache-dir", str(folder), "--cache-min-free", "0"),
        *("--upstream-timeout", "1"),
    )
    options = () if wanted is None else ("-r", f"{wanted}-{SIZE - 10}")
    url = f"{server.url}/download/{REPO}/{NAME}"
    with subprocess.Popen(curl(url, target, "--limit-rate", "30M", *options)) as client:
        wait_until(lambda: target.exists() and target.stat().st_size > 0)
        hub.popen.kill()
        hub.popen.wait()
        gone = time.monotonic()
        wait_until(lambda: time.monotonic() - gone > 3)
        assert client.poll() is None
        arguments[arguments.index("--port") + 1] = hub.url.rpartition(":")[2]
        launcher.start(*arguments)
        assert client.wait() == 0
    first, end = (0, SIZE) if wanted is None else (wanted, SIZE - 9)
    assert target.read_bytes() == place.content[first:end]
    assert server.log.count("the upstream fails, trying again for") == 1
    assert server.log.count(": goes on after ") == 1
    if wanted is None:
        wait_until(lambda: len(kept(folder)) == 1)


def damage(folder: Path, position: int) -> None:
    (path,) = kept(folder)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("position", [0, SIZE // 2, SIZE - 1])
def test_damage_on_disk_does_not_come_through(
    place: Place, launcher: Launcher, tmp_path: Path, position: int
) -> None:
    folder = tmp_path / "cache"
    server = start(place, launcher, folder)
    download(server, tmp_path / "out", place)
    damage(folder, position)
    first = max(0, position - 1000)
    reply = ask(server, PATH, ("Range", f"bytes={first}-"))
    assert (reply.status, reply.body) == (206, place.content[first:])
    assert kept(folder) == []
    download(server, tmp_path / "out", place)
    damage(folder, position)
    assert SIZE - position <= download(server, tmp_path / "out", place) < SIZE - position + MIB
    assert kept(folder) == []
    assert "the Hub sends the rest, from byte" in server.log


def test_an_offline_site(place: Place, launcher: Launcher, tmp_path: Path) -> None:
    """Pulled, verified, exported, imported, and served to the official client without a Hub."""
    warm, there, archive = tmp_path / "warm", tmp_path / "there", tmp_path / "large.tar"
    for _ in range(2):
        run_command("pull", REPO, "--hub-url", place.hub.url, "--cache-dir", str(warm))
    assert len(kept(warm)) == 1
    written = told(warm, "export", "--repo", REPO, str(archive))
    assert written["repos"][0]["incomplete"] == []
    assert archive.stat().st_size > SIZE
    told(there, "import", "--with-answers", str(archive))
    assert kept(there)[0].read_bytes() == kept(warm)[0].read_bytes()
    assert told(there, "import", "--with-answers", str(archive))["files"] == 0
    server = start(place, launcher, there, offline=True)
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("hf")), "download", REPO, NAME),
            *("--local-dir", str(tmp_path / "hf")),
        ],
        env=clean_environment(
            HF_ENDPOINT=server.url, HF_HOME=str(tmp_path / "home"), HF_TOKEN=TOKEN
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr + server.log[-3000:]
    assert sha256_of(tmp_path / "hf" / NAME) == place.digest
    # Damage that nobody can mend cuts the download; before the first byte it has a status.
    damage(there, SIZE // 2)
    cut = run(curl(f"{server.url}/download/{REPO}/{NAME}", tmp_path / "cut"))
    assert cut.returncode in (18, 56)
    assert (tmp_path / "cut").stat().st_size <= SIZE // 2
    assert kept(there) == []
    assert ask(server, PATH).status == 504


def test_damage_is_found_before_it_is_carried_on(place: Place, tmp_path: Path) -> None:
    folder, archive = tmp_path / "warm", tmp_path / "large.tar"
    run_command("pull", REPO, "--hub-url", place.hub.url, "--cache-dir", str(folder))
    run_command("cache", "export", str(archive), "--cache-dir", str(folder))
    damage(folder, SIZE // 3)
    (path,) = kept(folder)
    name = str(path.relative_to(folder))
    assert told(folder, "export", str(tmp_path / "again.tar"), status=1)["skipped"] == 1
    report = told(folder, "verify", status=1)
    assert [one["file"] for one in report["damaged"]] == [name]
    assert kept(folder) == []
    data = bytearray(archive.read_bytes())
    at = data.index(place.content[SIZE // 2 : SIZE // 2 + 100])
    data[at] ^= 1
    archive.write_bytes(data)
    there = tmp_path / "there"
    with pytest.raises(AssertionError, match="that are not sha256-"):
        run_command("cache", "import", str(archive), "--cache-dir", str(there))
    assert kept(there) == []
    assert list((there / "tmp").iterdir()) == []


def test_one_that_is_half_of_the_cache_is_not_kept(
    place: Place, launcher: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    size = ("--cache-size", str(2 * SIZE))
    server = start(place, launcher, folder, *size)
    for _ in range(2):
        assert download(server, tmp_path / "out", place) > SIZE
    assert kept(folder) == []
    with pytest.raises(AssertionError, match="larger than half of the cache"):
        run_command("pull", REPO, "--hub-url", place.hub.url, "--cache-dir", str(folder), *size)
