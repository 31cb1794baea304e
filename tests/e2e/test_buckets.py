"""Buckets, to read: `hf buckets` and hf://buckets/ of the official client through the server."""

import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.conftest import Launcher, OriginControl, Process
from tests.e2e.clients import Connection, ask, curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import TOKEN, read_tree, run_hf, run_script, start_origin, write_files

BUCKET = "tester/logs"
LARGE = "runs/2026/größe 1.bin"
FILES = {
    LARGE: random.Random(41).randbytes(2_500_000),
    "runs/other.bin": random.Random(42).randbytes(80_000),
    "notes.txt": b"small, and Xet as every file of a bucket\n",
    "empty.txt": b"",
}


@dataclass
class Place:
    """An origin with a bucket, and servers in front of it by their modes."""

    origin: Process
    control: OriginControl
    servers: dict[str, Process]
    folder: Path


@pytest.fixture(scope="module")
def _running_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("buckets")
    write_files(base / "files", FILES)
    launched = Launcher(base)
    try:
        imported = f"buckets/{BUCKET}={base / 'files'}"
        origin = start_origin(launched, base / "origin", "--import", imported)
        cache = ("--cache-dir", str(base / "cache"), "--cache-min-free", "0")
        servers = {
            mode: launched.start(*serve_arguments(origin.url, "--xet-mode", mode, *cache))
            for mode in ("plain", "auto", "native")
        }
        yield Place(origin, OriginControl(origin.url), servers, base)
    finally:
        launched.stop_all()


@pytest.fixture
def place(_running_place: Place) -> Iterator[Place]:
    """The place; in the end only servers may have asked the origin."""
    _running_place.control.reset_requests()
    yield _running_place
    agents = {asked["user_agent"] or "" for asked in _running_place.control.requests()}
    assert [agent for agent in agents if not re.match(r"xetserve/[0-9.]+( |$)", agent)] == []
    for server in _running_place.servers.values():
        assert "Traceback" not in server.log


@pytest.mark.parametrize("mode", ["auto", "native"])
def test_the_command_line_client(place: Place, tmp_path: Path, mode: str) -> None:
    url, home = place.servers[mode].url, tmp_path / "home"
    assert BUCKET in run_hf(url, home, "buckets", "list", "tester")
    listed = run_hf(url, home, "buckets", "list", BUCKET, "--recursive")
    assert all(name.rpartition("/")[2] in listed for name in FILES)
    source = f"hf://buckets/{BUCKET}"
    run_hf(url, home, "buckets", "cp", f"{source}/{LARGE}", str(tmp_path / "one.bin"))
    assert (tmp_path / "one.bin").read_bytes() == FILES[LARGE]
    run_hf(url, home, "buckets", "sync", source, str(tmp_path / "all"))
    assert read_tree(tmp_path / "all") == FILES
    assert "GET /v2/reconstructions/" in place.servers[mode].log


@pytest.mark.parametrize("mode", ["plain", "auto", "native"])
@pytest.mark.parametrize("xet", ["with hf-xet", "without"])
def test_a_file_system(place: Place, tmp_path: Path, mode: str, xet: str) -> None:
    environment = {} if xet == "with hf-xet" else {"HF_HUB_DISABLE_XET": "1"}
    printed = run_script(
        sys.executable,
        place.servers[mode].url,
        tmp_path,
        """
        bucket, path, out = sys.argv[1:]
        fs = HfFileSystem()
        found = {"names": sorted(fs.find(f"hf://buckets/{bucket}")),
                 "buckets": [each.id for each in list_buckets()],
                 "size": bucket_info(bucket).size}
        with fs.open(f"hf://buckets/{bucket}/{path}", block_size=50_000) as file:
            file.seek(1_234_567)
            found["part"] = file.read(100).hex()
        fs.get_file(f"hf://buckets/{bucket}/{path}", out)
        print(json.dumps(found))
        """,
        BUCKET,
        LARGE,
        str(tmp_path / "out"),
        **environment,
    )
    found = json.loads(printed)
    assert found["names"] == sorted(f"buckets/{BUCKET}/{name}" for name in FILES)
    assert (found["buckets"], found["size"]) == ([BUCKET], sum(map(len, FILES.values())))
    assert found["part"] == FILES[LARGE][1_234_567:1_234_667].hex()
    assert (tmp_path / "out").read_bytes() == FILES[LARGE]


@pytest.mark.parametrize("mode", ["plain", "native"])
def test_plain_clients(place: Place, tmp_path: Path, mode: str) -> None:
    server = place.servers[mode]
    for safe in ("/", ""):
        url = f"{server.url}/buckets/{BUCKET}/resolve/{quote(LARGE, safe=safe)}"
        assert run(curl(url, tmp_path / "out")).returncode == 0
        assert (tmp_path / "out").read_bytes() == FILES[LARGE]
    with closing(Connection(server.url)) as connection:
        for name, content in FILES.items():
            path = f"/buckets/{BUCKET}/resolve/{quote(name)}"
            reply = connection.ask(path)
            assert (reply.status, reply.body) == (200, content)
            assert "no-cache" in reply.headers["cache-control"]
            assert "x-repo-commit" not in reply.headers
            assert "repr-digest" not in reply.headers  # a bucket names no sha256
            again = connection.ask(path, [("If-None-Match", reply.headers.get("etag", "*"))])
            assert again.status == 304
        for path, status in (
            (f"/buckets/{BUCKET}/resolve/none", 404),
            ("/buckets/tester/none/resolve/a", 404),
            (f"/buckets/{BUCKET}/resolve/runs%2F..%2Fnotes.txt", 400),
            (f"/buckets/{BUCKET}/resolve/a%2F%2Fb", 404),
            (f"/api/buckets/{BUCKET}/xet-write-token", 404 if mode == "plain" else 403),
        ):
            assert connection.ask(path).status == status, path


def test_names_are_asked_for_each_time_and_data_once(place: Place) -> None:
    target = f"/buckets/{BUCKET}/resolve/{quote(LARGE)}"
    server = place.servers["plain"]
    assert ask(server, target).body == FILES[LARGE]
    place.control.reset_requests()
    for _ in range(2):
        assert ask(server, target, token=None).body == FILES[LARGE]
        assert ask(server, f"/api/buckets/{BUCKET}/tree").status == 200
    asked = place.control.requests()
    assert "data" not in {entry["kind"] for entry in asked}
    paths = [entry["path"] for entry in asked]
    assert (paths.count(target), paths.count(f"/api/buckets/{BUCKET}/tree")) == (2, 2)
    assert TOKEN not in server.log
