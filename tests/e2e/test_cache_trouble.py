"""A cache that can keep nothing: it says so once, downloads go on, and it recovers by itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Launcher
from tests.e2e.cached_site import download, entries, replace_folder, start_server
from tests.e2e.clients import ask
from tests.e2e.conftest import Site
from tests.waiting import wait_until


def lines(site: Site, text: str) -> list[str]:
    """Return the lines of the server's log, except debug lines, that have a text."""
    logged = site.server.log.splitlines()
    return [line for line in logged if text in line and " DEBUG " not in line]


def find_trouble(site: Site) -> list[str]:
    """Return the troubles of the cache that the server shows."""
    found: list[str] = json.loads(ask(site.server, "/status").body)["cache"]["trouble"]
    return found


def ask_ready(site: Site) -> tuple[int, dict[str, str]]:
    reply = ask(site.server, "/ready")
    return reply.status, json.loads(reply.body)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("lose", [empty, shutil.rmtree])
@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_folder_that_was_emptied_is_used_again(
    site: Site, launcher: Launcher, tmp_path: Path, lose: Callable[[Path], None], workers: str
) -> None:
    folder = tmp_path / "cache"
    site = start_server(site, launcher, folder, "--workers", workers)
    download(site, "random.bin", tmp_path / "out")
    wait_until(lambda: bool(entries(folder)) and not any((folder / "tmp").iterdir()))
    lose(folder)
    download(site, "random.bin", tmp_path / "out")
    wait_until(lambda: (folder / "tmp").is_dir() and (folder / "usage").is_file())
    download(site, "random.bin", tmp_path / "out")
    wait_until(lambda: bool(entries(folder)) and not any((folder / "tmp").iterdir()))
    assert download(site, "random.bin", tmp_path / "out") == []
    assert ask(site.server, "/ready").status == 200
    assert len(lines(site, "was emptied or removed")) == 1
    assert lines(site, "cannot write") == []


def test_a_cache_without_room_says_so_once(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    flags = ("--cache-min-free", "1000TB", "--workers", "2")
    site = start_server(site, launcher, folder, *flags)
    wait_until(lambda: bool(lines(site, "nothing can be kept")))
    for _ in range(3):
        download(site, "random.bin", tmp_path / "out")
    status, ready = ask_ready(site)
    assert (status, ready["status"], ready["cause"]) == (200, "degraded", "cache")
    assert ready["error"] == "the disk cache has no room"
    assert b'xetserve_degraded{cause="cache"} 1' in ask(site.server, "/metrics").body
    assert find_trouble(site) == ["full"]
    assert b"keeps nothing: there is no room" in ask(site.server, "/", ("Accept", "text/html")).body
    assert b'xetserve_cache_trouble{cause="full"} 1' in ask(site.server, "/metrics").body
    (line,) = lines(site, "nothing can be kept")
    assert "cache_min_free is 1.0 PB" in line
    assert str(folder) in line


def test_a_folder_that_cannot_be_written_to_says_so_once_and_recovers(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    site = start_server(site, launcher, folder)
    wait_until(lambda: (folder / "sweep.lock").exists() and not any((folder / "tmp").iterdir()))
    replace_folder(folder / "tmp")
    for _ in range(3):
        download(site, "random.bin", tmp_path / "out")
    wait_until(lambda: find_trouble(site) == ["disk"])
    assert ask_ready(site)[1]["error"] == "the disk cache cannot be written to"
    assert len(lines(site, "WARNING")) == 1
    (folder / "tmp").unlink()
    wait_until(lambda: ask_ready(site) == (200, {"status": "ready"}))
    assert b'xetserve_degraded{cause="cache"} 0' in ask(site.server, "/metrics").body
    assert find_trouble(site) == []
    assert len(lines(site, f"data is kept in {folder} again")) == 1
    download(site, "random.bin", tmp_path / "out")
    wait_until(lambda: bool(entries(folder)))


def test_a_small_cache_says_so_at_the_start(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    flags = ("--cache-size", "20MB", "--workers", "2")
    site = start_server(site, launcher, folder, *flags)
    wait_until(lambda: bool(lines(site, "nothing larger than 10.0 MB at a time is kept")))
    assert find_trouble(site) == ["small"]
    assert ask(site.server, "/ready").status == 200
    assert len(lines(site, "cache_size is 20.0 MB")) == 1
