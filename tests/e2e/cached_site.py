"""A server with a disk cache, and what is stored and fetched."""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import Launcher, sha256_of
from tests.e2e.clients import curl, file_url, run
from tests.e2e.conftest import Site, serve_arguments


def start_server(site: Site, launcher: Launcher, folder: Path, *flags: str) -> Site:
    """The site with a server of its own that has a cache."""
    cache = ("--cache-dir", str(folder), "--cache-min-free", "0")
    return replace(site, server=launcher.start(*serve_arguments(site.origin.url, *cache, *flags)))


def download(site: Site, name: str, target: Path) -> list[dict[str, Any]]:
    """Download a file, check it, and return the requests for data that it took."""
    site.control.reset_requests()
    done = run(curl(file_url(site, name), target))
    assert done.returncode == 0, done.stderr + site.server.log[-3000:]
    assert sha256_of(target) == site.uploaded.digests[name]
    return [asked for asked in site.control.requests() if asked["kind"] == "data"]


def entries(folder: Path) -> list[Path]:
    """Return the entries of a cache, sorted."""
    return sorted(folder.glob("??/*/*.xc"))


def replace_folder(folder: Path) -> None:
    """Put a file in a folder's place, although the server makes the folder anew when it lacks."""
    file = folder.with_name("in the way")
    file.touch()
    while not folder.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            file.rename(folder)


def num_bytes(requests: list[dict[str, Any]]) -> int:
    """Return how many bytes requests for data have asked for."""
    total = 0
    for asked in requests:
        start, _, end = asked["range"].removeprefix("bytes=").partition("-")
        total += int(end) - int(start) + 1
    return total


def check_without_data(site: Site, tmp_path: Path, names: list[str]) -> None:
    """Download files while neither data nor files can be had from upstream."""
    site.control.set_faults(data_status_burst={"status": 500, "count": 10_000})
    site.control.reset_requests()
    for name in names:
        done = run(curl(file_url(site, name), tmp_path / "out"))
        assert done.returncode == 0, done.stderr + site.server.log[-3000:]
        assert sha256_of(tmp_path / "out") == site.uploaded.digests[name]
    asked = site.control.requests()
    assert [one for one in asked if one["kind"] == "data"] == []
    # Files that are not Xet are looked up, not fetched.
    assert [one for one in asked if one["method"] == "GET" and "/resolve/" in one["path"]] == []
