"""Unusual names in the Hub's URLs: the revisions ~parquet and ~duckdb, encoded slashes."""

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launcher, OriginControl, Process
from tests.e2e.clients import Connection
from tests.e2e.commands import run_command
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import read_tree, run_script, start_origin, write_files
from tests.waiting import wait_until
from xetserve.origin.store.commits import DATASET
from xetserve.origin.store.library import Library

SET = "tester/table"
TABLE = "default/train/0.parquet"
CONTENT = b"PAR1" + random.Random(51).randbytes(2_000_000) + b"PAR1"


@dataclass
class Place:
    """An origin with a dataset whose converted form is a branch of its own."""

    origin: Process
    control: OriginControl
    launcher: Launcher

    def start_server(self, cache: Path, *, offline: bool = False) -> Process:
        """Start a server that believes answers for a minute."""
        environment = {"XETSERVE_OFFLINE": "1"} if offline else {}
        return self.launcher.start(
            *serve_arguments(self.origin.url, "--metadata-ttl", "60"),
            *("--cache-dir", str(cache), "--cache-min-free", "0"),
            **environment,
        )


async def make_origin(folder: Path, files: Path) -> None:
    library = Library(folder)
    commit = await library.import_folder("dataset", SET, files)
    repo = await library.repos.get(DATASET, SET)
    assert repo is not None
    for name in ("parquet", "duckdb"):
        await repo.set_ref(f"refs/convert/{name}", commit.id)


@pytest.fixture
def place(launcher: Launcher, tmp_path: Path) -> Iterator[Place]:
    write_files(tmp_path / "files", {TABLE: CONTENT})
    asyncio.run(make_origin(tmp_path / "origin", tmp_path / "files"))
    origin = start_origin(launcher, tmp_path / "origin")
    yield Place(origin, OriginControl(origin.url), launcher)
    for process in launcher.running:
        assert "Traceback" not in process.log


def read_with_client(server: Process, home: Path, revision: str) -> None:
    """Have huggingface_hub read the table by its path, as polars and pandas name it."""
    printed = run_script(
        sys.executable,
        server.url,
        home,
        """
        repo, revision, path = sys.argv[1:]
        fs = HfFileSystem()
        names = fs.glob(f"datasets/{repo}@{revision}/**/*.parquet")
        with fs.open(names[0], block_size=50_000) as file:
            file.seek(1_000_000)
            part = file.read(100).hex()
        folder = snapshot_download(repo, repo_type="dataset", revision=revision)
        print(json.dumps([len(names), part, folder]))
        """,
        SET,
        revision,
        TABLE,
    )
    count, part, folder = json.loads(printed)
    assert (count, part) == (1, CONTENT[1_000_000:1_000_100].hex())
    assert read_tree(Path(folder)) == {TABLE: CONTENT}


@pytest.mark.parametrize("revision", ["~parquet", "~duckdb"])
def test_a_converted_revision_is_kept_like_a_branch(
    place: Place, tmp_path: Path, revision: str
) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache)
    read_with_client(server, tmp_path / "cold", revision)
    wait_until(lambda: not any((cache / "tmp").iterdir()))
    place.control.reset_requests()
    read_with_client(server, tmp_path / "warm", revision)
    assert [asked for asked in place.control.requests() if "tree" in asked["path"]] == []
    place.origin.stop()
    read_with_client(place.start_server(cache, offline=True), tmp_path / "offline", revision)


def test_a_converted_revision_is_pulled(place: Place, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub = ("--hub-url", place.origin.url)
    run_command("pull", f"datasets/{SET}@~parquet", "--cache-dir", str(cache), *hub)
    place.origin.stop()
    server = place.start_server(cache, offline=True)
    with closing(Connection(server.url)) as connection:
        reply = connection.ask(f"/datasets/{SET}/resolve/~parquet/{TABLE}")
        assert (reply.status, reply.body) == (200, CONTENT)


def test_polars_reads_parts_of_a_table(
    launcher: Launcher, polars_client: str, tmp_path: Path
) -> None:
    """polars writes an id as one segment; its hf:// URLs lead to the public Hub only."""
    table = tmp_path / "files" / TABLE
    table.parent.mkdir(parents=True)
    write = """
        import polars
        frame = polars.DataFrame({"number": range(400_000)})
        frame.write_parquet(sys.argv[1], row_group_size=20_000)
    """
    run_script(sys.executable, "http://none", tmp_path, write, str(table), PYTHONPATH=polars_client)
    asyncio.run(make_origin(tmp_path / "origin", tmp_path / "files"))
    origin = start_origin(launcher, tmp_path / "origin")
    server = launcher.start(*serve_arguments(origin.url))
    target = f"/datasets/{SET.replace('/', '%2F')}/resolve/~parquet/{TABLE}"
    read = """
        import polars
        frame = polars.scan_parquet(sys.argv[1]).filter(polars.col("number") > 399_990)
        print(frame.collect()["number"].to_list())
    """
    printed = run_script(
        *(sys.executable, "http://none", tmp_path, read, server.url + target),
        PYTHONPATH=polars_client,
    )
    assert json.loads(printed) == list(range(399_991, 400_000))
    assert f"GET {target}" in server.log
    assert "Traceback" not in server.log
