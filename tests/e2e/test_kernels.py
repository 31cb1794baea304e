"""Kernels, the fourth type of repositories: the `kernels` package loads one through the server,
warm and cold, natively and not, and without the Hub.
"""

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launcher, OriginControl, Process
from tests.e2e.clients import Connection, ask, curl, run
from tests.e2e.commands import run_command, told
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import TOKEN, read_tree, run_script, start_origin, write_files
from tests.waiting import wait_until

KERNEL = "tester/activation"
BUILD = "build/torch-cpu"
OBJECT = f"{BUILD}/_activation_abc.so"
FILES = {
    "README.md": b"# A kernel\n",
    f"{BUILD}/__init__.py": b"def answer():\n    return 42\n",
    f"{BUILD}/metadata.json": json.dumps(
        {
            "id": "_activation_abc",
            "name": "activation",
            "version": 1,
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": "cpu"},
        }
    ).encode(),
    OBJECT: random.Random(31).randbytes(3_000_000),
    "build/torch29-cxx11-cpu-x86_64-linux/_other.so": random.Random(32).randbytes(200_000),
}


@dataclass
class Place:
    """An origin with a kernel whose branch v1 is that of its first version."""

    base: Path
    launcher: Launcher
    origin: Process
    control: OriginControl

    def start_server(self, cache: Path, *flags: str, offline: bool = False) -> Process:
        """Start a server with a cache."""
        environment = {"XETSERVE_OFFLINE": "1"} if offline else {}
        return self.launcher.start(
            *serve_arguments(self.origin.url, "--cache-dir", str(cache)),
            *("--cache-min-free", "0", *flags),
            **environment,
        )


@pytest.fixture
def place(launcher: Launcher, tmp_path: Path) -> Iterator[Place]:
    write_files(tmp_path / "files", FILES)
    imported = f"kernels/{KERNEL}={tmp_path / 'files'}"
    origin = start_origin(launcher, tmp_path / "origin", "--import", imported)
    made = ask(origin, f"/api/kernels/{KERNEL}/branch/v1", method="POST")
    assert made.status == 201
    control = OriginControl(origin.url)
    control.reset_requests()
    yield Place(tmp_path, launcher, origin, control)
    for process in launcher.running:
        assert "Traceback" not in process.log


def load_kernel(kernels_client: str, server: Process, home: Path, **environment: str) -> None:
    """Have the client load version 1 of the kernel, and check what it loaded."""
    printed = run_script(
        sys.executable,
        server.url,
        home,
        """
        import huggingface_hub, kernels
        # Without telemetry this client makes a User-Agent that ends in a blank, and refuses it.
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = False
        kernel = kernels.get_kernel(
            sys.argv[1], version=1, backend="cpu", trust_remote_code=True
        )
        print(kernel.__file__, kernel.answer())
        """,
        KERNEL,
        PYTHONPATH=kernels_client,
        **environment,
    )
    path, answer = printed.splitlines()[-1].split()
    assert answer == "42"
    found = read_tree(Path(path).parent)
    assert {f"{BUILD}/{name}": content for name, content in found.items()} == {
        name: content for name, content in FILES.items() if name.startswith(f"{BUILD}/")
    }


def check_requests(place: Place, server: Process) -> None:
    """Check that only the server has asked the origin, and nobody was told of it."""
    agents = {asked["user_agent"] or "" for asked in place.control.requests()}
    assert [agent for agent in agents if not re.match(r"xetserve/[0-9.]+( |$)", agent)] == []
    assert TOKEN not in server.log


@pytest.mark.parametrize("mode", ["plain", "auto", "native"])
def test_it_is_loaded_cold_warm_and_offline(
    place: Place, kernels_client: str, tmp_path: Path, mode: str
) -> None:
    cache = tmp_path / "cache"
    server = place.start_server(cache, "--xet-mode", mode)
    load_kernel(kernels_client, server, tmp_path / "cold")
    asked = place.control.requests()
    assert {entry["kind"] for entry in asked} == {"hub", "cas", "data"}
    assert any("kernels/0" in entry["user_agent"] for entry in asked)
    assert ("GET /v2/reconstructions/" in server.log) == (mode == "native")
    wait_until(lambda: not any((cache / "tmp").iterdir()))
    place.control.reset_requests()
    load_kernel(kernels_client, server, tmp_path / "warm")
    assert "data" not in {entry["kind"] for entry in place.control.requests()}
    check_requests(place, server)
    server.stop()
    if mode == "plain":
        place.origin.stop()
        offline = place.start_server(cache, "--xet-mode", mode, offline=True)
        load_kernel(kernels_client, offline, tmp_path / "offline")


def test_it_is_pulled_carried_away_and_loaded(
    place: Place, kernels_client: str, tmp_path: Path
) -> None:
    warm, there, archive = tmp_path / "warm", tmp_path / "there", tmp_path / "kernel.tar"
    hub = ("--hub-url", place.origin.url)
    run_command("pull", f"kernels/{KERNEL}@v1", "--cache-dir", str(warm), *hub)
    (repo,) = told(warm, "export", "--repo", f"kernels/{KERNEL}@v1", str(archive))["repos"]
    assert (repo["type"], repo["incomplete"]) == ("kernel", [])
    told(there, "import", "--with-answers", str(archive))
    place.origin.stop()
    server = place.start_server(there, offline=True)
    load_kernel(kernels_client, server, tmp_path / "home")
    path = f"/download/{KERNEL}/{OBJECT}?type=kernel&revision=v1"
    assert run(curl(f"{server.url}{path}", tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == FILES[OBJECT]


def test_what_else_is_asked_about_one(place: Place, tmp_path: Path) -> None:
    server = place.start_server(tmp_path / "cache")
    connection = Connection(server.url)
    base, api = f"/kernels/{KERNEL}", f"/api/kernels/{KERNEL}"
    info = json.loads(connection.ask(api).body)
    assert info["id"] == KERNEL
    for path in (f"{base}/resolve/v1/{OBJECT}", f"/api/resolve-cache{base}/{info['sha']}/{OBJECT}"):
        reply = connection.ask(path)
        assert (reply.status, reply.body) == (200, FILES[OBJECT])
        assert reply.headers["x-repo-commit"] == info["sha"]
    pointer = connection.ask(f"{base}/raw/v1/{OBJECT}").body
    assert pointer.startswith(b"version https://git-lfs.github.com/spec/v1\n")
    assert json.loads(connection.ask(f"{api}/commits/v1").body)
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    body = f"paths={OBJECT}&expand=False".encode()
    (entry,) = json.loads(connection.ask(f"{api}/paths-info/v1", form, "POST", body=body).body)
    assert (entry["path"], entry["size"]) == (OBJECT, len(FILES[OBJECT]))
    assert "xetHash" not in entry
    batch = {"operation": "download", "objects": [
        {"oid": entry["lfs"]["oid"], "size": entry["size"]}
    ]}  # fmt: skip
    reply = connection.ask(
        f"{base}.git/info/lfs/objects/batch", method="POST", body=json.dumps(batch).encode()
    )
    (found,) = json.loads(reply.body)["objects"]
    href = found["actions"]["download"]["href"]
    assert href.startswith(f"{server.url}{base}.git/info/lfs/objects/")
    assert connection.ask(href.removeprefix(server.url)).body == FILES[OBJECT]
    assert connection.ask(f"{api}/xet-write-token/v1").status == 403
    connection.close()
    check_requests(place, server)
