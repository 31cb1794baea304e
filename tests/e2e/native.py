"""An origin with Xet files, servers in front of it, and native clients."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import Launcher, OriginControl, Process
from tests.e2e.hub import XET_FILE, make_files, run_script, start_origin, upload, write_files
from tests.waiting import wait_until

REPO = "tester/through-us"
PRIVATE = "tester/for-its-owner"
EDITED = "edited.bin"
SECRET_FILE = "secret.bin"
MULTIRANGE = {"HF_XET_CLIENT_ENABLE_MULTIRANGE_FETCHING": "1"}
QUICK = {"HF_XET_CLIENT_RETRY_BASE_DELAY": "100ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "3"}


@dataclass
class Place:
    """An origin with a model of the files and a private one, and a folder for what belongs to a
    test.
    """

    origin: Process
    control: OriginControl
    files: dict[str, bytes]
    base: Path


def make_edited(content: bytes) -> bytes:
    """Content with parts replaced: most of its chunks are in the xorb of the original, with
    gaps.
    """
    source = random.Random(6)
    parts = [content]
    for at in (1_900_000, 1_200_000, 500_000):
        parts[:1] = [parts[0][:at], source.randbytes(50_000), parts[0][at + 150_000 :]]
    return b"".join(parts)


@contextmanager
def running_place(base: Path) -> Iterator[Place]:
    """Yield an origin that has the files, uploaded by the official client."""
    files = make_files()
    write_files(base / "files", files)
    files[EDITED] = make_edited(files[XET_FILE])
    write_files(base / "more", {EDITED: files[EDITED]})
    write_files(base / "secret", {SECRET_FILE: random.Random(7).randbytes(400_000)})
    launched = Launcher(base)
    try:
        origin = start_origin(launched, base / "origin")
        for repo, folder, *flags in (
            (REPO, "files"),
            (REPO, "more"),
            (PRIVATE, "secret", "--private"),
        ):
            upload(sys.executable, origin.url, base / "home", "model", repo, base / folder, *flags)
        yield Place(origin, OriginControl(origin.url), files, base)
    finally:
        launched.stop_all()


@dataclass
class Site:
    """A server of a test's own in front of the place."""

    place: Place
    server: Process
    cache: Path

    @property
    def control(self) -> OriginControl:
        return self.place.control

    def wait_for_cache(self) -> None:
        """Wait until what is being written to the cache is there."""
        wait_until(lambda: not any((self.cache / "tmp").iterdir()))

    def asked(self, kind: str) -> list[dict[str, Any]]:
        """What the origin was asked, of a kind."""
        return [request for request in self.control.requests() if request["kind"] == kind]


def download(site: Site, home: Path, name: str, **environment: str) -> bytes:
    """Download a file with today's client, with nothing kept from before."""
    script = "print(hf_hub_download(sys.argv[1], sys.argv[2]))"
    path = run_script(
        sys.executable, site.server.url, home, script, REPO, name, **QUICK, **environment
    )
    return Path(path).read_bytes()


def download_failing(site: Site, home: Path, name: str) -> None:
    """The same for a download that must not end well; no file is left."""
    script = """
        try:
            hf_hub_download(sys.argv[1], sys.argv[2])
        except Exception as exc:
            print(type(exc).__name__)
    """
    found = run_script(sys.executable, site.server.url, home, script, REPO, name, **QUICK)
    assert found.endswith("Error")
    assert [path for path in home.rglob(f"snapshots/*/{name}") if path.exists()] == []


def count_packed(requests: list[dict[str, Any]]) -> int:
    """Packed bytes that requests for data have asked for."""
    total = 0
    for asked in requests:
        for part in asked["range"].removeprefix("bytes=").split(","):
            first, _, last = part.partition("-")
            total += int(last) - int(first) + 1
    return total


def find_flip(place: Place, name: str, at: int) -> dict[str, Any]:
    """The fault that inverts a byte of a file, which lies raw in a xorb."""
    needle = place.files[name][at : at + 64]
    for path in sorted((place.base / "origin" / "xorbs").iterdir()):
        offset = path.read_bytes().find(needle) if len(path.name) == 64 else -1
        if offset >= 0:
            return {"flip_byte": {"xorb": path.name, "offset": offset}}
    raise AssertionError("the bytes are packed")
